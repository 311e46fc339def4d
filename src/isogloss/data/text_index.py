"""Texts as lines of files, found by number: what the text loader needs of a billion lines, without the lines.

An index is a folder of flat arrays (file, offset and length in bytes of each line that holds something) that is mapped, not
read. The transcripts of a corpus become a file of the folder first, a line each, so there is one way to read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from isogloss.core.errors import DataError
from isogloss.data.index import CorpusIndex

_FORMAT = 1
_OPEN_FILES = 64  # that are kept mapped; a folder may hold many more
_KINDS = {"file": "<i4", "offset": "<i8", "size": "<i4"}


class TextIndex:
    """Lines by number 0 … N−1; `sizes` are bytes, `manifest` the hash of the names, sizes and times of what was indexed."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            header = json.loads((self.folder / "texts.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder}: not an index of texts ({error}); delete it, it is built again") from None
        if header.get("format") != _FORMAT:
            raise DataError(f"{self.folder}: an index of another version; delete it, it is built again")
        self.manifest: str = header["manifest"]
        self._count: int = header["num_lines"]
        self._files: list[Path] = [self.folder / name for name in header["files"]]
        self._numbers = self._map("file")
        self._offsets = self._map("offset")
        self.sizes: NDArray[np.int32] = self._map("size")
        self._mapped: OrderedDict[int, mmap.mmap] = OrderedDict()  # the file used last at the end

    @classmethod
    def open(cls, paths: Sequence[str], cache: Path | str | None = None) -> Self:
        """Index plain text files (UTF-8, a text a line), folders of `.txt` files, and corpora (their transcripts).

        A second call with unchanged files opens the index that the first one left in the user's cache directory.
        """
        files = [file for path in paths for file in _files_of(Path(path))]
        if not files:
            raise DataError("there is no text: give files of UTF-8 text or a corpus with transcripts in `text.paths`")
        digest = hashlib.blake2b(digest_size=8)
        for file in files:
            digest.update(f"{_FORMAT} {_stamp(file)}\n".encode())
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        place = (Path(home) / "isogloss" / "texts" if cache is None else Path(cache)) / digest.hexdigest()
        if not (place / "texts.json").exists():
            _build(files, place, digest.hexdigest())
        return cls(place)

    def __len__(self) -> int:
        """Return N."""
        return self._count

    def line(self, row: int) -> str:
        """Return one text; bytes that are not UTF-8 are a `DataError` with their place."""
        number, offset = int(self._numbers[row]), int(self._offsets[row])
        data = self._bytes(number)[offset : offset + int(self.sizes[row])]
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise DataError(
                f"{self._files[number]}: the line at byte {offset} is not UTF-8; convert the file first"
            ) from None

    def _bytes(self, number: int) -> mmap.mmap:
        """Return a file, mapped: opening it for every line took most of the time."""
        found = self._mapped.pop(number, None)
        if found is None:
            try:
                with self._files[number].open("rb") as stream:
                    found = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError) as error:
                raise DataError(f"{self._files[number]}: cannot be read any more: {error}; restore it") from None
            if len(self._mapped) >= _OPEN_FILES:
                self._mapped.popitem(last=False)[1].close()
        self._mapped[number] = found
        return found

    def lines(self) -> Iterator[str]:
        """Yield every text, in order."""
        return (self.line(row) for row in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker maps the files again
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def _map(self, name: str) -> NDArray[Any]:
        path, kind = self.folder / f"{name}.bin", np.dtype(_KINDS[name])
        if not path.exists() or path.stat().st_size != self._count * kind.itemsize:
            raise DataError(
                f"{path}: must have {self._count * kind.itemsize} bytes; delete {self.folder}, it is built again"
            )
        return np.memmap(path, dtype=kind, mode="r")


def _files_of(path: Path) -> list[Path | CorpusIndex]:
    if path.is_file() and path.suffix == ".txt":
        return [path.resolve()]
    if path.is_dir():
        texts = sorted(file.resolve() for file in path.rglob("*.txt"))
        if (
            texts
            and not any(path.glob("cuts.jsonl*"))
            and not any(path.glob("metadata.*"))
            and not (path / "wav.scp").exists()
        ):
            return [*texts]
    return [CorpusIndex.open(path)]


def _stamp(file: Path | CorpusIndex) -> str:
    if isinstance(file, CorpusIndex):
        return file.manifest
    status = file.stat()
    return f"{status.st_size} {status.st_mtime_ns} {file}"


def _build(files: Sequence[Path | CorpusIndex], place: Path, manifest: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    columns = {name: array({"<i4": "i", "<i8": "q"}[kind]) for name, kind in _KINDS.items()}
    names: list[str] = []
    try:
        for number, source in enumerate(files):
            path = source
            if isinstance(source, CorpusIndex):
                path = staging / f"transcripts{number}.txt"
                path.write_text("".join(f"{text}\n" for text in _transcripts(source)), encoding="utf-8")
            assert isinstance(path, Path)
            names.append(path.name if isinstance(source, CorpusIndex) else str(path))
            offset = 0
            with path.open("rb") as stream:
                for line in stream:
                    size = len(line.rstrip())
                    if size:
                        columns["file"].append(number)
                        columns["offset"].append(offset)
                        columns["size"].append(size)
                    offset += len(line)
        if not len(columns["file"]):
            raise DataError(
                f"the {len(files)} files of texts hold no line; usually because the corpus has no transcripts"
            )
        for name, values in columns.items():
            np.asarray(values).astype(_KINDS[name]).tofile(staging / f"{name}.bin")
        header = {"format": _FORMAT, "manifest": manifest, "num_lines": len(columns["file"]), "files": names}
        (staging / "texts.json").write_text(json.dumps(header), encoding="utf-8")
        try:
            staging.replace(place)
        except OSError:
            if not (place / "texts.json").exists():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _transcripts(index: CorpusIndex) -> Iterator[str]:
    for row in range(len(index)):
        cut = index.cut(row, with_audio=False)
        text = cut.supervisions[0].text if cut.supervisions else None
        if text:
            yield " ".join(text.split())
