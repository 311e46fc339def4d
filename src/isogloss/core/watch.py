"""What a healthy run looks like, as a trainable says it and the watchdog reads it."""

from __future__ import annotations

from dataclasses import dataclass

MIN_PATIENCE = 20  # updates
PATIENCE_SHARE = 1 / 20  # of the run


@dataclass(frozen=True)
class Watch:
    """One sign of health that the watchdog reads from the logged metrics.

    The metric must stay inside (low, high). Outside for `patience` updates in a row the watchdog warns, and after twice as many
    it stops the run with `advice`. Nothing is judged in the first `grace` updates.

    `patience` is for a long run. A short one is warned sooner, after a twentieth of it (but not below `MIN_PATIENCE` updates),
    since it would otherwise end before it is told; it is not stopped sooner, since a stop there saves little. `grace` stays: a
    model needs its updates to begin to learn however long the run is.

    `stops` False warns only: for a sign that a sound corpus can also give.
    """

    metric: str
    low: float | None = None
    high: float | None = None
    patience: int = 200
    grace: int = 0
    meaning: str = ""  # "the codebook has collapsed"
    advice: str = ""  # "raise diversity_weight, lower the learning rate"
    stops: bool = True

    def patience_in(self, total_updates: int | None) -> int:
        """Return the updates in a row before a warning, in a run of so many; None for a length that nobody knows."""
        if total_updates is None:
            return self.patience
        return min(self.patience, max(int(total_updates * PATIENCE_SHARE), MIN_PATIENCE))
