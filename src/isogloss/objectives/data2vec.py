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

from collections.abc import Sequence
from typing import Annotated, Literal, Self, final

from pydantic import Field

from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.corruption.spans import mask_spans
from isogloss.encoders.base import Encoder
from isogloss.losses.regression import regression, regression_metrics
from isogloss.nn.product import Linear
from isogloss.objectives._teacher import (
    REGRESSION_WATCHES,
    Decay,
    Fraction,
    check_layers,
    is_in_blocks,
    layer_targets,
    mean_of,
    rule_of_start,
)
from isogloss.objectives.base import Objective, ObjectiveConfig
from isogloss.targets.teacher import EmaTeacher, linear_decay

Count = Annotated[int, Field(ge=1)]


class Config(ObjectiveConfig):
    """Settings of data2vec; the defaults are the released audio BASE.

    mask_probability, mask_span
        As wav2vec 2.0's (`corruption/spans.py`).
    top_layers
        K, the layers whose feed-forwards are averaged into the target.
    smooth_l1
        β of the smooth L1 loss, which is quadratic below it; 0 for the squared error, as in the audio models.
    decay_start, decay_end, decay_fraction
        τ of the teacher rises linearly over this fraction of the run: 30 000 of 400 000 updates. With n updates in all the
        teacher remembers 1/(1−τ) of them, so a short run wants a smaller τ.
    """

    name: Literal["data2vec"] = "data2vec"
    mask_probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.65
    mask_span: Count = 10
    top_layers: Count = 8
    smooth_l1: Annotated[float, Field(ge=0.0)] = 0.0
    decay_start: Decay = 0.999
    decay_end: Decay = 0.9999
    decay_fraction: Fraction = 0.075

    def continued(self) -> Self:
        """Return the settings with τ at its end."""
        return self.model_copy(update={"decay_start": self.decay_end})


@final
class Data2Vec(Objective):
    """Masked regression of a teacher's contextual targets."""

    config: Config
    watches = REGRESSION_WATCHES

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        check_layers(encoder, config.top_layers)
        self.config = config
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
        )
        rows_M = is_masked_N.nonzero().squeeze(1).to(latents.values_ND.device)
        targets_ND = mean_of(layer_targets(self.teacher, latents, config.top_layers))
        targets_MD = targets_ND.index_select(0, rows_M)

        states_ND = encoder.context(latents, is_masked_N.to(rows_M.device)).last.values_ND
        guesses_MD = self.project(states_ND.index_select(0, rows_M)).float()
        total = regression(guesses_MD, targets_MD, config.smooth_l1)
        metrics = regression_metrics(guesses_MD, targets_MD)
        return LossTerms(total, len(rows_M), {**metrics, "masked_fraction": (len(rows_M), len(is_masked_N))})

    def follow(self, encoder: Encoder, progress: float) -> None:
        """Average the encoder into the teacher."""
        config = self.config
        self.teacher.follow(
            encoder, linear_decay(progress, config.decay_start, config.decay_end, config.decay_fraction)
        )

    def rebuild_heads(self, encoder: Encoder, names: Sequence[str]) -> str:
        """Leave them as they are: the teacher was made from the checkpoint's encoder."""
        return rule_of_start(names)
