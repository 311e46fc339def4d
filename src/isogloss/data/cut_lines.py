"""One line of a manifest to one cut: strict, because a manifest may come from anywhere and lhotse believes what it reads."""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from lhotse import MonoCut

from isogloss.core.errors import DataError
from isogloss.data._paths import is_path

MAX_SECONDS = 1e6  # eleven days: no recording is longer
_MAX_DEPTH = 64
_MAX_RATE = 10_000_000
_MAX_COUNT = 1 << 40
# Only lines with one of these can hold half a surrogate pair, or a number that is not finite.
_SUSPICIOUS = re.compile(rb"\\u[dD]|NaN|Infinity|[0-9][eE]\+?[0-9]{3}|[0-9]{300}")
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
    if _SUSPICIOUS.search(line) or line.count(b"[") + line.count(b"{") > _MAX_DEPTH:
        check_values({key: value for key, value in data.items() if key != "recording"}, where)
    return data


def check_values(values: Any, where: str) -> None:
    """Refuse what can be read and not written: half of a surrogate pair, a number that is not finite, lists in lists without end."""
    pending = [(values, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise DataError(f"{where}: nested too deeply, more than {_MAX_DEPTH} levels")
        if isinstance(value, str):
            if not _is_unicode(value):
                raise DataError(f"{where}: {_shown(value)} has half of a surrogate pair, which is no character")
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise DataError(f"{where}: {value} is no number that JSON has; write null, or leave it out")
        elif isinstance(value, dict):
            pending += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            pending += [(item, depth + 1) for item in value]


def to_cut(data: dict[str, Any], root: Path, where: str) -> MonoCut:
    """Build the lhotse cut of checked fields (which are used up); relative paths start at `root`."""
    for source in data["recording"]["sources"]:
        if source["type"] == "file" and not Path(source["source"]).is_absolute():
            source["source"] = str(root / source["source"])
    try:
        return MonoCut.from_dict(data)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError, AssertionError) as error:
        raise DataError(
            f"{where}: lhotse does not accept this cut: {error}; was it written by another version?"
        ) from None


def _check_cut(data: dict[str, Any], where: str) -> None:
    kind = data.get("type", "MonoCut")
    if kind != "MonoCut":
        raise DataError(
            f"{where}: a cut must be a MonoCut, but is a {_shown(kind)}; save mixed or padded cuts as audio first"
        )
    name = data.get("id")
    if not isinstance(name, str) or not name or not _is_unicode(name):
        raise DataError(f"{where}: `id` must be a text that is not empty, but is {_shown(name)}")
    _check_number(data, "start", where)
    _check_number(data, "duration", where)
    _check_whole(data, "channel", f"{where}: `channel` of {name}", 0, _MAX_COUNT)
    if data["duration"] <= 0:
        raise DataError(f"{where}: `duration` of {name} must be above 0 s, but is {data['duration']}")
    recording = data.get("recording")
    if not isinstance(recording, dict) or not isinstance(recording.get("sources"), list) or not recording["sources"]:
        raise DataError(f"{where}: {name} has no `recording` with `sources`; cuts of features alone cannot be used")
    if recording.get("transforms"):
        raise DataError(f"{where}: {name} has unapplied `transforms`; save the audio of such cuts first")
    for source in recording["sources"]:
        _check_source(source, name, where)
    _check_recording(recording, name, where)
    supervisions = data.get("supervisions", [])
    if not isinstance(supervisions, list) or not all(isinstance(item, dict) for item in supervisions):
        raise DataError(f"{where}: `supervisions` of {name} must be a list of objects")
    for supervision in supervisions:
        _check_supervision(supervision, name, where)
    if not isinstance(data.get("custom"), dict | None):
        raise DataError(f"{where}: `custom` of {name} must be an object, but is {_shown(data['custom'])}")


def _check_recording(recording: dict[str, Any], name: str, where: str) -> None:
    """Refuse what the audit and the loader would compute with and cannot."""
    here = f"{where}: in the `recording` of {name}"
    if not isinstance(recording.get("id"), str) or not _is_unicode(recording["id"]):
        raise DataError(f"{here}: `id` must be a text, but is {_shown(recording.get('id'))}")
    _check_whole(recording, "sampling_rate", f"{here}: `sampling_rate`", 1, _MAX_RATE)
    _check_whole(recording, "num_samples", f"{here}: `num_samples`", 0, _MAX_COUNT)
    _check_number(recording, "duration", here)
    if recording.get("channel_ids") is not None:
        _check_channels(recording["channel_ids"], "channel_ids", name, where)


def _check_supervision(supervision: dict[str, Any], name: str, where: str) -> None:
    for key in ("id", "recording_id", "language", "speaker", "text", "gender"):
        value = supervision.get(key)
        if not isinstance(value, str | None):
            raise DataError(f"{where}: `{key}` of {name} must be a text, but is {_shown(value)}")
    here = f"{where}: in the `supervisions` of {name}"
    # relative to the cut, so one that began before it is negative
    _check_number(supervision, "start", here, minimum=-MAX_SECONDS)
    _check_number(supervision, "duration", here)
    if not isinstance(supervision.get("custom"), dict | None):
        raise DataError(f"{here}: `custom` must be an object, but is {_shown(supervision['custom'])}")
    tiers = supervision.get("alignment")
    if tiers is None:
        return
    if not isinstance(tiers, dict) or not all(isinstance(items, list) for items in tiers.values()):
        raise DataError(f"{here}: `alignment` must be an object of lists, but is {_shown(tiers)}")
    for items in tiers.values():
        for item in items:
            values = [item.get(key) for key in ("symbol", "start", "duration")] if isinstance(item, dict) else item
            if not (
                isinstance(values, list)
                and len(values) >= 3
                and isinstance(values[0], str)
                and all(_is_number(value, -MAX_SECONDS) for value in values[1:3])
            ):
                raise DataError(
                    f"{here}: an `alignment` must have symbols, starts and durations, but has {_shown(item)}"
                )


def _is_number(value: Any, minimum: float) -> bool:
    # compared, not converted: an integer may be greater than every float
    return isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value <= MAX_SECONDS


def _check_number(data: dict[str, Any], key: str, where: str, minimum: float = 0.0) -> None:
    value = data.get(key)
    if not _is_number(value, minimum):
        raise DataError(
            f"{where}: `{key}` must be a number of at least {minimum:g} s and at most {MAX_SECONDS:g} s, but is {_shown(value)}"
        )


def _check_whole(data: dict[str, Any], key: str, told: str, minimum: int, maximum: int) -> None:
    value = data.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise DataError(f"{told} must be a whole number from {minimum} to {maximum}, but is {_shown(value)}")


def _check_channels(channels: Any, key: str, name: str, where: str) -> None:
    if not isinstance(channels, list) or not all(type(c) is int and 0 <= c < _MAX_COUNT for c in channels):
        raise DataError(f"{where}: `{key}` of {name} must be a list of whole numbers, but is {_shown(channels)}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    """Return a value as a message can show it: short, on one line, and without going into lists."""
    return repr(value)[:80] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def _check_source(source: Any, name: str, where: str) -> None:
    kind = source.get("type") if isinstance(source, dict) else None
    if kind not in ("file", "shar"):
        # lhotse would run a `command` in a shell and open a `url`
        raise DataError(
            f"{where}: the source of {name} must be a `file` or in a shard, but is {_shown(kind)}; it is not opened"
        )
    place = source.get("source")
    if not isinstance(place, str) or not is_path(place) or place.startswith("pipe:") or "://" in place:
        raise DataError(f"{where}: the source of {name} must be a path, but is {_shown(place)}; it is not opened")
    _check_channels(source.get("channels"), "channels", name, where)
