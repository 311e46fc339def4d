"""Decode one recording of a package to 16 kHz mono, and write it as FLAC.

`data.audio` reads what users bring; here are the two telephone codecs that come as bare frames, which only packages have.
Nothing of torch or lhotse is imported: this runs on many small files at once, in threads (all three libraries release
Python's lock while they work).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from isogloss.core.errors import MissingExtraError

SAMPLE_RATE = 16_000
_MIN_SECONDS = 0.05
_SILENT_PEAK = 1e-3


class UnusableRecordingError(Exception):
    """A recording that cannot be used; the text is the reason."""


def decode(path: Path) -> tuple[NDArray[np.int16], int]:
    """Return (16-bit mono samples at 16 kHz, original rate in Hz); `UnusableRecordingError` says what is wrong.

    Resampling may overshoot full scale: such a recording is scaled down as a whole rather than clipped.
    """
    try:
        audio_T, rate = _READERS.get(path.suffix, _read_container)(path)
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise UnusableRecordingError(f"unreadable: {type(error).__name__}") from None
    if audio_T.ndim == 2:
        audio_T = audio_T.mean(axis=1)
    if len(audio_T) < _MIN_SECONDS * rate:
        raise UnusableRecordingError("empty or shorter than 0.05 s")
    if not np.isfinite(audio_T).all():
        raise UnusableRecordingError("not finite")
    if rate != SAMPLE_RATE:
        audio_T = soxr.resample(audio_T, rate, SAMPLE_RATE)
    peak = float(np.abs(audio_T).max())
    if peak < _SILENT_PEAK:
        raise UnusableRecordingError("silent")
    scale = 32767.0 / max(peak, 1.0)
    return np.round(audio_T * scale).astype(np.int16), rate


def write_flac(samples_T: NDArray[np.int16], path: Path) -> None:
    """Write 16-bit mono samples at 16 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples_T, SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def digest(samples_T: NDArray[np.int16]) -> str:
    """Return the SHA-256 of the samples (little-endian 16 bit)."""
    return hashlib.sha256(samples_T.astype("<i2").tobytes()).hexdigest()


def _read_container(path: Path) -> tuple[NDArray[np.float32], int]:
    audio_T, rate = soundfile.read(path, dtype="float32")
    return audio_T, int(rate)


def _read_gsm(path: Path) -> tuple[NDArray[np.float32], int]:
    audio_T, rate = soundfile.read(path, samplerate=8_000, channels=1, format="RAW", subtype="GSM610", dtype="float32")
    return audio_T, int(rate)


def _read_g722(path: Path) -> tuple[NDArray[np.float32], int]:
    try:
        import av
    except ImportError:
        raise MissingExtraError("av", "debian", "Decoding G.722") from None
    with av.open(str(path), format="g722") as container:
        parts = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    if not parts:
        return np.zeros(0, dtype=np.float32), 16_000
    return np.concatenate(parts).astype(np.float32) / 32768.0, 16_000


_READERS = {".gsm": _read_gsm, ".g722": _read_g722}
