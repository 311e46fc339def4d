"""DinoSR (arXiv 2305.10005).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| DinoSR | spans | the EMA teacher's top-8 layers, clustered online | cross-entropy, all heads on the last layer | wave transformer |

data2vec's teacher; but instead of averaging its layers into one vector, each is clustered by a codebook of its own that
follows the frames, and the student predicts all K codes of a hidden frame from its last layer (`_online_codes.py`).
"""

from __future__ import annotations

from typing import Literal, final

from torch import Tensor

from isogloss.core.types import EncoderOutput
from isogloss.encoders.base import Encoder
from isogloss.objectives._online_codes import OnlineCodes, OnlineCodesConfig
from isogloss.objectives._teacher import LinearDecayConfig


class Config(LinearDecayConfig, OnlineCodesConfig):
    """Settings of DinoSR; the defaults are the published BASE: τ rises from 0.999 to 0.9999 over 30 000 of 400 000 updates."""

    name: Literal["dinosr"] = "dinosr"


@final
class DinoSR(OnlineCodes):
    """Prediction of a teacher's online clusters from the last layer."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)

    def student_states(self, states: EncoderOutput) -> list[Tensor]:
        """Return the last state for every head."""
        return [states.last.values_ND] * self.config.top_layers

    def decay(self, progress: float) -> float:
        """Return τ, which rises linearly."""
        return self.config.decay(progress)
