"""Small recordings and corpora for the tests of the data layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import MonoCut
from numpy.typing import NDArray

from isogloss.data._rows import Row, cuts_of_rows

FORMATS = {
    "wav": {},
    "flac": {},
    "mp3": {"format": "MP3"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}


def speechlike(seconds: float = 0.5, seed: int = 0, rate: int = 16_000) -> NDArray[np.float32]:
    """Return a tone with a moving pitch: smooth enough for lossy coders, different for each seed."""
    t = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * (120 + 17 * seed) * t + 3 * np.sin(2 * np.pi * 3 * t))
    return (0.3 * tone * (1 + 0.3 * np.sin(2 * np.pi * 5 * t))).astype(np.float32)


def write(path: Path, samples: NDArray[Any], rate: int = 16_000, **options: Any) -> Path:
    """Write a file in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **{**FORMATS.get(path.suffix[1:], {}), **options})
    return path


def make_cut(
    name: str, *, seconds: float = 1.0, recording: str | None = None, start: float = 0.0, **fields: Any
) -> MonoCut:
    """Return a cut without any file behind it; `fields` are of the supervision, or custom."""
    from lhotse import AudioSource, Recording, SupervisionSegment

    known = {key: fields.pop(key) for key in ("text", "language", "speaker", "gender") if key in fields}
    recording = recording or name
    total = start + seconds
    return MonoCut(
        id=name,
        start=start,
        duration=seconds,
        channel=0,
        recording=Recording(
            recording, [AudioSource("file", [0], f"/nowhere/{recording}.wav")], 16_000, round(total * 16_000), total
        ),
        supervisions=[SupervisionSegment(name, recording, 0.0, seconds, **known)],
        custom=fields,
    )


def cut_of(path: Path, **fields: Any) -> MonoCut:
    """Return the cut of a file."""
    [cut] = cuts_of_rows(
        [Row(path=path, place=str(path), stem=path.stem, id=path.stem, **fields)], source="test", language=None
    )
    assert isinstance(cut, MonoCut), cut
    return cut
