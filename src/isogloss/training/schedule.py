"""Learning-rate schedules, stated in fractions of the run, so that a shorter run has the same shape."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import model_validator

from isogloss.core.config import Config
from isogloss.core.fields import Share


class ScheduleConfig(Config):
    """How the learning rate moves over a run.

    `linear` and `cosine` rise linearly over `warmup` (a fraction of the run) and fall to `final_scale` of the peak, which the
    update after the last would have; `constant` stays at the peak after the warm-up; `tri-stage` rises over `warmup`, holds
    over `hold`, and falls exponentially to `final_scale` (fairseq's fine-tuning schedule).
    """

    shape: Literal["linear", "cosine", "constant", "tri-stage"] = "linear"
    warmup: Share = 0.08
    hold: Share = 0.0
    final_scale: Share = 0.0

    @model_validator(mode="after")
    def _check(self) -> ScheduleConfig:
        if self.warmup + self.hold > 1:
            raise ValueError(
                f"warmup + hold must be at most 1, but is {self.warmup + self.hold}; they are fractions of the run"
            )
        if self.shape == "tri-stage" and self.final_scale == 0:
            raise ValueError(
                "a tri-stage schedule falls exponentially and needs `final_scale` above 0, for instance 0.05"
            )
        if self.shape != "tri-stage" and self.hold:
            raise ValueError(f'`hold` belongs to the shape "tri-stage", but the shape is "{self.shape}"')
        return self


def learning_rate_scale(schedule: ScheduleConfig, step: int, total: int) -> float:
    """Return the factor on the peak learning rate for update `step` (0-based) of `total`.

    The first update has a small rate, not zero; the peak is reached at the last update of the warm-up. The fall is that of
    fairseq and transformers: the first update after the warm-up has the peak, and update `total`, which is not computed, would
    have `final_scale`; so no update is computed at a rate of zero, and a single one has the peak.
    """
    warmup = round(schedule.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.shape == "constant":
        return 1.0
    held = warmup + round(schedule.hold * total)
    if step < held:
        return 1.0
    fraction = min(1.0, (step - held) / max(1, total - held))
    floor = schedule.final_scale
    if schedule.shape == "tri-stage":
        return math.exp(fraction * math.log(floor))
    if schedule.shape == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * fraction))
    return floor + (1 - floor) * (1 - fraction)
