"""The lines of the log: means, rates and shares of time since the line before."""

from __future__ import annotations

import time
from typing import Any

from isogloss.training.averages import Sums
from isogloss.training.feed import Feed
from isogloss.training.logging import RunLog
from isogloss.training.run_state import RunState


class Window:
    """Logs what happened since the last line. What it measures in seconds is of this process, so a resume begins afresh."""

    def __init__(self, log: RunLog, feed: Feed) -> None:
        self._log, self._feed = log, feed
        self._begin = time.perf_counter()
        self._audio_seconds = 0.0

    def open(self, now: RunState) -> None:
        """Begin to measure."""
        self._begin, self._audio_seconds, self._feed.waited = time.perf_counter(), now.audio_seconds, 0.0

    def close(self, now: RunState, *, lr: float, grad_norm: float) -> None:
        """Log the window, where an update was used in it, and open the next one."""
        elapsed = max(time.perf_counter() - self._begin, 1e-9)
        if now.window.num_targets:
            now.loss = now.window.mean_loss
            fields: dict[str, Any] = {
                "loss": now.loss,
                "lr": lr,
                "grad_norm": grad_norm,
                "metrics": now.window.means(),
                "audio_seconds": now.audio_seconds,
                "audio_rate": (now.audio_seconds - self._audio_seconds) / elapsed,
                "wait": self._feed.waited / elapsed,
                "elapsed": now.seconds,
            }
            self._log.write("update", now.step, **fields)
            rate, wait = fields["audio_rate"], 100 * fields["wait"]
            self._log.progress(
                now.step, f"loss {now.loss:.4g}  lr {lr:.2g}  {rate:.3g} s audio/s  waiting {wait:.0f} %"
            )
        now.window = Sums()
        self.open(now)
