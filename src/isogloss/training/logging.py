"""What a run says: JSON lines in `log.jsonl`, a progress bar for people, warnings in both."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from isogloss.core.files import replacing

PLAIN_LINE_SECONDS = 30.0  # how often a run without a terminal prints a line


class RunLog:
    """Writes `log.jsonl`: one JSON object a line, each with the `event` that it tells and the `step` (update) of it.

    update      `loss` (per target, mean since the last line), `lr`, `grad_norm` (of this update, before clipping), `metrics`
                (means), `audio_seconds` (of the run so far), `audio_rate` (seconds of audio a second), `wait` (share of the
                time spent waiting for data), `elapsed` (seconds of training)
    probe       `results`
    skip        `reason`, `utterances`
    others      `message`: warning, start, resume, checkpoint

    Only the main process writes; on others every call does nothing.
    """

    def __init__(self, run_dir: Path, total: int, *, is_main: bool) -> None:
        self.path = run_dir / "log.jsonl"
        self._total, self._is_main = total, is_main
        self._console = Console(stderr=True)
        self._last_line = 0.0
        self._bar: Progress | None = None

    def start(self, step: int) -> None:
        """Forget the lines after `step` (they will be trained again) and show the progress bar."""
        if not self._is_main:
            return
        keep = []
        if self.path.exists():
            for line in self.path.read_bytes().splitlines(keepends=True):
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # the last line of a killed process
                if row["step"] <= step:
                    keep.append(line)
        with replacing(self.path) as file:
            file.writelines(keep)
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self._total, completed=step)

    def write(self, event: str, step: int, **fields: Any) -> None:
        """Append one line."""
        if not self._is_main:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain({"event": event, "step": step, **fields}), ensure_ascii=False) + "\n")

    def say(self, event: str, step: int, message: str) -> None:
        """Append a line and tell people."""
        self.write(event, step, message=message)
        if self._is_main:
            self._console.print(f"{event}: {message}", markup=False, highlight=False, soft_wrap=True)

    def progress(self, step: int, text: str) -> None:
        """Move the progress bar; without a terminal print a line now and then."""
        if not self._is_main:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif time.monotonic() - self._last_line > PLAIN_LINE_SECONDS or step == self._total:
            self._last_line = time.monotonic()
            self._console.print(f"update {step}/{self._total}  {text}", markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Take the progress bar away."""
        if self._bar is not None:
            self._bar.stop()


def _plain(value: Any) -> Any:
    """Return the value with null for what is not a number: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
