"""Decode recordings in a process of their own, with little memory and a time limit: `python -m isogloss.data._examine`.

A damaged or hostile file can make a decoder ask for gigabytes, loop or crash. Here that costs one helper process, and the
audit goes on. Requests and answers are lines of JSON; nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import mmap
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from isogloss.data._containers import FlacChecksum, check_container
from isogloss.data.audio import AudioError, Source, header_of, name_of, open_audio, pcm16, raw_blocks

MEMORY_BYTES = 4 << 30
TIMEOUT_SECONDS = 20.0
_TELL_EVERY = 32  # blocks


@dataclass(frozen=True)
class Window:
    """A part of a recording: first sample and number of samples at its rate, and the channel (None: the mean of all)."""

    first: int
    length: int
    channel: int | None


@dataclass
class Statistics:
    """What the samples of a window are like."""

    sha256: str = ""
    num_samples: int = 0
    num_non_finite: int = 0
    peak: float = 0.0
    mean: float = 0.0
    deviation: float = 0.0
    clipped: float = 0.0


@dataclass
class Examination:
    """What was found in a recording: the header, the windows in order, warnings; or the verdict and the reason against it."""

    sample_rate: int = 0
    num_channels: int = 0
    num_samples: int = 0
    verdict: str = ""
    reason: str = ""
    warnings: list[str] = field(default_factory=list)
    windows: list[Statistics] = field(default_factory=list)


def examine(source: Source, windows: Sequence[Window], tell: Any = None) -> Examination:
    """Decode a recording once, from its first sample to its last, in this process."""
    name = name_of(source)
    try:
        return _examine(source, windows, name, tell or (lambda: None))
    except AudioError as error:
        return Examination(verdict=error.verdict, reason=error.reason)
    except MemoryError:
        return Examination(
            verdict="damaged", reason="asks for more memory than any recording needs; the file is probably damaged"
        )


class Examiner:
    """A helper process that examines one recording after the other; it is started anew when it dies or takes too long."""

    def __init__(self, memory_bytes: int = MEMORY_BYTES, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._memory, self._timeout = memory_bytes, timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def examine(self, source: Source, windows: Sequence[Window]) -> Examination:
        """Return what is found; a helper that dies or is silent for the time limit is a verdict about the recording."""
        process = self._start()
        content = source if isinstance(source, bytes) else None
        request = {
            "path": None if content is not None else os.fspath(source),
            "bytes": len(content) if content is not None else 0,
            "windows": [[w.first, w.length, w.channel] for w in windows],
        }
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n" + (content or b""))
            process.stdin.flush()
            line = self._answer(process)
        except (BrokenPipeError, EOFError):
            status = self.close()
            return Examination(
                verdict="damaged", reason=f"the decoder died of it (status {status}); the file is probably damaged"
            )
        except TimeoutError:
            self.close()
            return Examination(verdict="timeout", reason=f"the decoder did not get on for {self._timeout:g} s")
        answer = json.loads(line)
        answer["windows"] = [Statistics(**window) for window in answer["windows"]]
        return Examination(**answer)

    def close(self) -> int:
        """End the helper process and return its status."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        return process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            # -P: a corpus folder that is the working directory must not lend its modules
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(self._memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        return self._process

    def _answer(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None
        buffer = b""
        deadline = time.monotonic() + self._timeout
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                got = os.read(process.stdout.fileno(), 1 << 16)
                if not got:
                    raise EOFError
                deadline = time.monotonic() + self._timeout
                buffer += got
                *lines, buffer = buffer.split(b"\n")
                for line in lines:
                    if line != b".":  # a point says: still decoding
                        return line


class _Gatherer:
    """Statistics of one window, block by block."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self._digest = hashlib.sha256()
        self._found = Statistics()
        self._sum = self._squares = 0.0
        self._num_clipped = 0

    def add(self, block_TC: NDArray[np.float32], place: int) -> None:
        """Take what belongs to the window of a block that begins at sample `place`."""
        begin = max(self.window.first - place, 0)
        end = min(self.window.first + self.window.length - place, len(block_TC))
        if end <= begin:
            return
        part_TC = block_TC[begin:end]
        channel = self.window.channel
        # a float near the largest one overflows in the mean and is found as infinite
        with np.errstate(all="ignore"):
            part = part_TC.mean(axis=1, dtype=np.float32) if channel is None else part_TC[:, channel]
            found, finite = self._found, np.isfinite(part)
            found.num_samples += len(part)
            found.num_non_finite += int(len(part) - finite.sum())
            values = np.where(finite, part, 0).astype(np.float64)
            found.peak = max(found.peak, float(np.abs(values).max()))
            self._sum += float(values.sum())
            self._squares += float((values * values).sum())
            self._num_clipped += int((np.abs(values) >= 0.9999).sum())
            self._digest.update(pcm16(np.ascontiguousarray(part)))

    def result(self) -> Statistics:
        found = self._found
        if found.num_samples:
            found.mean = self._sum / found.num_samples
            found.deviation = math.sqrt(max(0.0, self._squares / found.num_samples - found.mean**2))
            found.clipped = self._num_clipped / found.num_samples
        found.sha256 = self._digest.hexdigest()
        return found


def _examine(source: Source, windows: Sequence[Window], name: str, tell: Any) -> Examination:
    with open_audio(source) as file:
        header = header_of(file, name)
        found = Examination(header.sample_rate, header.num_channels, header.num_samples or 0)
        found.warnings = _check_container(source, header.format, name)
        checksum = FlacChecksum.of(_head(source)) if header.format == "FLAC" else None
        for window in windows:
            if window.channel is not None and window.channel >= header.num_channels:
                raise AudioError(name, "channels", f"has no channel {window.channel}, only {header.num_channels}")
        gatherers = [_Gatherer(window) for window in windows]
        waiting = sorted(gatherers, key=lambda g: g.window.first, reverse=True)
        active: list[_Gatherer] = []
        place = 0
        powers = np.zeros(2)
        for number, block_TC in enumerate(raw_blocks(file, header, name), 1):
            while waiting and waiting[-1].window.first < place + len(block_TC):
                active.append(waiting.pop())
            for gatherer in active:
                gatherer.add(block_TC, place)
            if checksum is not None:
                checksum.update(block_TC)
            if header.num_channels > 1:
                powers += _powers(block_TC)
            place += len(block_TC)
            active = [g for g in active if g.window.first + g.window.length > place]
            if number % _TELL_EVERY == 0:
                tell()
    if header.num_samples is not None and place < header.num_samples:
        raise AudioError(
            name,
            "truncated",
            f"its header promises {header.num_samples} samples but only {place} are there; the file was probably cut short",
        )
    if checksum is not None and not checksum.is_kept():
        raise AudioError(name, "damaged", "its samples are not those that were encoded (the MD5 in the header differs)")
    if powers[0] < 0.01 * powers[1]:
        found.warnings.append("its channels cancel each other: their mean is 20 dB below them")
    found.num_samples = place
    found.windows = [gatherer.result() for gatherer in gatherers]
    return found


def _powers(block_TC: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the power of the mean of the channels, and the mean of their powers."""
    with np.errstate(all="ignore"):
        values = np.nan_to_num(block_TC.astype(np.float64), posinf=0.0, neginf=0.0)
        return np.array([(values.mean(axis=1) ** 2).sum(), (values**2).mean(axis=1).sum()])


def _check_container(source: Source, audio_format: str, name: str) -> list[str]:
    def fault(verdict: str, message: str) -> AudioError:
        return AudioError(name, verdict, message)

    if isinstance(source, bytes):
        return check_container(source, audio_format, fault)
    with Path(source).open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return check_container(data, audio_format, fault)


def _head(source: Source) -> bytes:
    if isinstance(source, bytes):
        return source[: 1 << 17]
    with Path(source).open("rb") as stream:
        return stream.read(1 << 17)


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    def tell() -> None:
        answers.write(b".\n")
        answers.flush()

    while line := requests.readline():
        request = json.loads(line)
        source: Source = request["path"] if request["path"] is not None else requests.read(request["bytes"])
        try:
            found = examine(source, [Window(*window) for window in request["windows"]], tell)
        except OSError as error:
            found = Examination(verdict="unreadable", reason=f"cannot be read: {error.strerror or error}")
        answers.write(json.dumps(asdict(found)).encode() + b"\n")
        answers.flush()


def _main() -> None:
    import resource

    limit = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # what a decoder prints must not mix with the answers
    answers = io.FileIO(os.dup(1), "wb")
    os.dup2(2, 1)
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main()
