"""Features normalised over each recording: what a voice and a channel add to every frame is taken out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isogloss.evaluation.features import FeatureSource


@dataclass(frozen=True)
class NormalizedSource:
    """Another source with zero mean and unit variance in every dimension of every recording and layer.

    The option `seqNorm` of CPC_audio's evaluation (arXiv 2002.02848). Log-mel and MFCC come so already; without it a linear
    probe that is tested on another channel than it was trained on compares a normalised baseline with a raw encoder.
    """

    source: FeatureSource

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.source.name

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second."""
        return self.source.frame_rate_hz

    @property
    def first_center_seconds(self) -> float:
        """Time of the middle of frame 0, from the start of the cut."""
        return self.source.first_center_seconds

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of the source."""
        return self.source.layers

    def features(self, cut: Any) -> dict[int, npt.NDArray[Any]]:
        """Return S×D features of every layer, float32; a dimension that is constant over the recording is zero."""
        return {layer: normalize_rows(values) for layer, values in self.source.features(cut).items()}


def normalize_rows(values_SD: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return S×D values with zero mean and unit variance over S."""
    values_SD = np.asarray(values_SD, dtype=np.float32)
    if not len(values_SD):
        return values_SD
    centred_SD = values_SD - values_SD.mean(0)
    scale_D = centred_SD.std(0)
    normalized_SD: npt.NDArray[Any] = centred_SD / np.where(scale_D > 1e-5, scale_D, np.inf).astype(np.float32)
    return normalized_SD
