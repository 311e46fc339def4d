"""One line of a manifest to one cut: strict, because a manifest may come from anywhere and lhotse believes what it reads."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from lhotse import MonoCut

from isogloss.core.errors import DataError

MAX_LINE_BYTES = (
    1 << 24
)  # a longer line is no cut; reading stops there, so a file without line ends cannot fill the memory


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line without its end) of a plain or gzipped file; damage is a `DataError` with its place."""
    with path.open("rb") as raw, gzip.open(raw, "rb") if path.suffix == ".gz" else raw as stream:
        yield from _read_stream(cast(IO[bytes], stream), str(path))


def _read_stream(stream: IO[bytes], where: str) -> Iterator[tuple[int, bytes]]:
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline(MAX_LINE_BYTES + 1)
        except (OSError, EOFError) as error:
            raise DataError(f"{where}:{number}: cannot be read: {error}; the file was probably cut short") from None
        except Exception as error:  # zlib.error is no OSError
            raise DataError(f"{where}:{number}: cannot be read: {error}; the file is probably damaged") from None
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{where}:{number}: the line is longer than {MAX_LINE_BYTES} bytes; this is not a manifest")
        yield number, line.rstrip(b"\r\n")


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """Return the fields of a cut; anything that isogloss would not use as it stands is a `DataError` that begins with `where`."""
    try:
        data = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8; the file is probably damaged or compressed") from None
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{where}: not a line of JSON: {what}") from None
    if not isinstance(data, dict):
        raise DataError(f"{where}: a cut must be a JSON object, but is a {type(data).__name__}")
    _check_cut(data, where)
    return data


def to_cut(data: dict[str, Any], root: Path, where: str) -> MonoCut:
    """Build the lhotse cut of checked fields (which are used up); relative paths start at `root`."""
    for source in data["recording"]["sources"]:
        if source["type"] == "file" and not Path(source["source"]).is_absolute():
            source["source"] = str(root / source["source"])
    try:
        return MonoCut.from_dict(data)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"{where}: lhotse does not accept this cut: {error}; was it written by another version?"
        ) from None


def _check_cut(data: dict[str, Any], where: str) -> None:
    kind = data.get("type", "MonoCut")
    if kind != "MonoCut":
        raise DataError(
            f"{where}: a cut must be a MonoCut, but is a {kind!r}; save mixed or padded cuts as audio first"
        )
    name = data.get("id")
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: `id` must be a text that is not empty, but is {name!r}")
    _check_number(data, "start", where, minimum=0.0)
    _check_number(data, "duration", where, minimum=0.0)
    if data["duration"] <= 0:
        raise DataError(f"{where}: `duration` of {name} must be above 0 s, but is {data['duration']}")
    recording = data.get("recording")
    if not isinstance(recording, dict) or not isinstance(recording.get("sources"), list) or not recording["sources"]:
        raise DataError(f"{where}: {name} has no `recording` with `sources`; cuts of features alone cannot be used")
    if recording.get("transforms"):
        raise DataError(f"{where}: {name} has unapplied `transforms`; save the audio of such cuts first")
    for source in recording["sources"]:
        _check_source(source, name, where)
    supervisions = data.get("supervisions", [])
    if not isinstance(supervisions, list) or not all(isinstance(item, dict) for item in supervisions):
        raise DataError(f"{where}: `supervisions` of {name} must be a list of objects")
    for key in ("language", "speaker", "text"):
        if supervisions and not isinstance(supervisions[0].get(key), str | None):
            raise DataError(f"{where}: `{key}` of {name} must be a text, but is {supervisions[0][key]!r}")
    if not isinstance(data.get("custom"), dict | None):
        raise DataError(f"{where}: `custom` of {name} must be an object, but is {data['custom']!r}")


def _check_number(data: dict[str, Any], key: str, where: str, minimum: float) -> None:
    value = data.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < minimum:  # type: ignore[arg-type, operator]
        raise DataError(f"{where}: `{key}` must be a number of at least {minimum:g} s, but is {value!r}")


def _check_source(source: Any, name: str, where: str) -> None:
    kind = source.get("type") if isinstance(source, dict) else None
    if kind not in ("file", "shar"):
        # lhotse would run a `command` in a shell and open a `url`
        raise DataError(
            f"{where}: the source of {name} must be a `file` or in a shard, but is {kind!r}; it is not opened"
        )
    place = source.get("source")
    if not isinstance(place, str) or "\0" in place or place.startswith("pipe:") or "://" in place:
        raise DataError(f"{where}: the source of {name} must be a path, but is {place!r}; it is not opened")
