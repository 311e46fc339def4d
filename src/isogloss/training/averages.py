"""Sums over micro-batches, ranks and updates, and the means that are logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from isogloss.core import dist
from isogloss.core.types import LossTerms


@dataclass
class Sums:
    """Total loss, number of targets, seconds of audio, and (sum, count) of each metric; they add up."""

    loss: float = 0.0
    num_targets: float = 0.0
    audio_seconds: float = 0.0
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, other: Sums) -> None:
        """Add the sums of another update."""
        self.loss += other.loss
        self.num_targets += other.num_targets
        self.audio_seconds += other.audio_seconds
        for name, (total, count) in other.metrics.items():
            old_total, old_count = self.metrics.get(name, (0.0, 0.0))
            self.metrics[name] = (old_total + total, old_count + count)

    @property
    def mean_loss(self) -> float:
        """The loss per target."""
        return self.loss / self.num_targets if self.num_targets else float("nan")

    def means(self) -> dict[str, float]:
        """Return the mean of each metric that was counted."""
        return {name: total / count for name, (total, count) in sorted(self.metrics.items()) if count}

    def state(self) -> dict[str, Any]:
        """Return the sums as plain values."""
        return {**vars(self), "metrics": {name: list(pair) for name, pair in self.metrics.items()}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Sums:
        """Continue with these sums."""
        pairs = {name: (float(total), float(count)) for name, (total, count) in state["metrics"].items()}
        return cls(state["loss"], state["num_targets"], state["audio_seconds"], pairs)


class Reducer:
    """Adds one update's terms and flags over all ranks in one exchange, and waits for the device once.

    Ranks agree on the names of the metrics when one of them meets a new name.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: list[str] = []

    def reduce(
        self, terms: LossTerms, audio_seconds: float, flags: Sequence[Tensor | float]
    ) -> tuple[Sums, list[float]]:
        """Return the sums of the update and the sum of each flag."""
        has_new = not set(terms.metrics) <= set(self._names)
        pairs = [terms.metrics.get(name, (0.0, 0.0)) for name in self._names]
        values = [
            terms.total,
            terms.num_targets,
            audio_seconds,
            has_new,
            *flags,
            *(value for pair in pairs for value in pair),
        ]
        flat = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=self._device).detach() for v in values])
        loss, num_targets, seconds, num_new, *rest = dist.sum_over_ranks(flat).tolist()
        if num_new:
            found: list[Any] = dist.gather_objects(sorted(terms.metrics))
            self._names = sorted({*self._names, *(name for names in found for name in names)})
            return self.reduce(terms, audio_seconds, flags)
        totals = rest[len(flags) :]
        metrics = {name: (totals[2 * i], totals[2 * i + 1]) for i, name in enumerate(self._names)}
        return Sums(loss, num_targets, seconds, metrics), rest[: len(flags)]
