"""Read members of Lhotse Shar archives by their place, so that any utterance of a shard is one read away."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isogloss.core.errors import DataError
from isogloss.data.cut_lines import parse_line, read_lines


@dataclass(frozen=True)
class Member:
    """Where the audio of a cut lies: the archive (by its number), the first byte, and how many."""

    shard: int
    offset: int
    size: int


def is_shar(folder: Path) -> bool:
    """True for a folder with `cuts.NNNNNN.jsonl.gz` beside `recording.NNNNNN.tar`."""
    return folder.is_dir() and any(folder.glob("cuts.*.jsonl*")) and any(folder.glob("recording.*.tar"))


def shard_files(folder: Path) -> list[tuple[Path, Path]]:
    """Return the (cuts, recordings) files of a Shar folder in order; one without the other is a `DataError`."""
    cuts = {path.name.split(".")[1]: path for path in sorted(folder.glob("cuts.*.jsonl*"))}
    tars = {path.name.split(".")[1]: path for path in sorted(folder.glob("recording.*.tar"))}
    for path in (*cuts.values(), *tars.values()):
        if not path.is_file():  # opening a FIFO would wait for ever
            raise DataError(f"{path}: is not a regular file")
    if lonely := sorted(cuts.keys() ^ tars.keys()):
        raise DataError(
            f"{folder}: shard {lonely[0]} has only one of its two files (cuts and recording); copy the folder again"
        )
    return [(cuts[key], tars[key]) for key in sorted(cuts)]


def iterate_shards(folder: Path) -> Iterator[tuple[str, bytes, Member]]:
    """Yield (place of the line, line, member) of each cut; archives are only skimmed, never decoded or unpacked."""
    for number, (cuts_path, tar_path) in enumerate(shard_files(folder)):
        members = _iterate_members(tar_path, number)
        for line_number, line in read_lines(cuts_path):
            where = f"{cuts_path}:{line_number}"
            name = parse_line(line, where)["id"]
            key, member = next(members, ("", None))
            if member is None:
                raise DataError(f"{tar_path}: ends before {name}; the shard was cut short, copy it again")
            if key != name:
                raise DataError(
                    f"{tar_path}: holds {key!r} where {cuts_path.name} has {name!r}; they do not belong together"
                )
            yield where, line, member
        if extra := next(members, None):
            raise DataError(f"{tar_path}: holds {extra[0]!r}, which {cuts_path.name} does not name")


def read_member(path: Path, offset: int, size: int, key: str) -> bytes:
    """Return the bytes of one member; a shard that is gone or has become shorter is a `DataError` with its name and the key."""
    try:
        with path.open("rb") as stream:
            data = os.pread(stream.fileno(), size, offset)
    except OSError as error:
        raise DataError(f"{path}: {key} cannot be read: {error.strerror}") from None
    if len(data) != size:
        raise DataError(f"{path}: {key} has {len(data)} of {size} bytes; the shard was cut short, copy it again")
    return data


def _iterate_members(path: Path, number: int) -> Iterator[tuple[str, Member]]:
    """Yield (key, member) of the audio in an archive, checking that each is whole and followed by its description."""
    key = None
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if not info.isreg():
                    raise DataError(f"{path}: {info.name!r} is no regular file; a shard holds nothing else")
                stem, _, suffix = info.name.rpartition(".")
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if suffix in ("json", "nometa"):
                    if stem != key:
                        raise DataError(f"{path}: {info.name!r} does not follow its audio")
                    key = None
                    continue
                if key is not None:
                    raise DataError(f"{path}: {key!r} has no description behind it")
                if suffix == "nodata":
                    raise DataError(f"{path}: {stem!r} has no audio")
                key = stem
                yield key, Member(number, info.offset_data, info.size)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: not a whole tar archive ({error}), after {key!r}; copy the shard again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if key is not None:
        raise DataError(f"{path}: {key!r} has no description behind it; the shard was cut short")
