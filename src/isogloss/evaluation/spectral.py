"""Log-mel and MFCC at 100 Hz: what every learned representation must beat, behind the same protocol.

Kaldi's definitions (25 ms Povey windows every 10 ms, pre-emphasis 0.97, HTK mel scale from 20 Hz to 400 Hz below Nyquist),
without dither and without padding, so frame i is centred at 12.5 + 10·i ms. Values are normalised per cut to zero mean and
unit variance in every dimension.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Literal

import numpy.typing as npt
import torch
from torch import Tensor

from isogloss.core.errors import ConfigError
from isogloss.data.audio import read_audio

SAMPLE_RATE = 16_000
WINDOW = 400
HOP = 160
_FFT = 512
_LOW_HZ = 20.0
_HIGH_HZ = SAMPLE_RATE / 2 - 400.0
_FLOOR = 1.1920929e-07  # the smallest energy whose logarithm is taken: float32's epsilon, as in Kaldi


class SpectralSource:
    """A `FeatureSource` without parameters: "mel" (80 log-mel energies) or "mfcc" (13 coefficients, Δ, ΔΔ)."""

    frame_rate_hz = SAMPLE_RATE / HOP
    first_center_seconds = WINDOW / 2 / SAMPLE_RATE
    layers: tuple[int, ...] = (0,)

    def __init__(self, name: Literal["mel", "mfcc"], *, is_normalized: bool = True) -> None:
        if name not in ("mel", "mfcc"):
            raise ConfigError(f"a spectral source must be `mel` or `mfcc`, but is `{name}`")
        self.name: str = name
        self.is_normalized = is_normalized

    def unnormalized(self) -> SpectralSource:
        """Return the same features without normalisation, for pooling: normalised ones have the same mean for every cut."""
        return SpectralSource("mel" if self.name == "mel" else "mfcc", is_normalized=False)

    def features(self, cut: Any) -> dict[int, npt.NDArray[Any]]:
        """Return {0: S×80} or {0: S×39}, float32, normalised over the cut unless that was switched off."""
        waveform_T = torch.from_numpy(read_audio(cut, sample_rate=SAMPLE_RATE))
        values_SD = log_mel(waveform_T) if self.name == "mel" else mfcc(waveform_T)
        return {0: (normalize(values_SD) if self.is_normalized else values_SD).numpy()}


def log_mel(waveform_T: Tensor, num_bins: int = 80) -> Tensor:
    """Return log-mel energies of a 16 kHz waveform, S×F; no rows where it is shorter than a window."""
    if len(waveform_T) < WINDOW:
        return waveform_T.new_zeros(0, num_bins)
    frames = waveform_T.unfold(0, WINDOW, HOP)
    frames = frames - frames.mean(dim=1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    power = torch.fft.rfft(frames * _window(), n=_FFT).abs().square()
    return torch.log((power @ _filters(num_bins)).clamp(min=_FLOOR))


def mfcc(waveform_T: Tensor) -> Tensor:
    """Return 13 cepstral coefficients (of 23 log-mel energies, lifter 22) with Δ and ΔΔ, S×39."""
    cepstra = log_mel(waveform_T, 23) @ _cosines(23, 13)
    first = deltas(cepstra)
    return torch.cat([cepstra, first, deltas(first)], dim=1)


def deltas(values_SD: Tensor) -> Tensor:
    """Return the slope of the regression line over five frames, edges repeated (HTK book, eq. 5.16)."""
    if len(values_SD) == 0:
        return values_SD
    padded = torch.cat([values_SD[:1]] * 2 + [values_SD] + [values_SD[-1:]] * 2)
    n = len(values_SD)
    return (padded[3 : 3 + n] - padded[1 : 1 + n] + 2 * (padded[4 : 4 + n] - padded[:n])) / 10


def normalize(values_SD: Tensor) -> Tensor:
    """Bring every dimension to zero mean and unit variance over the frames."""
    if len(values_SD) == 0:
        return values_SD
    return (values_SD - values_SD.mean(0)) / (values_SD.std(0, unbiased=False) + 1e-5)


@cache
def _window() -> Tensor:
    n = torch.arange(WINDOW, dtype=torch.float64)
    return ((0.5 - 0.5 * torch.cos(2 * math.pi * n / (WINDOW - 1))) ** 0.85).float()


@cache
def _filters(num_bins: int) -> Tensor:
    def mel(hz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hz / 700.0)

    low, high = mel(torch.tensor([_LOW_HZ, _HIGH_HZ])).tolist()
    edges = torch.linspace(low, high, num_bins + 2)
    bins = mel(torch.arange(_FFT // 2 + 1) * (SAMPLE_RATE / _FFT))[:, None]
    up = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return torch.minimum(up, down).clamp(min=0.0)


@cache
def _cosines(num_bins: int, num_coefficients: int) -> Tensor:
    k = torch.arange(num_coefficients, dtype=torch.float64)
    n = torch.arange(num_bins, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi / num_bins * (n + 0.5) * k) * math.sqrt(2.0 / num_bins)
    basis[:, 0] = math.sqrt(1.0 / num_bins)
    return (basis * (1 + 11 * torch.sin(math.pi * k / 22))).float()
