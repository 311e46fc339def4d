"""What a healthy run looks like, as a trainable says it and the watchdog reads it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Watch:
    """One sign of health that the watchdog reads from the logged metrics.

    The metric must stay inside (low, high); outside for `patience` updates in a row the watchdog warns, and after as many
    again it stops the run with `advice`. Nothing is judged in the first `grace` updates.
    """

    metric: str
    low: float | None = None
    high: float | None = None
    patience: int = 200
    grace: int = 0
    meaning: str = ""  # "the codebook has collapsed"
    advice: str = ""  # "raise diversity_weight, lower the learning rate"
