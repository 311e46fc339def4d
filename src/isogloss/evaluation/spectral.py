"""Log-mel and MFCC at 100 Hz: what every learned representation must beat, behind the same protocol.

The definitions are those of `nn.filterbank`. Values are normalised per cut to zero mean and unit variance in every dimension.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy.typing as npt
import torch

from isogloss.core.errors import ConfigError
from isogloss.core.threads import one_thread
from isogloss.data.audio import read_audio
from isogloss.nn.filterbank import HOP, SAMPLE_RATE, WINDOW, log_mel, mfcc, normalize


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
        with one_thread():
            values_SD = log_mel(waveform_T) if self.name == "mel" else mfcc(waveform_T)
            return {0: (normalize(values_SD) if self.is_normalized else values_SD).numpy()}
