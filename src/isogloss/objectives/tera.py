"""TERA (arXiv 2007.06028).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| TERA | spans, 80/10/10; a band of bins; noise on magnitudes | log-mel frames | L1 | transformer on mel |

Mockingjay's alteration of time, and two more: a band of up to a fifth of the bins is zero over the whole utterance, and some
utterances get Gaussian noise. A head on the last state guesses the spectrum as it was:

    loss = Σ |guess − frame| over the cells of the chosen frames or of the band

which the loop divides by the number of cells. The noise chooses no cells: it is there to be removed from them.
"""

from __future__ import annotations

from typing import Literal, final

import torch

from isogloss.core.fields import Positive, Share
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.corruption.frequency import draw_bands, magnitude_noise
from isogloss.encoders.base import Encoder
from isogloss.objectives._reconstruction import AlteredSpansConfig, Reconstruction, Targets, absolute_error, spectral


class Config(AlteredSpansConfig):
    """Settings of TERA; the defaults are those of its base model (arXiv 2007.06028, in s3prl's form).

    mask_probability, mask_span, zeroed, replaced
        The alteration of time, as in `mockingjay` (`AlteredSpansConfig`): one die for all spans of an utterance.
    max_band
        The band's width is uniform up to this share of the bins; 0 leaves the alteration of frequency out.
    noise_probability, noise_std
        Probability that an utterance gets noise, and its standard deviation, in units of the normalised spectrum.
    """

    name: Literal["tera"] = "tera"
    max_band: Share = 0.2
    noise_probability: Share = 0.15
    noise_std: Positive = 0.2


@final
class Tera(Reconstruction):
    """Reconstruction of a spectrum that was altered in time, frequency and magnitude."""

    config: Config

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed absolute error over the cells that were hidden in time or in frequency."""
        config, encoder = self.config, spectral(encoder, self.config.name)
        spectrum = encoder.spectrum(batch.audio)
        device = spectrum.values_ND.device
        targets = Targets.of(spectrum, encoder, batch.audio.sizes)
        replacement = config.draw_spans(targets, batch.seeds_B)
        corrupted = replacement.repeated(targets.frames, targets.lengths, spectrum.sizes).apply(spectrum)
        # Slopes of a hidden bin would tell it: the band is hidden in every order.
        bands = utterance_generators(batch.seeds_B, "bands")
        is_band_BF = draw_bands(encoder.config.num_bins, bands, max_share=config.max_band)
        is_band_BF = is_band_BF.repeat(1, 1 + encoder.config.num_deltas)
        noise_NF = magnitude_noise(
            spectrum.sizes,
            encoder.spectrum_width,
            utterance_generators(batch.seeds_B, "noise"),
            probability=config.noise_probability,
            std=config.noise_std,
        )
        is_band_NF = is_band_BF.repeat_interleave(spectrum.lengths_B, 0)
        values_NF = corrupted.values_ND.masked_fill(is_band_NF.to(device), 0.0) + noise_NF.to(device)
        states = encoder.context(encoder.embed(corrupted.with_values(values_NF)).latents).last
        guesses_ME = self.head(states.values_ND.index_select(0, targets.rows_M))
        is_band_ME = is_band_BF.repeat(1, targets.frames).repeat_interleave(torch.tensor(targets.lengths), 0)
        is_chosen_ME = replacement.is_chosen_N[:, None] | is_band_ME
        terms = absolute_error(guesses_ME, targets.values_ME, is_chosen_ME)
        terms.metrics["masked_fraction"] = (int(replacement.is_chosen_N.sum()), len(targets.rows_M))
        return terms
