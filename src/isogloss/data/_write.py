"""Write corpora: a folder of ours, whole or not at all, and fairseq's manifest for those who need it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lhotse import CutSet, MonoCut

from isogloss.core.errors import DataError
from isogloss.core.files import replacing
from isogloss.data._paths import PathLike, printable
from isogloss.data.audio import inspect_audio, source_of_cut


def write_corpus(cuts: CutSet | Iterable[MonoCut], folder: PathLike) -> Path:
    """Write `cuts.jsonl.gz` into a folder, replacing an older one at once and whole, and return its path.

    Recordings below the folder are named relative to it, so the folder can be moved; others keep their absolute path. Audio in
    memory (of a Shar folder) is written to `audio/`. Duplicate ids, and no cuts at all, are a `DataError`.
    """
    folder = Path(folder).absolute()
    _make(folder)
    target = folder / "cuts.jsonl.gz"
    seen: set[str] = set()
    with (
        atomic_file(target) as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as stream,
    ):
        for cut in cuts:
            if cut.id in seen:
                raise DataError(f"{printable(target)}: the id {cut.id!r} comes twice; ids must be unique")
            seen.add(cut.id)
            stream.write(_line(cut, folder))
        if not seen:
            raise DataError(
                f"{printable(target)}: there are no cuts to write; usually because every recording was rejected"
            )
    return target


def write_fairseq(cuts: CutSet | Iterable[MonoCut], path: PathLike) -> Path:
    """Write a fairseq manifest of whole recordings (`.tsv`, with `.wrd` and `.ltr` where every cut has a text).

    fairseq reads whole files of 16 kHz: a cut that is a part of a recording, or in memory, is a `DataError`.
    """
    path = Path(path).absolute()
    _make(path.parent)
    cuts = list(cuts)
    sources = [_whole_file(cut) for cut in cuts]
    if not sources:
        raise DataError(f"{printable(path)}: there are no cuts to write")
    root = os.path.commonpath([os.path.dirname(source) for source in sources])  # noqa: PTH120
    rows = [
        f"{os.path.relpath(source, root)}\t{cut.recording.num_samples}"
        for source, cut in zip(sources, cuts, strict=True)
    ]
    _write_lines(path, [root, *rows])
    texts = [cut.supervisions[0].text if cut.supervisions else None for cut in cuts]
    if all(texts):
        words = [" ".join(str(text).split()) for text in texts]
        _write_lines(path.with_suffix(".wrd"), words)
        _write_lines(path.with_suffix(".ltr"), [" ".join(w.replace(" ", "|")) + " |" for w in words])
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Replace a file as a whole (`core.files`); where that cannot be done it is a `DataError`."""
    try:
        with replacing(path) as stream:
            yield stream
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be written: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with atomic_file(path) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))


def _line(cut: MonoCut, folder: Path) -> bytes:
    data = cut.to_dict()
    for source, original in zip(data["recording"]["sources"], cut.recording.sources, strict=True):
        if original.type == "memory":
            source["type"], source["source"] = "file", _store(original.source, cut.id, folder)
        elif original.type == "file":
            source["source"] = _relative(os.fspath(original.source), folder)
    try:
        return (_dump(data, ensure_ascii=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not UTF-8: escaped, it can be read back
        return (_dump(data, ensure_ascii=True) + "\n").encode("ascii")


def _dump(data: dict[str, Any], *, ensure_ascii: bool) -> str:
    try:
        return json.dumps(data, ensure_ascii=ensure_ascii, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{data.get('id')}: a field cannot be written as JSON: {error}") from None


def _relative(source: str, folder: Path) -> str:
    path = Path(source).absolute()
    return os.fspath(path.relative_to(folder)) if path.is_relative_to(folder) else os.fspath(path)


def _store(content: bytes, cut_id: str, folder: Path) -> str:
    suffix = {"FLAC": ".flac", "OGG": ".ogg", "MP3": ".mp3"}.get(inspect_audio(content).format, ".wav")
    # named by content: an id may be no file name
    name = f"audio/{hashlib.sha256(content).hexdigest()[:32]}{suffix}"
    path = folder / name
    if not path.exists():
        _make(path.parent)
        with atomic_file(path) as stream:
            stream.write(content)
    return name


def _whole_file(cut: MonoCut) -> str:
    source, _ = source_of_cut(cut)
    if isinstance(source, bytes) or cut.start or abs(cut.duration - cut.recording.duration) > 1e-3:
        raise DataError(
            f"{cut.id}: a fairseq manifest names whole files, and this cut is a part of one or lies in a shard"
        )
    name = os.path.abspath(source)  # noqa: PTH100
    if "\t" in name or "\n" in name:
        raise DataError(f"{cut.id}: a fairseq manifest cannot name {printable(name)}")
    return name


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic_file(path) as stream:
        stream.write(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be created: {error.strerror or error}") from None
