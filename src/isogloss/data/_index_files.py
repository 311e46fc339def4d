"""Write the arrays of a corpus index: streamed, checked line by line."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from isogloss.core.errors import DataError
from isogloss.core.languages import normalize_language
from isogloss.data.cut_lines import parse_line, read_lines
from isogloss.data.tar_members import Member

FORMAT = 1
# field: (type in the file, typecode of array.array)
ARRAYS = {
    "duration": ("<f4", "f"),
    "offset": ("<i8", "q"),
    "id_hash": ("<u8", "Q"),
    "language": ("<i4", "i"),
    "speaker": ("<i4", "i"),
    "source": ("<i4", "i"),
}
SHARD_ARRAYS = {"shard": ("<i4", "i"), "member_offset": ("<i8", "q"), "member_size": ("<i8", "q")}
_FLUSH_EVERY = 65_536
Record = tuple[str, bytes, Member | None]


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
    # a name may hold bytes that are not UTF-8 as lone surrogates
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def write_index(folder: Path, records: Iterator[Record], shard_names: list[str]) -> None:
    """Write every file of an index to an empty folder; `index.json` comes last."""
    kinds = {**ARRAYS, **(SHARD_ARRAYS if shard_names else {})}
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
            columns["language"].append(names["language"].number(_tag(supervision.get("language"), where)))
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
        raise DataError(
            "the corpus has no cuts; usually because the folder is empty or not the one that was meant, or because every "
            "recording was rejected: `isogloss corpus audit` says why"
        )
    columns["offset"].append(offset)
    for column in columns.values():
        column.close()
    _refuse_duplicates(folder)
    tables = {name: list(table.numbers) for name, table in names.items()}
    (folder / "names.json").write_text(json.dumps({**tables, "shard": shard_names}), encoding="utf-8")
    header = {"format": FORMAT, "num_cuts": num_cuts, "seconds": seconds, "manifest": digest.hexdigest()}
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


def _tag(code: Any, where: str) -> str | None:
    try:
        return normalize_language(code).tag if code else None
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
