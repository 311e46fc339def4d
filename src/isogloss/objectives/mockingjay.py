"""Mockingjay (arXiv 1910.12638), in the variant that s3prl has now.

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| Mockingjay | spans, 80/10/10 | log-mel frames | L1 | transformer on mel |

Spans of the normalised spectrum are zeroed (in 80 % of the utterances), replaced by other frames (10 %) or left as they are
(10 %), and a head on the last state guesses what was there:

    loss = Σ |guess − frame| over the cells of the chosen frames

which the loop divides by the number of cells.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, final

from pydantic import Field, model_validator

from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.corruption.replace import replace_spans
from isogloss.encoders.base import Encoder
from isogloss.objectives._reconstruction import (
    WATCHES,
    SpectrumHead,
    Targets,
    absolute_error,
    frames_per_state,
    spectral,
)
from isogloss.objectives.base import Objective, ObjectiveConfig

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Config(ObjectiveConfig):
    """Settings of Mockingjay; the defaults are s3prl's present ones. The paper's: mask_span 1 with `encoder.stack` 3, decide "span".

    mask_probability, mask_span
        Share of the frames that spans would cover if they did not overlap, and states in a span (of `stack` frames each).
    zeroed, replaced
        Probabilities that spans become zero, or other frames of the utterance; otherwise they stay.
    decide
        Whether one die decides for all spans of an utterance (s3prl now) or each span has its own (2019).
    """

    name: Literal["mockingjay"] = "mockingjay"
    mask_probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.15
    mask_span: Annotated[int, Field(ge=1)] = 7
    zeroed: Share = 0.8
    replaced: Share = 0.1
    decide: Literal["utterance", "span"] = "utterance"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.zeroed + self.replaced > 1:
            raise ValueError(f"zeroed + replaced must be at most 1, but is {self.zeroed + self.replaced:g}")
        return self


@final
class Mockingjay(Objective):
    """Reconstruction of hidden frames from both sides."""

    config: Config
    watches = WATCHES

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        encoder = spectral(encoder, config.name)
        self.head = SpectrumHead(encoder.width, frames_per_state(encoder) * encoder.spectrum_width)

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed absolute error over the cells of the chosen frames."""
        config, encoder = self.config, spectral(encoder, self.config.name)
        spectrum = encoder.spectrum(batch.audio)
        targets = Targets.of(spectrum, encoder, batch.audio.sizes)
        replacement = replace_spans(
            targets.lengths,
            utterance_generators(batch.seeds_B, "masks"),
            probability=config.mask_probability,
            span=config.mask_span,
            zeroed=config.zeroed,
            replaced=config.replaced,
            decide=config.decide,
        )
        corrupted = replacement.repeated(targets.frames, targets.lengths, spectrum.sizes).apply(spectrum)
        states = encoder.context(encoder.embed(corrupted).latents).last
        chosen_K = replacement.is_chosen_N.nonzero().squeeze(1).to(targets.rows_M.device)
        guesses_KE = self.head(states.values_ND.index_select(0, targets.rows_M[chosen_K]))
        terms = absolute_error(guesses_KE, targets.values_ME[chosen_K])
        terms.metrics["masked_fraction"] = (len(chosen_K), len(targets.rows_M))
        return terms
