"""A corpus as arrays on disk: what the sampler needs of a million cuts, without the cuts.

An index is a folder: `cuts.jsonl` (one cut a line, as it came), one flat array a field, the tables of names, and
`index.json`, which holds the manifest hash. It is built once, by streaming, and then only mapped: opening costs nothing
and memory does not grow with the corpus.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from lhotse import CutSet, MonoCut
from numpy.typing import NDArray

from isogloss.core.errors import DataError
from isogloss.data.cut_lines import parse_line, read_lines, to_cut
from isogloss.data.tar_members import Member, is_shar, iterate_shards, read_member, shard_files

_FORMAT = 1
# field: (type in the file, typecode of array.array)
_ARRAYS = {
    "duration": ("<f4", "f"),
    "offset": ("<i8", "q"),
    "id_hash": ("<u8", "Q"),
    "language": ("<i4", "i"),
    "speaker": ("<i4", "i"),
    "source": ("<i4", "i"),
}
_SHARD_ARRAYS = {"shard": ("<i4", "i"), "member_offset": ("<i8", "q"), "member_size": ("<i8", "q")}
_FLUSH_EVERY = 65_536
_Record = tuple[str, bytes, Member | None]


class CorpusIndex:
    """The cuts of a corpus by row number 0 … N−1.

    `durations` (seconds), `languages`, `speakers`, `sources` (numbers of `language_names`, …; −1 where unknown) and
    `id_hashes` are memory-mapped arrays of length N; `cut(row)` reads one cut. `manifest` is the hash of everything.
    """

    def __init__(self, folder: Path | str, root: Path | str) -> None:
        self.folder, self.root = Path(folder), Path(root)
        try:
            header = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
            names = json.loads((self.folder / "names.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.folder}: not an index of a corpus ({error}); delete the folder, it is built again"
            ) from None
        if header.get("format") != _FORMAT:
            raise DataError(f"{self.folder}: an index of another version; delete the folder, it is built again")
        self.manifest: str = header["manifest"]
        self.seconds: float = header["seconds"]
        self._num_cuts: int = header["num_cuts"]
        self.language_names: list[str] = names["language"]
        self.speaker_names: list[str] = names["speaker"]
        self.source_names: list[str] = names["source"]
        self._shard_names: list[str] = names["shard"]
        self.durations: NDArray[np.float32] = self._map("duration", _ARRAYS)
        self.languages: NDArray[np.int32] = self._map("language", _ARRAYS)
        self.speakers: NDArray[np.int32] = self._map("speaker", _ARRAYS)
        self.sources: NDArray[np.int32] = self._map("source", _ARRAYS)
        self.id_hashes: NDArray[np.uint64] = self._map("id_hash", _ARRAYS)
        self._offsets: NDArray[np.int64] = self._map("offset", _ARRAYS, extra=1)
        self.shards: NDArray[np.int32] | None = None
        if self._shard_names:
            self.shards = self._map("shard", _SHARD_ARRAYS)
            self._member_offsets: NDArray[np.int64] = self._map("member_offset", _SHARD_ARRAYS)
            self._member_sizes: NDArray[np.int64] = self._map("member_size", _SHARD_ARRAYS)
        with (self.folder / "cuts.jsonl").open("rb") as stream:
            self._lines = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._lines) != int(self._offsets[-1]):
            raise DataError(f"{self.folder}: cuts.jsonl is not what was indexed; delete the folder, it is built again")

    @classmethod
    def open(cls, source: Path | str, cache: Path | str | None = None) -> Self:
        """Index a cuts file, a prepared corpus or a Shar folder, or open the index that an earlier call left.

        The index lies in `.isogloss-index` beside the manifest (beside a Shar folder, not in it: lhotse takes every file there
        for a field), or in `cache`; where that place cannot be written, in the
        user's cache directory. It is found by names, sizes and times of the manifest files: a changed manifest is
        indexed afresh.
        """
        manifest, root = _find_manifest(Path(source))
        files = [path for pair in shard_files(manifest) for path in pair] if manifest.is_dir() else [manifest]
        stamp = hashlib.blake2b(digest_size=8)
        for path in files:
            status = path.stat()
            stamp.update(
                f"{_FORMAT} {path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape")
            )
        beside = root.resolve().parent if manifest.is_dir() else root
        place = _writable(Path(cache) if cache is not None else beside / ".isogloss-index") / stamp.hexdigest()
        if (place / "index.json").exists():
            return cls(place, root)
        return cls.build(manifest, place)

    @classmethod
    def build(cls, cuts: CutSet | Path | str, folder: Path | str) -> Self:
        """Write the index of a `CutSet` (streamed), a cuts file, a prepared corpus or a Shar folder to a new `folder`.

        Every line is checked; a duplicate id, a cut without audio or a source that is not a file is a `DataError` with its
        place. The folder appears whole or not at all; where another process was faster, its index is used.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(cuts, CutSet):
            root, shard_names, records = Path.cwd(), [], _records_of_cuts(cuts)
        else:
            manifest, root = _find_manifest(Path(cuts))
            shard_names = [tar.name for _, tar in shard_files(manifest)] if manifest.is_dir() else []
            records = _records_of_shar(manifest) if manifest.is_dir() else _records_of_file(manifest)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _write(staging, records, shard_names)
            try:
                staging.replace(folder)
            except OSError:
                if not (folder / "index.json").exists():
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return cls(folder, root)

    def __len__(self) -> int:
        """Return N, the number of cuts."""
        return self._num_cuts

    def cut(self, row: int) -> MonoCut:
        """Return a cut; the audio of a cut in a shard comes with it, as bytes in memory."""
        where = f"{self.folder / 'cuts.jsonl'}:{row + 1}"
        data = parse_line(self._lines[int(self._offsets[row]) : int(self._offsets[row + 1])].rstrip(b"\n"), where)
        cut = to_cut(data, self.root, where)
        if self.shards is not None:
            path = self.root / self._shard_names[int(self.shards[row])]
            source = cut.recording.sources[0]
            source.type = "memory"
            source.source = read_member(path, int(self._member_offsets[row]), int(self._member_sizes[row]), cut.id)
        return cut

    def cut_id(self, row: int) -> str:
        """Return the id of a cut, without its audio."""
        line = self._lines[int(self._offsets[row]) : int(self._offsets[row + 1])]
        return str(parse_line(line.rstrip(b"\n"), f"{self.folder / 'cuts.jsonl'}:{row + 1}")["id"])

    def place(self, row: int) -> str:
        """Return where the audio of a cut lies in words for messages: the shard, or the manifest."""
        return self._shard_names[int(self.shards[row])] if self.shards is not None else str(self.root)

    def __getstate__(self) -> dict[str, Any]:
        # a worker that is spawned opens the files again; pickling the arrays would copy the corpus
        return {"folder": self.folder, "root": self.root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["root"])  # type: ignore[misc]

    def _map(self, name: str, kinds: dict[str, tuple[str, str]], extra: int = 0) -> NDArray[Any]:
        path, kind = self.folder / f"{name}.bin", np.dtype(kinds[name][0])
        expected = (self._num_cuts + extra) * kind.itemsize
        if not path.exists() or path.stat().st_size != expected:
            raise DataError(f"{path}: must have {expected} bytes; delete {self.folder}, it is built again")
        return np.memmap(path, dtype=kind, mode="r")


class _Column:
    """A flat array on disk that is appended to."""

    def __init__(self, path: Path, kind: tuple[str, str]) -> None:
        self._stream = path.open("wb")
        self._kind = np.dtype(kind[0])
        self._pending = array(kind[1])

    def append(self, value: Any) -> None:
        self._pending.append(value)
        if len(self._pending) >= _FLUSH_EVERY:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._stream.close()

    def _flush(self) -> None:
        self._stream.write(np.asarray(self._pending).astype(self._kind).tobytes())
        self._pending = array(self._pending.typecode)


class _Names:
    """Numbers for names in the order of their first use; −1 for none."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, name: Any) -> int:
        if not isinstance(name, str) or not name:
            return -1
        return self.numbers.setdefault(name, len(self.numbers))


def hash_id(name: str) -> int:
    """Return the 64-bit hash that stands for an utterance in the index and in its random seeds."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _write(folder: Path, records: Iterator[_Record], shard_names: list[str]) -> None:
    kinds = {**_ARRAYS, **(_SHARD_ARRAYS if shard_names else {})}
    columns = {name: _Column(folder / f"{name}.bin", kind) for name, kind in kinds.items()}
    names = {name: _Names() for name in ("language", "speaker", "source")}
    digest = hashlib.blake2b(digest_size=16)
    offset = num_cuts = 0
    seconds = 0.0
    with (folder / "cuts.jsonl").open("wb") as lines:
        for where, line, member in records:
            cut = parse_line(line, where)
            supervision = (cut.get("supervisions") or [{}])[0]
            columns["offset"].append(offset)
            columns["duration"].append(cut["duration"])
            columns["id_hash"].append(hash_id(cut["id"]))
            columns["language"].append(names["language"].number(supervision.get("language")))
            columns["speaker"].append(names["speaker"].number(supervision.get("speaker")))
            columns["source"].append(names["source"].number((cut.get("custom") or {}).get("source")))
            digest.update(line + b"\n")
            if member is not None:
                columns["shard"].append(member.shard)
                columns["member_offset"].append(member.offset)
                columns["member_size"].append(member.size)
                digest.update(f"{member.shard} {member.offset} {member.size}\n".encode())
            elif any(source["type"] == "shar" for source in cut["recording"]["sources"]):
                raise DataError(
                    f"{where}: {cut['id']} is a cut of a Shar folder; give the folder, not one of its files"
                )
            offset += lines.write(line + b"\n")
            num_cuts += 1
            seconds += cut["duration"]
    if not num_cuts:
        raise DataError("the corpus has no cuts; usually because every recording was rejected: see its audit report")
    columns["offset"].append(offset)
    for column in columns.values():
        column.close()
    _refuse_duplicates(folder)
    tables = {name: list(table.numbers) for name, table in names.items()}
    (folder / "names.json").write_text(json.dumps({**tables, "shard": shard_names}), encoding="utf-8")
    header = {"format": _FORMAT, "num_cuts": num_cuts, "seconds": seconds, "manifest": digest.hexdigest()}
    (folder / "index.json").write_text(json.dumps(header), encoding="utf-8")


def _refuse_duplicates(folder: Path) -> None:
    hashes = np.fromfile(folder / "id_hash.bin", dtype="<u8")
    hashes.sort()
    repeated = hashes[1:][hashes[1:] == hashes[:-1]]
    if not len(repeated):
        return
    wanted, seen = int(repeated[0]), []
    for number, line in read_lines(folder / "cuts.jsonl"):
        name = parse_line(line, "")["id"]
        if hash_id(name) == wanted:
            seen.append((name, number))
    (name, first), (_, second) = seen[:2]
    raise DataError(
        f"{len(repeated)} cuts have the id of another one, first {name!r} (cuts {first} and {second}); ids must be unique"
    )


def _records_of_file(path: Path) -> Iterator[_Record]:
    for number, line in read_lines(path):
        yield f"{path}:{number}", line, None


def _records_of_shar(folder: Path) -> Iterator[_Record]:
    return iterate_shards(folder)


def _records_of_cuts(cuts: Iterable[MonoCut]) -> Iterator[_Record]:
    for number, cut in enumerate(cuts, 1):
        try:
            line = json.dumps(cut.to_dict(), ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise DataError(
                f"cut {number} ({cut.id}) cannot be written as JSON: {error}; save its audio first"
            ) from None
        yield f"cut {number} ({cut.id})", line, None


def _find_manifest(path: Path) -> tuple[Path, Path]:
    """Return (cuts file or Shar folder, folder at which relative paths start)."""
    if path.is_file():
        return path, path.parent
    for name in ("cuts.jsonl.gz", "cuts.jsonl"):
        if (path / name).is_file():
            return path / name, path
    if is_shar(path):
        return path, path
    raise DataError(f"{path}: neither cuts nor a Shar folder; `isogloss corpus prepare` makes cuts of other forms")


def _writable(place: Path) -> Path:
    """Return the place, or one in the user's cache directory where it cannot be written."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        if os.access(place, os.W_OK):
            return place
    except OSError:
        pass
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "isogloss" / "index"
