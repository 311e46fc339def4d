"""No recording of a test corpus may be heard before the test: compared by recording, by file, and by content.

Unlabelled test audio in adaptation flatters every score that follows, and nothing in a table shows it; so does a threshold that was
set on recordings of the test.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lhotse import MonoCut

from isogloss.core.errors import DataError
from isogloss.data.audio import AudioError, sha256_of_recording, source_of_cut

_SHOWN = 3
_SAME_SECONDS = 0.01  # recordings of one content have one duration; codecs that pad do not keep the content anyway


def refuse_test_audio(training: Iterable[MonoCut], test: Iterable[MonoCut], where: str) -> None:
    """Raise a `DataError` with examples where a training cut is of a recording of the test corpus `where` (`shared_recordings`)."""
    shared = shared_recordings(training, test)
    if shared:
        raise DataError(
            f"audio of the test corpus {where} must not be adapted on, but the training corpora hold recordings of it: {shared}; leave "
            "them out, or divide the corpus once with `isogloss corpus split`"
        )


def shared_recordings(cuts: Iterable[MonoCut], others: Iterable[MonoCut]) -> str:
    """Return how many recordings of `cuts` are among those of `others`, in words with examples; nothing where none is.

    The same recording is one with the same id, in the same file, or with the same samples (`sha256_of_recording`, computed for
    recordings of equal length that do not bear it).
    """
    others = list(others)
    ids = {cut.recording.id for cut in others}
    files = {path for cut in others if (path := _file(cut)) is not None}
    by_length: dict[int, list[MonoCut]] = defaultdict(list)
    for cut in _one_per_recording(others):
        by_length[_length(cut)].append(cut)
    hashes: dict[str, str] = {}
    found: dict[str, list[str]] = {"recording id": [], "file": [], "content": []}
    for cut in _one_per_recording(cuts):
        if cut.recording.id in ids:
            found["recording id"].append(cut.recording.id)
        elif _file(cut) in files:
            found["file"].append(str(_file(cut)))
        else:
            near = [other for step in (-1, 0, 1) for other in by_length.get(_length(cut) + step, ())]
            if any(_same_content(cut, other, hashes) for other in near):
                found["content"].append(cut.recording.id)
    return "; ".join(
        f"{len(names)} by {kind} ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"
        for kind, names in found.items()
        if names
    )


def _same_content(cut: MonoCut, other: MonoCut, hashes: dict[str, str]) -> bool:
    return _hash(cut, hashes) == _hash(other, hashes)


def _hash(cut: MonoCut, hashes: dict[str, str]) -> str:
    """Return the hash of a cut's whole recording; `custom["sha256"]` is that where the cut is all of it."""
    source, channel = source_of_cut(cut)
    key = f"{cut.recording.id} {source if not isinstance(source, bytes) else id(source)}"
    if key not in hashes:
        known: Any = (cut.custom or {}).get("sha256")
        is_whole = cut.start == 0 and abs(cut.duration - cut.recording.duration) < 1e-3 and channel is None
        hashes[key] = str(known) if known and is_whole else sha256_of_recording(source)
    return hashes[key]


def _one_per_recording(cuts: Iterable[MonoCut]) -> list[MonoCut]:
    """Return a cut of each recording, one with all of it where there is one."""
    chosen: dict[tuple[str, str], MonoCut] = {}
    for cut in cuts:
        key = (cut.recording.id, str(_file(cut)))
        if key not in chosen or cut.duration > chosen[key].duration:
            chosen[key] = cut
    return list(chosen.values())


def _file(cut: MonoCut) -> Path | None:
    try:
        source, _ = source_of_cut(cut)
    except AudioError:
        return None
    return None if isinstance(source, bytes) else Path(source).resolve()


def _length(cut: MonoCut) -> int:
    return round(float(cut.recording.duration) / _SAME_SECONDS)
