"""A corpus as arrays on disk: what the sampler needs of a million cuts, without the cuts.

An index is a folder: `cuts.jsonl` (one cut a line, as it came), one flat array a field, the tables of names, and
`index.json`, which holds the manifest hash. It is built once, by streaming, and then only mapped: opening costs nothing
and memory does not grow with the corpus.
"""

from __future__ import annotations

import glob
import hashlib
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from lhotse import CutSet, MonoCut
from numpy.typing import NDArray

from isogloss.core.errors import DataError
from isogloss.data._index_files import ARRAYS, FORMAT, SHARD_ARRAYS, Record, write_index
from isogloss.data._paths import PathLike
from isogloss.data.cut_lines import parse_line, read_lines, to_cut
from isogloss.data.inputs import CUT_FILES, Rejected, form_of, iterate_corpus
from isogloss.data.tar_members import iterate_shards, read_member, shard_files


class CorpusIndex:
    """The cuts of a corpus by row number 0 … N−1.

    `durations` (seconds), `languages`, `speakers`, `sources` (numbers of `language_names`, …; −1 where unknown) and
    `id_hashes` are memory-mapped arrays of length N; `cut(row)` reads one cut. `manifest` is the hash of everything.
    """

    def __init__(self, folder: PathLike, root: PathLike) -> None:
        self.folder, self.root = Path(folder), Path(root)
        try:
            header = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
            names = json.loads((self.folder / "names.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.folder}: not an index of a corpus ({error}); delete the folder, it is built again"
            ) from None
        if header.get("format") != FORMAT:
            raise DataError(f"{self.folder}: an index of another version; delete the folder, it is built again")
        self.manifest: str = header["manifest"]
        self.seconds: float = header["seconds"]
        self._num_cuts: int = header["num_cuts"]
        self.language_names: list[str] = names["language"]
        self.speaker_names: list[str] = names["speaker"]
        self.source_names: list[str] = names["source"]
        self._shard_names: list[str] = names["shard"]
        self.durations: NDArray[np.float32] = self._map("duration", ARRAYS)
        self.languages: NDArray[np.int32] = self._map("language", ARRAYS)
        self.speakers: NDArray[np.int32] = self._map("speaker", ARRAYS)
        self.sources: NDArray[np.int32] = self._map("source", ARRAYS)
        self.id_hashes: NDArray[np.uint64] = self._map("id_hash", ARRAYS)
        self._offsets: NDArray[np.int64] = self._map("offset", ARRAYS, extra=1)
        self.shards: NDArray[np.int32] | None = None
        if self._shard_names:
            self.shards = self._map("shard", SHARD_ARRAYS)
            self._member_offsets: NDArray[np.int64] = self._map("member_offset", SHARD_ARRAYS)
            self._member_sizes: NDArray[np.int64] = self._map("member_size", SHARD_ARRAYS)
        with (self.folder / "cuts.jsonl").open("rb") as stream:
            self._lines = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if len(self._lines) != int(self._offsets[-1]):
            raise DataError(f"{self.folder}: cuts.jsonl is not what was indexed; delete the folder, it is built again")

    @classmethod
    def open(cls, source: PathLike, cache: PathLike | None = None) -> Self:
        """Index a corpus in any form that `data.inputs` knows, or open the index that an earlier call left.

        The index of a prepared corpus lies in `.isogloss-index` in it, that of a Shar folder beside it (lhotse takes every
        file in it for a field), any other in the user's cache directory; so do those that cannot be written where they
        belong. `cache` overrides this. An index is found by the names, sizes and times of the files it was made of: a
        changed manifest is indexed afresh.
        """
        source = Path(source).resolve()
        form = form_of(source)
        files, root, beside = _what_to_watch(source, form)
        stamp = hashlib.blake2b(digest_size=8)
        for path in files:
            status = path.stat()
            stamp.update(f"{FORMAT} {status.st_size} {status.st_mtime_ns} ".encode() + os.fsencode(path) + b"\n")
        places = _user_cache() if beside is None else _writable(beside)
        place = (places if cache is None else Path(cache)) / stamp.hexdigest()
        if not (place / "index.json").exists():
            return cls.build(source, place)
        return cls(place, root)

    @classmethod
    def build(cls, cuts: CutSet | PathLike, folder: PathLike) -> Self:
        """Write the index of a `CutSet` (streamed) or of a corpus in any form to a new `folder`.

        Every cut is checked; a duplicate id, a cut without audio, a source that is not a file or a recording that cannot be
        read is a `DataError` with its place. The folder appears whole or not at all; where another process was faster, its
        index is used.
        """
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        root, shard_names = Path.cwd(), []
        if isinstance(cuts, CutSet):
            records = _records_of_cuts(cuts)
        else:
            source = Path(cuts).resolve()
            form = form_of(source)
            root = source if source.is_dir() else source.parent
            if form == "shar":
                shard_names = [tar.name for _, tar in shard_files(source)]
                records = iterate_shards(source)
            elif form == "cuts":
                records = _records_of_file(_cuts_file(source))
            else:
                records = _records_of_cuts(_readable_cuts(source))
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            write_index(staging, records, shard_names)
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

    def cut(self, row: int, *, with_audio: bool = True) -> MonoCut:
        """Return a cut; the audio of a cut in a shard comes with it, as bytes in memory, unless it is not wanted."""
        where = f"{self.folder / 'cuts.jsonl'}:{row + 1}"
        data = parse_line(self._lines[int(self._offsets[row]) : int(self._offsets[row + 1])].rstrip(b"\n"), where)
        cut = to_cut(data, self.root, where)
        if self.shards is not None and with_audio:
            path = self.root / self._shard_names[int(self.shards[row])]
            source = cut.recording.sources[0]
            source.type = "memory"
            source.source = read_member(path, int(self._member_offsets[row]), int(self._member_sizes[row]), cut.id)
        if cut.supervisions and (number := int(self.languages[row])) >= 0:
            cut.supervisions[0].language = self.language_names[number]
        return cut

    def cut_id(self, row: int) -> str:
        """Return the id of a cut, without its audio."""
        line = self._lines[int(self._offsets[row]) : int(self._offsets[row + 1])]
        return str(parse_line(line.rstrip(b"\n"), f"{self.folder / 'cuts.jsonl'}:{row + 1}")["id"])

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


def _records_of_file(path: Path) -> Iterator[Record]:
    for number, line in read_lines(path):
        if line.strip():
            yield f"{path}:{number}", line, None


def _records_of_cuts(cuts: Iterable[MonoCut]) -> Iterator[Record]:
    for number, cut in enumerate(cuts, 1):
        try:
            line = json.dumps(cut.to_dict()).encode()
        except (TypeError, ValueError) as error:
            raise DataError(
                f"cut {number} ({cut.id}) cannot be written as JSON: {error}; save its audio first"
            ) from None
        yield f"cut {number} ({cut.id})", line, None


def _readable_cuts(source: Path) -> Iterator[MonoCut]:
    """Yield the cuts of a form that is not ours; a recording that cannot be read is an error in the end."""
    bad: list[Rejected] = []
    for item in iterate_corpus(source):
        if isinstance(item, Rejected):
            bad.append(item)
        else:
            yield item
    if bad:
        raise DataError(
            f"{bad[0].told}; {len(bad)} recordings cannot be used; `isogloss corpus audit` "
            "leaves them out and writes a corpus of the rest"
        )


def _cuts_file(source: Path) -> Path:
    return source if source.is_file() else next(source / name for name in CUT_FILES if (source / name).is_file())


def _what_to_watch(source: Path, form: str) -> tuple[list[Path], Path, Path | None]:
    """Return the files whose change makes an index stale, where relative paths start, and where the index belongs."""
    if form == "cuts":
        manifest = _cuts_file(source)
        return [manifest], manifest.parent, manifest.parent / ".isogloss-index"
    if form == "shar":
        return [path for pair in shard_files(source) for path in pair], source, source.parent / ".isogloss-index"
    if source.is_file():  # labels lie beside a manifest, under its name
        return sorted(source.parent.glob(f"{glob.escape(source.stem)}.*")), source.parent, None
    files = (Path(folder, name) for folder, _, names in os.walk(source) for name in names)
    return sorted((path for path in files if path.is_file()), key=os.fsencode), source, None


def _writable(place: Path) -> Path:
    """Return the place, or one in the user's cache directory where it cannot be written."""
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _user_cache()
    return place if os.access(place, os.W_OK) else _user_cache()


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isogloss" / "index"
