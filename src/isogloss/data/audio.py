"""The only place that decodes audio: one decoder (libsndfile), regular files only, nothing believed that was not checked.

wav, flac, mp3, ogg and opus (and aiff, au, caf, sphere) of any rate and channel count become float32 mono at the wanted
rate. There is no second decoder to fall back on: two decoders that disagree about a damaged file would make the corpus
depend on the machine.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from isogloss.core.errors import DataError
from isogloss.data._paths import PathLike, printable
from isogloss.data._riff import check_riff

if TYPE_CHECKING:
    from lhotse.cut import Cut

SUFFIXES = frozenset(
    (".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".caf", ".w64", ".rf64", ".sph")
)
MIN_RATE, MAX_RATE = 2_000, 768_000  # Hz
MAX_CHANNELS = 64
MAX_FILE_BYTES = 1 << 36
MAX_READ_SAMPLES = 1 << 28  # of one read, at the file's rate: 1 GiB of float32; 4.6 h at 16 kHz
MAX_AMPLITUDE = 1e5  # full scale is 1; samples stored as floats in the range of int16 still pass
_BLOCK_SAMPLES = 1 << 18
# An MP3 frame may use bits of many frames before it (the bit reservoir: 511 bytes, at the lowest rates 32 frames), which a
# decoder that was put in the middle does not have. Opus settles within 80 ms. So reading begins earlier, and that is dropped.
_LEAD_SAMPLES = {"MP3": 40 * 1152, "OGG": 24_000}
# A manifest may give a duration in hundredths of a second, or one that another decoder measured
_TOLERANCE_SECONDS = 0.025
_TOO_LONG = "is too long to be read in one piece; cut it with `isogloss corpus segment`"
_UNKNOWN_LENGTH = 1 << 48  # libsndfile gives a huge number where a stream does not tell its length

Source = PathLike | bytes


class AudioError(DataError):
    """One recording cannot be used; `verdict` is the short reason that reports count by."""

    def __init__(self, name: str, verdict: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.verdict = verdict
        self.reason = message


@dataclass(frozen=True)
class AudioHeader:
    """What a file says about itself: rate in Hz, channels, samples per channel (None where it does not say), format, coding."""

    sample_rate: int
    num_channels: int
    num_samples: int | None
    format: str
    subtype: str

    @property
    def duration(self) -> float:
        """Length in seconds; 0 where the file does not say."""
        return (self.num_samples or 0) / self.sample_rate


def inspect_audio(source: Source) -> AudioHeader:
    """Return the header of a file (or of the bytes of one) without decoding it.

    A missing, irregular, empty, cut-short or absurd file is an `AudioError`.
    """
    with open_audio(source) as file:
        return header_of(file, name_of(source))


def read_audio(
    source: Source | Cut, *, sample_rate: int = 16_000, start: float = 0.0, duration: float | None = None
) -> NDArray[np.float32]:
    """Return the samples of a file, of the bytes of one, or of a cut, as float32 mono at `sample_rate` Hz.

    `start` and `duration` are in seconds (of the cut, if it is one); only that window is decoded. Channels are averaged,
    except that a cut of a recording with several listed channels has its own. The result has
    round(window in samples of the file × sample_rate / rate of the file) samples. A window that ends up to 25 ms behind the
    end of the file is filled with zeros. Raises `AudioError`.
    """
    if isinstance(source, (str, bytes, os.PathLike)):
        return _read_window(source, sample_rate, start, duration, channel=None)
    place, channel = source_of_cut(source)
    if start < 0 or (duration is not None and start + duration > source.duration + _TOLERANCE_SECONDS):
        raise AudioError(
            source.id, "window", f"the window {start:g} s + {duration} s is not within its {source.duration:g} s"
        )
    length = source.duration - start if duration is None else duration
    return _read_window(place, sample_rate, source.start + start, length, channel, source.id)


def read_cut(cut: Cut, *, sample_rate: int = 16_000) -> NDArray[np.float32]:
    """Return the samples of a cut as float32 mono."""
    return read_audio(cut, sample_rate=sample_rate)


def read_blocks(
    source: Source, *, start: int = 0, num_samples: int | None = None, channel: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """Yield mono blocks at the file's own rate, so that hours of audio need little memory.

    `start` and `num_samples` count samples per channel; the last block ends where the file does. A file that holds fewer
    samples than its header promises is an `AudioError`.
    """
    name = name_of(source)
    with open_audio(source) as file:
        yield from _blocks(file, header_of(file, name), name, start, num_samples, channel)


def sha256_of_samples(samples: NDArray[np.float32]) -> str:
    """Return the SHA-256 of mono samples in 16 bits, little-endian: the content, whatever container or coding kept it.

    `cut.custom["sha256"]` is this, of the samples at the rate of the file.
    """
    return hashlib.sha256(pcm16(samples)).hexdigest()


def sha256_of_recording(source: Source) -> str:
    """Return the SHA-256 of a whole file (`sha256_of_samples`), decoded block by block."""
    digest = hashlib.sha256()
    for block in read_blocks(source):
        digest.update(pcm16(block))
    return digest.hexdigest()


def source_of_cut(cut: Cut) -> tuple[Source, int | None]:
    """Return where the audio of a cut lies (a path or bytes in memory) and which channel it is (None: the mean of all)."""
    recording = getattr(cut, "recording", None)
    if recording is None:
        raise AudioError(
            cut.id, "cut", f"must be a cut with one recording, but is a {type(cut).__name__}; save mixed cuts first"
        )
    if recording.transforms:
        raise AudioError(cut.id, "cut", "has unapplied transforms; save the audio of such cuts first")
    channels = recording.channel_ids
    wanted = cut.channel if isinstance(cut.channel, int) else None
    for item in recording.sources:
        if wanted is not None and wanted not in item.channels:
            continue
        if item.type not in ("file", "memory"):
            raise AudioError(cut.id, "source", f"its source must be a file, but is a {item.type!r}; it is not opened")
        channel = item.channels.index(wanted) if wanted is not None and len(channels) > 1 else None
        return item.source, channel
    raise AudioError(cut.id, "channels", f"has no channel {wanted}, only {channels}")


class _Sequential(soundfile.SoundFile):
    """A file that soundfile does not reposition after every read.

    It seeks to where it already is, which makes mpg123 forget the bit reservoir and libsndfile decode the last Opus packet
    anew: read block by block, MP3 and Opus then differ from the same file read at once.
    """

    def seekable(self) -> bool:
        """Return False: what asks is the read that would seek."""
        return False


@contextmanager
def open_audio(source: Source) -> Iterator[soundfile.SoundFile]:
    """Open a regular file, or the bytes of one, in libsndfile after the checks that it does not make itself."""
    name = name_of(source)
    with _open_checked(source, name) as target:
        try:
            file = _Sequential(target, closefd=False) if isinstance(target, int) else _Sequential(target)
        except (soundfile.SoundFileError, RuntimeError, ValueError, OverflowError) as error:
            raise AudioError(name, "unreadable", f"is no audio that can be decoded: {_told(error)}") from None
        with file:
            yield file


def header_of(file: soundfile.SoundFile, name: str) -> AudioHeader:
    """Return the header of an open file; an absurd one is an `AudioError`."""
    if not 1 <= file.channels <= MAX_CHANNELS:
        raise AudioError(name, "header", f"must have 1 to {MAX_CHANNELS} channels, but says {file.channels}")
    if not MIN_RATE <= file.samplerate <= MAX_RATE:
        raise AudioError(name, "header", f"must have a rate of {MIN_RATE} to {MAX_RATE} Hz, but says {file.samplerate}")
    frames = int(file.frames)
    return AudioHeader(
        sample_rate=int(file.samplerate),
        num_channels=int(file.channels),
        num_samples=frames if 0 <= frames < _UNKNOWN_LENGTH else None,
        format=str(file.format),
        subtype=str(file.subtype),
    )


def name_of(source: object) -> str:
    """Return how messages call a source: its path in printable form."""
    return printable(source) if isinstance(source, (str, os.PathLike)) else "audio in memory"


def _blocks(
    file: soundfile.SoundFile, header: AudioHeader, name: str, start: int, num_samples: int | None, channel: int | None
) -> Iterator[NDArray[np.float32]]:
    if channel is not None and channel >= header.num_channels:
        raise AudioError(name, "channels", f"has no channel {channel}, only {header.num_channels}")
    promised = None if header.num_samples is None else max(0, header.num_samples - start)
    got = 0
    for block in raw_blocks(file, header, name, start, num_samples):
        got += len(block)
        yield block[:, 0] if header.num_channels == 1 else _to_mono(block, channel)
    if promised is not None and got < (promised if num_samples is None else min(promised, num_samples)):
        raise AudioError(
            name,
            "truncated",
            f"its header promises {header.num_samples} samples but only {start + got} are there; the file was probably cut short",
        )


def raw_blocks(
    file: soundfile.SoundFile, header: AudioHeader, name: str, start: int = 0, num_samples: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """Yield blocks (samples × channels) of an open file that do not depend on where one begins or how large blocks are."""
    wanted = num_samples
    if header.num_samples is not None:
        wanted = max(0, header.num_samples - start if wanted is None else min(wanted, header.num_samples - start))
    lead = min(start, _LEAD_SAMPLES.get(header.format, 0))
    got = -lead
    try:
        if start:
            file.seek(start - lead)
        while wanted is None or got < wanted:
            size = _BLOCK_SAMPLES if wanted is None else min(_BLOCK_SAMPLES, wanted - got)
            block = file.read(size, dtype="float32", always_2d=True)
            if not len(block):
                return
            got += len(block)
            if got > 0:
                yield block[-got:] if got < len(block) else block
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise AudioError(name, "damaged", f"cannot be decoded: {_told(error)}; the file is probably damaged") from None


def _read_window(
    source: Source, sample_rate: int, start: float, duration: float | None, channel: int | None, cut_id: str = ""
) -> NDArray[np.float32]:
    name = f"{cut_id} ({name_of(source)})" if cut_id else name_of(source)
    if not (start >= 0 and np.isfinite(start)) or not (duration is None or (duration > 0 and np.isfinite(duration))):
        raise AudioError(
            name, "window", f"a window must be of positive length from 0 s or later, but is {start} s + {duration} s"
        )
    with open_audio(source) as file:
        header = header_of(file, name)
        rate = header.sample_rate
        first = round(start * rate)
        wanted = None if duration is None else round(duration * rate)
        _check_window(header, name, first, wanted)
        if wanted is None and header.num_samples is not None:
            wanted = header.num_samples - first
        blocks, got = [], 0
        for block in _blocks(file, header, name, first, wanted, channel):
            blocks.append(block)
            got += len(block)
            if got > MAX_READ_SAMPLES:
                raise AudioError(name, "too long", _TOO_LONG)
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not got:
        raise AudioError(name, "empty", "has no samples")
    if wanted is not None and got < wanted:
        samples = np.pad(samples, (0, wanted - got))
    peak = float(np.abs(samples).max())
    if not peak <= MAX_AMPLITUDE:  # also where it is not a number
        raise AudioError(name, "amplitude" if np.isfinite(peak) else "non-finite", f"has samples of magnitude {peak:g}")
    return resample(samples, rate, sample_rate)


def _check_window(header: AudioHeader, name: str, first: int, wanted: int | None) -> None:
    available = header.num_samples
    if (wanted or available or 0) > MAX_READ_SAMPLES + first:
        raise AudioError(name, "too long", _TOO_LONG)
    if available is None or wanted is None:
        return
    if first + wanted > available + _TOLERANCE_SECONDS * header.sample_rate:
        end = (first + wanted) / header.sample_rate
        raise AudioError(
            name,
            "window",
            f"ends at {header.duration:.3f} s, but the cut goes to {end:.3f} s; the file was probably replaced or cut short",
        )


def resample(samples: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Return round(n·wanted/rate) samples at the rate `wanted` (soxr, high quality)."""
    if rate == wanted:
        return samples
    length = max(1, (2 * len(samples) * wanted + rate) // (2 * rate))
    result = np.asarray(soxr.resample(samples, rate, wanted, quality="HQ"), dtype=np.float32)[:length]
    return np.pad(result, (0, length - len(result))) if len(result) < length else result


def pcm16(samples: NDArray[np.float32]) -> bytes:
    """Return samples in 16 bits, little-endian: what `sha256` is of."""
    scaled = np.rint(np.clip(np.nan_to_num(samples), -1.0, 1.0) * 32768.0)
    pcm: NDArray[np.int16] = np.minimum(scaled, 32767).astype("<i2")
    return pcm.tobytes()


def _to_mono(block: NDArray[np.float32], channel: int | None) -> NDArray[np.float32]:
    mono = block.mean(axis=1, dtype=np.float32) if channel is None else block[:, channel]
    return np.ascontiguousarray(mono, dtype=np.float32)


@contextmanager
def _open_checked(source: Source, name: str) -> Iterator[int | io.BytesIO]:
    """Yield a descriptor of a regular file, or a stream over bytes; nothing that a reader could wait on for ever."""

    def fault(verdict: str, message: str) -> AudioError:
        return AudioError(name, verdict, message)

    if isinstance(source, bytes):
        if not source:
            raise fault("empty", "has no bytes")
        memory = io.BytesIO(source)
        check_riff(memory, len(source), fault)
        yield memory
        return
    try:
        if not stat.S_ISREG(Path(source).stat().st_mode):  # opening a device can already do something
            raise fault("not a file", "is not a regular file")
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise fault("missing", "does not exist") from None
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise fault("unreadable", f"cannot be opened: {told}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):  # replaced since
            raise fault("not a file", "is not a regular file")
        if status.st_size == 0:
            raise fault("empty", "has 0 bytes")
        if status.st_size > MAX_FILE_BYTES:
            raise fault("too long", f"has {status.st_size} bytes; at most {MAX_FILE_BYTES} are read")
        with open(descriptor, "rb", closefd=False) as stream:
            check_riff(stream, status.st_size, fault)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _told(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error)
    return str(text).strip().rstrip(".") or type(error).__name__
