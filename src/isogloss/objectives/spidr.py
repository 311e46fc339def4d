"""SpidR (arXiv 2512.20308).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| SpidR | spans | the EMA teacher's top-8 layers, clustered online | cross-entropy, head k on layer k | wave transformer, no qkv bias |

DinoSR with three changes: head k reads the student's layer k, the one whose codes it predicts, instead of the last one; τ nears
1 exponentially, τ_t = 1 − 0.001·e^{−t/20000}; and the teacher begins with random weights of its own (`_online_codes.py`).
"""

from __future__ import annotations

import math
from typing import Literal, Self, final

from torch import Tensor

from isogloss.core.fields import Share
from isogloss.core.types import EncoderOutput
from isogloss.encoders.base import Encoder
from isogloss.objectives._online_codes import OnlineCodes, OnlineCodesConfig


class Config(OnlineCodesConfig):
    """Settings of SpidR; the defaults are the published BASE.

    decay_start, decay_fraction
        τ = 1 − (1 − start)·e^{−p/fraction} at the fraction p of the run: 20 000 of 400 000 updates.
    teacher_start
        "random" weights of its own for the teacher, or a "copy" of the encoder, which is what a continued run wants.
    """

    name: Literal["spidr"] = "spidr"
    decay_fraction: Share = 0.05
    teacher_start: Literal["random", "copy"] = "random"

    def continued(self) -> Self:
        """Return the settings with a teacher that begins as the encoder; at its end τ stands still, so it begins anew."""
        return self.model_copy(update={"teacher_start": "copy"})


@final
class SpidR(OnlineCodes):
    """Prediction of a teacher's online clusters, layer by layer."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder, random_teacher=config.teacher_start == "random")

    def student_states(self, states: EncoderOutput) -> list[Tensor]:
        """Return the states after the top K layers."""
        return [state.values_ND for state in states.states[-self.config.top_layers :]]

    def decay(self, progress: float) -> float:
        """Return τ, which nears 1 exponentially."""
        config = self.config
        passed = math.exp(-progress / config.decay_fraction) if config.decay_fraction else 0.0
        return 1.0 - (1.0 - config.decay_start) * passed
