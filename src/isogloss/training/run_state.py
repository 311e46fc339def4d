"""Where a run is: the numbers that travel with a checkpoint, beside the tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from isogloss.training.averages import Sums


@dataclass
class RunState:
    """Updates done, how many were left out in a row, audio and time spent, and the sums since the last logged line.

    `loader` is the state of the data after the last update; `loss` that of the last logged line.
    """

    step: int = 0
    skipped_in_row: int = 0
    audio_seconds: float = 0.0
    seconds: float = 0.0
    window: Sums = field(default_factory=Sums)
    loader: dict[str, Any] = field(default_factory=dict)
    loss: float = math.nan

    def tree(self) -> dict[str, Any]:
        """Return plain values."""
        return {**vars(self), "window": self.window.state()}

    @classmethod
    def of_tree(cls, tree: Mapping[str, Any]) -> Self:
        """Return the state that `tree` was made of; what else it holds is left alone."""
        own = {name: tree[name] for name in cls.__dataclass_fields__}
        return cls(**{**own, "window": Sums.from_state(own["window"])})
