"""The watchdog reads the signs of health that an objective declares, warns, and stops a run that has collapsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isogloss.core.errors import TrainingError
from isogloss.objectives.base import Watch


class Watchdog:
    """Counts, for each watch, the updates in a row with its metric out of bounds.

    After `patience` of them it warns, sooner in a short run (`Watch.patience_in`, for a run of `total_updates`); after twice
    `patience` it raises `TrainingError` with the watch's meaning and advice. The counts travel with the checkpoint, so a resumed
    run warns and stops at the same update.
    """

    def __init__(self, watches: Sequence[Watch], total_updates: int | None = None) -> None:
        self._watches = tuple(watches)
        self._patience = [watch.patience_in(total_updates) for watch in self._watches]
        self._outside = [0] * len(self._watches)

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Look at the averaged metrics of one update and return warnings; a metric that is absent is not judged."""
        warnings = []
        for index, watch in enumerate(self._watches):
            value = metrics.get(watch.metric)
            if value is None or step <= watch.grace:
                continue
            # Written so that NaN is outside.
            inside = (watch.low is None or value > watch.low) and (watch.high is None or value < watch.high)
            self._outside[index] = 0 if inside else self._outside[index] + 1
            outside = self._outside[index]
            if outside == self._patience[index]:
                warnings.append(f"update {step}: {_tell(watch, value, outside)}")
            if watch.stops and outside >= 2 * watch.patience:
                raise TrainingError(f"stopped at update {step}: {_tell(watch, value, outside)}")
        return warnings

    def state(self) -> list[int]:
        """Return the counts."""
        return list(self._outside)

    def load_state(self, state: Sequence[int]) -> None:
        """Continue with these counts."""
        if len(state) == len(self._outside):
            self._outside = list(state)


def _tell(watch: Watch, value: float, outside: int) -> str:
    low = "" if watch.low is None else f" above {watch.low:g}"
    high = "" if watch.high is None else f" below {watch.high:g}"
    bounds = f"{low} and{high}" if low and high else low or high
    meaning = f"; {watch.meaning}" if watch.meaning else ""
    advice = f"; {watch.advice}" if watch.advice else ""
    return (
        f"`{watch.metric}` must be{bounds}, but has been outside for {outside} updates in a row ({value:g} now)"
        f"{meaning}{advice}"
    )
