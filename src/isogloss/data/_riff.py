"""What a WAV header must agree with: libsndfile reads a file that was cut in half without a word."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO

_STREAMED = 0x7FFFF000  # sizes at or above mean "written to a pipe, length unknown" (sox, ffmpeg)
_MAX_CHUNKS = 64


def check_riff(stream: BinaryIO, size: int, fault: Callable[[str, str], Exception]) -> None:
    """Raise `fault(verdict, message)` where the RIFF, format or data chunk does not agree with the file's size.

    Anything but RIFF/WAVE passes; so do the unknown sizes of a WAV that was written to a pipe. The stream is left at its
    start.
    """
    head = stream.read(12)
    if len(head) == 12 and head[:4] == b"RIFF" and head[8:] == b"WAVE":
        declared = int.from_bytes(head[4:8], "little")
        if size + 1 < declared + 8 and declared < _STREAMED:
            raise fault(
                "truncated",
                f"its header promises {declared + 8} bytes but {size} are there; the file was probably cut short",
            )
        _check_chunks(stream, size, fault)
    stream.seek(0)


def _check_chunks(stream: BinaryIO, size: int, fault: Callable[[str, str], Exception]) -> None:
    place = 12
    for _ in range(_MAX_CHUNKS):
        stream.seek(place)
        head = stream.read(8)
        if len(head) < 8:
            raise fault("truncated", "has no data chunk; the file was probably cut short")
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name == b"fmt ":
            _check_format(stream.read(16), fault)
        if name == b"data":
            if place + 8 + length > size and length < _STREAMED:
                raise fault(
                    "truncated",
                    f"its data chunk promises {length} bytes but {size - place - 8} are there; the file was probably cut short",
                )
            return
        place += 8 + length + length % 2


def _check_format(body: bytes, fault: Callable[[str, str], Exception]) -> None:
    if len(body) < 16:
        raise fault("truncated", "its format chunk is cut short")
    coding, channels, rate, bytes_per_second, block, bits = struct.unpack("<HHIIHH", body)
    if channels == 0 or rate == 0:
        raise fault("header", f"its header says {channels} channels at {rate} Hz")
    if coding in (1, 3) and bits % 8 == 0 and (block != channels * bits // 8 or bytes_per_second != rate * block):
        raise fault(
            "header",
            f"its header contradicts itself: {channels} channels of {bits} bits at {rate} Hz, but {bytes_per_second} bytes per second",
        )
