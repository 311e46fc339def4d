"""Encoders that read a spectrum instead of samples: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from isogloss.core.config import Config
from isogloss.core.fields import Count, Positive
from isogloss.core.types import FrontendOutput, Packed
from isogloss.encoders.base import Encoder
from isogloss.nn.filterbank import HOP, WINDOW, deltas, normalize, packed_log_mel

SPECTRUM_KERNEL, SPECTRUM_STRIDE = WINDOW, HOP  # the first layer of every spectral encoder's geometry, in samples


class SpectralConfig(Config):
    """What every spectral encoder says about its input.

    num_bins, num_deltas
        Log-mel bins, and how many orders of slopes (Δ, ΔΔ) follow them: F = num_bins·(1 + num_deltas).
    normalization
        "utterance": every bin to zero mean and unit variance over the utterance (CMVN). "global": minus `global_mean`, over
        `global_std`, the same two numbers for all bins, so loudness and channel stay in. "none": as they come, for controls.
    """

    num_bins: Count = 80
    num_deltas: Annotated[int, Field(ge=0, le=2)] = 0
    normalization: Literal["utterance", "global", "none"] = "utterance"
    global_mean: float = -6.0
    global_std: Positive = 4.0


class SpectralEncoder(Encoder):
    """`frontend` in two steps, so that an objective may take the spectrum as a target and corrupt it before it is embedded.

    `spectrum` computes N×F frames at 100 Hz, normalised as `config` says; `embed` stacks, subsamples or projects them. The
    `geometry` begins with the window of the spectrum (`SPECTRUM_KERNEL`, `SPECTRUM_STRIDE`) and goes on with what `embed` does.
    """

    config: SpectralConfig
    normalizes_waveform = False

    @property
    def spectrum_width(self) -> int:
        """F, the values of a frame of the spectrum."""
        return self.config.num_bins * (1 + self.config.num_deltas)

    @torch.no_grad()
    def spectrum(self, audio: Packed) -> Packed:
        """Turn packed samples (N) into N×F float32 frames, 25 ms every 10 ms, each utterance by itself, without a gradient."""
        values = packed_log_mel(audio, self.config.num_bins)
        if self.config.num_deltas:
            values = _per_utterance(values, self._with_deltas)
        if self.config.normalization == "utterance":
            return _per_utterance(values, normalize)
        if self.config.normalization == "global":
            return values.with_values((values.values_ND - self.config.global_mean) / self.config.global_std)
        return values

    @abstractmethod
    def embed(self, spectrum: Packed) -> FrontendOutput:
        """Turn a spectrum (N×F at 100 Hz, corrupted or not) into the frames that `context` reads."""

    def frontend(self, audio: Packed) -> FrontendOutput:
        """Return `embed(spectrum(audio))`."""
        return self.embed(self.spectrum(audio))

    def _with_deltas(self, values_SF: Tensor) -> Tensor:
        orders = [values_SF]
        for _ in range(self.config.num_deltas):
            orders.append(deltas(orders[-1]))
        return torch.cat(orders, dim=1)


def _per_utterance(values: Packed, function: Callable[[Tensor], Tensor]) -> Packed:
    return values.with_values(torch.cat([function(part) for part in values.split()]))
