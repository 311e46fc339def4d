"""Signals that ask a run to stop: noted by the handler, acted upon by all ranks together at the end of an update."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from isogloss.core.errors import IsoglossError

# SIGUSR1 is the scheduler's warning (`#SBATCH --signal=USR1@120`): exit code 75 asks the batch script to requeue.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}
# A launcher passes on a signal that its whole process group has received already: that is not a second request.
ECHO_SECONDS = 2.0


class PreemptedError(IsoglossError):
    """The run was asked to stop; it has saved and can be resumed."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """The exit code that a signal asked for; 0 while there was none."""

    def __init__(self) -> None:
        self.exit_code = 0
        self._first = 0.0

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: the first sets the flag, a later one leaves at once."""
        code = EXIT_CODES[signal.Signals(number)]
        if self.exit_code and time.monotonic() - self._first > ECHO_SECONDS:
            os._exit(code)
        if not self.exit_code:
            self._first = time.monotonic()
            self.exit_code = code


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Note SIGTERM, SIGINT and SIGUSR1 while the block runs (in the main thread; elsewhere signals stay as they are)."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in EXIT_CODES}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
