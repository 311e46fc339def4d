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

from typing import Literal, final

from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.encoders.base import Encoder
from isogloss.objectives._reconstruction import AlteredSpansConfig, Reconstruction, Targets, absolute_error, spectral


class Config(AlteredSpansConfig):
    """Settings of Mockingjay; the defaults are s3prl's present ones. The paper's: mask_span 1 with `encoder.stack` 3, decide "span".

    mask_probability, mask_span, zeroed, replaced
        The alteration of time (`AlteredSpansConfig`).
    decide
        Whether one die decides for all spans of an utterance (s3prl now) or each span has its own (2019).
    """

    name: Literal["mockingjay"] = "mockingjay"
    decide: Literal["utterance", "span"] = "utterance"


@final
class Mockingjay(Reconstruction):
    """Reconstruction of hidden frames from both sides."""

    config: Config

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed absolute error over the cells of the chosen frames."""
        encoder = spectral(encoder, self.config.name)
        spectrum = encoder.spectrum(batch.audio)
        targets = Targets.of(spectrum, encoder, batch.audio.sizes)
        replacement = self.config.draw_spans(targets, batch.seeds_B, self.config.decide)
        corrupted = replacement.repeated(targets.frames, targets.lengths, spectrum.sizes).apply(spectrum)
        states = encoder.context(encoder.embed(corrupted).latents).last
        chosen_K = replacement.is_chosen_N.nonzero().squeeze(1).to(targets.rows_M.device)
        guesses_KE = self.head(states.values_ND.index_select(0, targets.rows_M[chosen_K]))
        terms = absolute_error(guesses_KE, targets.values_ME[chosen_K])
        terms.metrics["masked_fraction"] = (len(chosen_K), len(targets.rows_M))
        return terms
