"""data2vec (arXiv 2202.03555) for speech.

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| data2vec | spans | the EMA teacher's top-8 feed-forwards | regression | wave transformer |

Hide spans of the latents and predict, at the hidden frames, what a teacher that sees everything computes there: the feed-forward
outputs (before the residual) of its top K layers, each brought to zero mean and unit variance over the time of an utterance,
averaged. With M hidden frames and D channels

    loss = Σ_{t hidden} ‖W o_t − y_t‖² / √D

The teacher is the average of the student's transformer layers; all else it has from the student as it is.
"""

from __future__ import annotations

from typing import Annotated, Literal, final

from pydantic import Field

from isogloss.core.fields import Count
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.corruption.spans import mask_spans
from isogloss.encoders.base import Encoder
from isogloss.nn.product import Linear
from isogloss.objectives._teacher import RegressionConfig, TeacherRegression, is_in_blocks
from isogloss.targets.teacher import EmaTeacher


class Config(RegressionConfig):
    """Settings of data2vec; the defaults are the released audio BASE: τ rises over 30 000 of 400 000 updates.

    mask_probability, mask_span, min_masks
        As wav2vec 2.0's (`corruption/spans.py`), but for the least number of spans of an utterance, which is 1 here.
    top_layers, smooth_l1, decay_start, decay_end, decay_fraction
        Of the targets and the teacher (`RegressionConfig`, `LinearDecayConfig`).
    """

    name: Literal["data2vec"] = "data2vec"
    mask_probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.65
    mask_span: Count = 10
    min_masks: Annotated[int, Field(ge=0)] = 1


@final
class Data2Vec(TeacherRegression):
    """Masked regression of a teacher's contextual targets."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.project = Linear(encoder.width, encoder.width)
        self.teacher = EmaTeacher(encoder, is_in_blocks(encoder).__contains__)

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over the hidden frames of a batch."""
        config = self.config
        latents = encoder.frontend(batch.audio).latents
        is_masked_N = mask_spans(
            latents.sizes,
            utterance_generators(batch.seeds_B, "masks"),
            probability=config.mask_probability,
            span=config.mask_span,
            min_masks=config.min_masks,
        )
        rows_M = is_masked_N.nonzero().squeeze(1).to(latents.values_ND.device)
        targets_MD = self.targets(latents).index_select(0, rows_M)

        states_ND = encoder.context(latents, is_masked_N.to(rows_M.device)).last.values_ND
        guesses_MD = self.project(states_ND.index_select(0, rows_M)).float()
        return self.terms(guesses_MD, targets_MD, len(is_masked_N))
