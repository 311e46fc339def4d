"""A run that stands still ends, and says which rank stood still, where, and at which update."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

EXIT_CODE = 76


class StallWatch:
    """A thread that ends the process when no `beat` came for `timeout_seconds`.

    Every rank leaves a heartbeat in `folder`, so that the ranks that wait can name the one they wait for.
    """

    def __init__(self, folder: Path, rank: int, world_size: int, timeout_seconds: float) -> None:
        self._folder, self._rank, self._world_size = folder, rank, world_size
        self._timeout = timeout_seconds
        self._period = min(10.0, timeout_seconds / 10)
        self._last, self._step, self._phase = time.monotonic(), 0, "start"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="stall-watch")

    def beat(self, step: int, phase: str, allowed_seconds: float = 0.0) -> None:
        """Say that the process is alive, at which update, and what it does next (which may be allowed to take longer)."""
        self._last, self._step, self._phase = time.monotonic() + allowed_seconds, step, phase

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._last = time.monotonic()
        if self._world_size > 1:
            self._leave_heartbeat(0.0)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._file(self._rank).unlink(missing_ok=True)

    def _watch(self) -> None:
        woke = time.monotonic()
        while not self._done.wait(self._period):
            before, woke = woke, time.monotonic()
            overslept = woke - before - self._period
            if overslept > 2 * self._period:
                # This thread stood still as well: the process was suspended (a scheduler's, a laptop's sleep), and goes on.
                self._last += overslept
            silent = woke - self._last
            if self._world_size > 1:
                self._leave_heartbeat(silent)
            if silent > self._timeout:
                self._end(silent)

    def _end(self, silent: float) -> None:
        sys.stderr.write(
            f"isogloss: rank {self._rank} stood still for {silent:.0f} s in `{self._phase}` at update {self._step}"
            f"{self._others()}; stacks follow; resume with the same command\n"
        )
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_CODE)

    def _leave_heartbeat(self, silent: float) -> None:
        temporary = self._file(self._rank).with_suffix(".tmp")
        try:
            temporary.write_text(
                json.dumps({"step": self._step, "phase": self._phase, "silent": silent, "time": time.time()})
            )
            temporary.replace(self._file(self._rank))
        except OSError:
            pass  # a full disk must not end a run that can go on

    def _others(self) -> str:
        told = []
        for rank in range(self._world_size):
            if rank == self._rank:
                continue
            try:
                beat = json.loads(self._file(rank).read_text())
                unheard = time.time() - beat["time"]
            except (OSError, ValueError, KeyError, TypeError):
                told.append(f"rank {rank} left no heartbeat")
                continue
            if unheard > 3 * self._period + 1:
                told.append(f"rank {rank} is frozen or dead, last heard {unheard:.0f} s ago at update {beat['step']}")
            else:
                told.append(f"rank {rank} is in `{beat['phase']}` at update {beat['step']}")
        return "".join(f"; {text}" for text in told)

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank_{rank}.json"
