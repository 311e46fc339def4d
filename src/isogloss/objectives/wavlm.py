"""WavLM (arXiv 2110.13900).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| WavLM | spans + utterance/noise mixing | clusters of the clean speech | cosine cross-entropy | wave transformer, gated relative bias |

HuBERT's loss, on an input to which a second voice or a noise was added while the units stay those of the clean first voice:
the context must tell the speakers apart and listen to the first.
"""

from __future__ import annotations

from typing import Literal, Self, final

from pydantic import model_validator
from torch import Tensor

from isogloss.core.fields import Share
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.corruption.mixing import Mixing
from isogloss.data.noises import NoiseFolder
from isogloss.encoders.base import Encoder
from isogloss.objectives._masked_units import MaskedUnits, MaskedUnitsConfig


class Config(MaskedUnitsConfig):
    """Settings of WavLM; the defaults are BASE, without noises. BASE+ and LARGE: noise_probability 0.1; LARGE: final_width 768.

    mixing_probability, noise_probability, noise_dir
        Share of the utterances that are mixed; share of those that get a noise, from a folder, instead of a second voice.
    mixing_share
        A second signal covers at most this share of the utterance.
    speech_snr, noise_snr
        Smallest and largest ratio, in dB, of the utterance to a second voice and to a noise.
    """

    name: Literal["wavlm"] = "wavlm"
    mixing_probability: Share = 0.2
    noise_probability: Share = 0.0
    noise_dir: str | None = None
    mixing_share: Share = 0.5
    speech_snr: tuple[float, float] = (-5.0, 5.0)
    noise_snr: tuple[float, float] = (-5.0, 20.0)

    @model_validator(mode="after")
    def _has_noises(self) -> Self:
        if self.noise_probability > 0 and self.noise_dir is None:
            raise ValueError(
                f"noise_dir must name a folder of noises where noise_probability is {self.noise_probability:g}; or set that to 0"
            )
        if self.noise_dir is not None and self.noise_probability == 0:
            raise ValueError(
                "noise_probability must be above 0 where noise_dir names a folder of noises, but is 0; try 0.1"
            )
        if self.noise_dir is None and self.changed("noise_snr"):
            raise ValueError("noise_snr has no effect without noises; set noise_probability and noise_dir")
        for name in ("speech_snr", "noise_snr"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be [smallest, largest], but is [{low:g}, {high:g}]")
        return self


@final
class WavLM(MaskedUnits):
    """Masked prediction of the units of the clean first voice of a mixture."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder.width, encoder.num_layers)
        # The second voice is another utterance of the micro-batch.
        has_second_voices = config.mixing_probability > 0.0 and config.noise_probability < 1.0
        self.additive = self.additive and not has_second_voices
        self._noises: NoiseFolder | None = None

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over the target frames of a batch."""
        audio, is_mixed_B = self.corrupt(encoder, batch)
        terms, _, _ = self.unit_terms(encoder, batch, audio)
        terms.metrics["mixed_fraction"] = (int(is_mixed_B.sum()), len(is_mixed_B))
        return terms

    def corrupt(self, encoder: Encoder, batch: SpeechBatch) -> tuple[Packed, Tensor]:
        """Return the mixed audio, and which utterances were mixed."""
        config = self.config
        mixing = Mixing(
            config.mixing_probability,
            config.noise_probability,
            config.mixing_share,
            config.speech_snr,
            config.noise_snr,
        )
        if config.noise_dir is not None and self._noises is None:
            self._noises = NoiseFolder(config.noise_dir, batch.sample_rate)
        return self.mixed(encoder, batch, mixing, None if self._noises is None else self._noises.draw)
