"""Checks of the container that the decoder does not make: checksums, counts and ends of FLAC, Ogg and MP3 files.

libsndfile decodes a damaged file as far as it can and says nothing. FLAC keeps an MD5 of the samples (RFC 9639 §8.2), Ogg a
CRC of each page (RFC 3533 §6), MP3 the length of each frame and, in a Xing header, their number.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Fault = Callable[[str, str], Exception]
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_KBITS_V1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_V2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = (44_100, 48_000, 32_000)
_MAX_LEADING_JUNK = 1 << 16


def check_container(data: Any, audio_format: str, fault: Fault) -> list[str]:
    """Return warnings about a file (bytes or a memory map); damage raises `fault(verdict, message)`."""
    if audio_format == "OGG":
        return _check_ogg(data, fault)
    if audio_format == "MP3":
        return _check_mp3(data, fault)
    return []


@dataclass
class FlacChecksum:
    """The MD5 of a FLAC file's samples, as its header promises it and as they come."""

    promised: bytes
    bits: int

    def __post_init__(self) -> None:
        self._digest = hashlib.md5(usedforsecurity=False)

    @classmethod
    def of(cls, head: bytes) -> FlacChecksum | None:
        """Read the promise from the first bytes of a file; None where the encoder left it out."""
        start = head.find(b"fLaC", 0, 1 << 16)
        info = head[start + 8 : start + 42]
        if start < 0 or len(info) < 34 or not any(info[18:]):
            return None
        bits = ((info[12] & 1) << 4 | info[13] >> 4) + 1
        return cls(info[18:34], bits)

    def update(self, block_TC: NDArray[np.float32]) -> None:
        """Take the next decoded samples (float32 holds up to 24 bits exactly)."""
        values = np.rint(block_TC.astype(np.float64) * (1 << (self.bits - 1))).astype("<i4")
        width = (self.bits + 7) // 8
        self._digest.update(values.reshape(-1, 1).view(np.uint8)[:, :width].tobytes())

    def is_kept(self) -> bool:
        """True if the samples are those that were encoded (more than 24 bits cannot be told)."""
        return self.bits > 24 or self._digest.digest() == self.promised


def ogg_crc(page: bytes) -> int:
    """Return the CRC of an Ogg page: polynomial 0x04c11db7, most significant bit first, nothing inverted."""
    # zlib's CRC is the mirror image of it, with the register inverted before and after
    mirrored = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)


def _check_ogg(data: Any, fault: Fault) -> list[str]:
    size, place = len(data), 0
    pages: dict[int, int] = {}
    is_open: dict[int, bool] = {}
    while place < size:
        head = data[place : place + 27]
        if head[:4] != b"OggS"[: len(head)]:
            raise fault("damaged", f"has no Ogg page at byte {place}; the file is damaged or has a foreign end")
        if len(head) < 27 or place + 27 + head[26] > size:
            raise fault("truncated", "ends within a page; the file was cut short")
        table = data[place + 27 : place + 27 + head[26]]
        end = place + 27 + head[26] + sum(table)
        if end > size:
            raise fault("truncated", f"ends {end - size} bytes before its last page does; the file was cut short")
        flags, serial, number, crc = head[5], *struct.unpack("<III", head[14:26])
        page = bytearray(data[place:end])
        page[22:26] = b"\0\0\0\0"
        if ogg_crc(bytes(page)) != crc:
            raise fault("damaged", f"the checksum of the Ogg page at byte {place} is wrong")
        if serial in pages and number != (pages[serial] + 1) & 0xFFFFFFFF:
            raise fault(
                "damaged", f"the Ogg page at byte {place} is number {number} and follows number {pages[serial]}"
            )
        pages[serial] = number
        is_open[serial] = not flags & 4
        place = end
    return (
        ["the Ogg stream has no last page: the recording was probably stopped or cut short"]
        if any(is_open.values())
        else []
    )


def _check_mp3(data: Any, fault: Fault) -> list[str]:
    size = len(data)
    place = _skip_tags(data, 0)
    first = _next_frame(data, place, place + _MAX_LEADING_JUNK)
    if first is None:
        raise fault("unreadable", "has no MP3 frames")
    warnings = [] if first == place else [f"{first - place} bytes before the first MP3 frame are none"]
    promised = _xing_frames(data, first)
    place, count = first, 0
    while place < size:
        length = _frame_length(data, place)
        if length is None:
            after = _skip_tags(data, place)
            if after != place:
                place = after
                continue
            if _is_end(data, place):
                break
            raise fault("damaged", f"the bytes at {place} are no MP3 frame; the file is damaged")
        if length == 0:
            return [*warnings, "the MP3 has a free bit rate: its frames cannot be counted"]
        if place + length > size:
            if promised is not None:
                break
            return [*warnings, "the last MP3 frame is not whole: the recording was probably stopped or cut short"]
        count += 1
        place += length
    # the Xing header is itself a frame, which some encoders count
    if promised is not None and count < promised:
        raise fault("truncated", f"its header promises {promised} frames but {count} are there; the file was cut short")
    return warnings


def _frame_length(data: Any, place: int) -> int | None:
    """Return the bytes of the MPEG layer III frame that begins here, 0 for a free bit rate, None where none begins."""
    head = data[place : place + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    kbits, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer != 1 or kbits == 15 or rate == 3:
        return None
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    table, factor = (_KBITS_V1, 144_000) if version == 3 else (_KBITS_V2, 72_000)
    return 0 if kbits == 0 else factor * table[kbits] // hertz + padding


def _next_frame(data: Any, place: int, end: int) -> int | None:
    """Return where the first frame begins that another frame (or the end) follows."""
    while place < min(end, len(data)):
        place = data.find(b"\xff", place, end)
        if place < 0:
            return None
        length = _frame_length(data, place)
        if length is not None and (
            length == 0 or place + length >= len(data) or _frame_length(data, place + length) is not None
        ):
            return place
        place += 1
    return None


def _xing_frames(data: Any, place: int) -> int | None:
    length = _frame_length(data, place) or 0
    frame = data[place : place + min(length, 200)]
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at < 0 or len(frame) < at + 12 or not frame[at + 7] & 1:
        return None
    return int.from_bytes(frame[at + 8 : at + 12], "big")


def _skip_tags(data: Any, place: int) -> int:
    """Return the byte behind an ID3v2 tag that begins here."""
    while data[place : place + 3] == b"ID3" and len(data) >= place + 10:
        size = 0
        for byte in data[place + 6 : place + 10]:
            size = size << 7 | byte & 0x7F
        place += 10 + size + (10 if data[place + 5] & 0x10 else 0)
    return place


def _is_end(data: Any, place: int) -> bool:
    """True where nothing but tags or zeros follows the last frame."""
    rest = bytes(data[place : place + (1 << 16)])
    return rest[:3] == b"TAG" or rest[:8] in (b"APETAGEX", b"LYRICSBE") or not any(rest)
