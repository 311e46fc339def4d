"""Read the manifests of others into rows: metadata.csv, JSON lines, fairseq's tsv, a Kaldi directory, a bare folder.

Nothing of a manifest is believed: each fault is told as `file:line: reason`, and no entry is ever run.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isogloss.core.errors import DataError
from isogloss.core.languages import language_of_folder
from isogloss.data._paths import printable
from isogloss.data._rows import (
    COLUMN_NAMES,
    Rejected,
    Row,
    gender_of,
    path_below,
    rejected_line,
    row_of_fields,
    stem_of,
)
from isogloss.data.audio import SUFFIXES
from isogloss.data.cut_lines import read_lines

_BOM = b"\xef\xbb\xbf"
_MAX_FIELD = 1 << 20
_FAIRSEQ_LABELS = (".wrd", ".ltr", ".phn", ".km")


def rows_of_folder(folder: Path) -> Iterator[Row]:
    """Yield every audio file below a folder, in order of its path; a first-level folder named after a language gives the language."""
    for path in sorted(_walk(folder), key=os.fsencode):
        relative = path.relative_to(folder)
        language = language_of_folder(relative.parts[0]) if len(relative.parts) > 1 else None
        yield Row(
            path=path,
            place=printable(path),
            stem=stem_of(os.fspath(relative)),
            language=language.tag if language else None,
        )


def rows_of_table(path: Path) -> Iterator[Row]:
    """Yield the lines of a `metadata.csv`, or of a tab-separated table with a header (Common Voice's `validated.tsv`)."""
    delimiter = "\t" if path.suffix == ".tsv" else ","
    root = path.parent
    columns: list[str] = []
    for place, cells in _cells(path, delimiter):
        if not columns:
            columns = [cell.strip() for cell in cells]
            _check_columns(columns, place)
            if delimiter == "\t" and (root / "clips").is_dir():
                root = root / "clips"
            continue
        if len(cells) != len(columns):
            raise DataError(
                f"{place}: has {len(cells)} cells, but the header names {len(columns)} columns; is a quote missing?"
            )
        yield row_of_fields(dict(zip(columns, cells, strict=True)), root, place)


def rows_of_json_lines(path: Path) -> Iterator[Row | Rejected]:
    """Yield the lines of a `metadata.jsonl` (key `file_name`) or of a NeMo manifest (key `audio_filepath`).

    Each line stands for itself, so one that cannot be used is rejected, and the others are kept.
    """
    for place, line in json_lines(path):
        try:
            yield row_of_fields(json_object(line, place), path.parent, place)
        except DataError as error:
            yield rejected_line(error, place)


def rows_of_fairseq(path: Path) -> Iterator[Row]:
    """Yield the lines of a fairseq manifest: the root, then `path TAB samples`; labels lie beside it, line by line.

    `.wrd` (or else `.ltr`) is the text, `.phn` the phones, `.km` the units. Where the root of the manifest does not exist
    here, paths start at the manifest's own folder.
    """
    labels = _fairseq_labels(path)
    lines = _lines(path, keep_blank=True)
    place, first = next(lines, (f"{path}:1", b""))
    root = Path(_decode(first, place).strip() or ".")
    if not root.is_dir():
        root = path.parent
    count = 0
    for place, line in lines:
        if not line.strip():
            continue
        name, tab, size = _decode(line, place).partition("\t")
        if not tab or not size.strip().isdecimal() or len(size) > 18:
            raise DataError(f"{place}: must be a path, a tab and a number of samples, but is {line[:80]!r}")
        row = Row(path_below(root, name, place), place, stem_of(name), num_samples=int(size))
        for suffix, values in labels.items():
            if count >= len(values):
                raise DataError(f"{place}: {path.with_suffix(suffix).name} has only {len(values)} lines")
            _add_label(row, suffix, values[count])
        count += 1
        yield row
    for suffix, values in labels.items():
        if len(values) != count:
            raise DataError(
                f"{path.with_suffix(suffix)}:{len(values)}: has {len(values)} lines, but {path.name} has {count} files"
            )


def rows_of_kaldi(folder: Path) -> Iterator[Row]:
    """Yield the utterances of a Kaldi directory: wav.scp, and segments, text, utt2spk, spk2gender, utt2lang, spk2age where there.

    A relative path in wav.scp starts at the directory, or else, as in Kaldi, at the working directory. An entry that is a command
    is a `DataError`: it is not run.
    """
    recordings = {key: (_kaldi_path(folder, rest, place), place) for key, rest, place in _pairs(folder / "wav.scp")}
    texts = _optional_pairs(folder, "text")
    speakers = _optional_pairs(folder, "utt2spk")
    languages = _optional_pairs(folder, "utt2lang")
    genders = _optional_pairs(folder, "spk2gender")
    ages = _optional_pairs(folder, "spk2age")
    utterances = (
        _kaldi_segments(folder, recordings)
        if (folder / "segments").is_file()
        else _kaldi_recordings(folder, recordings)
    )
    known = set()
    for row in utterances:
        known.add(row.id)
        row.text = texts.get(row.id)
        row.speaker = speakers.get(row.id)
        row.language = languages.get(row.id)
        if row.speaker is not None:
            row.gender = gender_of(genders.get(row.speaker))
            if row.speaker in ages:
                row.custom["age"] = ages[row.speaker]
        yield row
    for name, table in (("text", texts), ("utt2spk", speakers), ("utt2lang", languages)):
        if strangers := sorted(table.keys() - known):
            raise DataError(
                f"{folder / name}: has {strangers[0]!r}, which no recording or segment has; are the files of one set?"
            )


def json_object(line: bytes, place: str) -> dict[str, Any]:
    """Return the JSON object of a line, or raise a `DataError` with its place."""
    try:
        value = json.loads(_decode(line, place))
    except (ValueError, RecursionError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{place}: not a line of JSON: {what}") from None
    if not isinstance(value, dict):
        raise DataError(f"{place}: must be a JSON object, but is a {type(value).__name__}")
    return value


def first_object(path: Path) -> dict[str, Any] | None:
    """Return the first line that is a JSON object, None where there are no lines; `DataError` of the first where none is one."""
    fault: DataError | None = None
    for place, line in json_lines(path):
        try:
            return json_object(line, place)
        except DataError as error:
            fault = fault or error
    if fault is not None:
        raise fault
    return None


def json_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (place, line) of JSON lines; a file that begins with `[` is one `DataError`, though its last line may be an object."""
    for number, (place, line) in enumerate(_lines(path)):
        if number == 0 and line.lstrip().startswith(b"["):
            raise DataError(f"{place}: a JSON array; write one object per line")
        yield place, line


def first_line(path: Path) -> tuple[str, bytes]:
    """Return (place, content) of the first line that is not blank, without a byte order mark; empty where there is none."""
    return next(_lines(path), (f"{path}:1", b""))


def regular_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line number, line) of a regular file, gzip or not; what cannot be opened is a `DataError`."""
    if not path.is_file():  # opening a FIFO would wait for ever
        raise DataError(f"{printable(path)}: is no file, or not a regular one")
    try:
        yield from read_lines(path)
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read: {error.strerror or error}") from None


def _lines(path: Path, *, keep_blank: bool = False) -> Iterator[tuple[str, bytes]]:
    for number, line in regular_lines(path):
        text = line.removeprefix(_BOM) if number == 1 else line
        if keep_blank or text.strip():
            yield f"{printable(path)}:{number}", text


def _decode(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None


def _cells(path: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (place, cells) of each record; a quoted cell may go over several lines."""
    csv.field_size_limit(_MAX_FIELD)
    current = f"{printable(path)}:1"

    def texts() -> Iterator[str]:
        nonlocal current
        for place, line in _lines(path, keep_blank=True):
            current = place
            yield _decode(line, place) + "\n"

    # tables with tabs quote nothing: a sentence may hold a lone quotation mark
    if delimiter == "\t":
        reader = csv.reader(texts(), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield current, cells
    except csv.Error as error:
        raise DataError(f"{current}: not a table of cells: {error}") from None


def _check_columns(columns: list[str], place: str) -> None:
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise DataError(f"{place}: the column {twice[0]!r} is there twice")
    if not any(COLUMN_NAMES.get(name.casefold()) == "file_name" for name in columns):
        advice = ""
        if (
            len(columns) == 1
            and place.rpartition(":")[0].endswith(".csv")
            and any(mark in columns[0] for mark in ";\t")
        ):
            advice = "; its cells must be separated by commas: save it again so"
        raise DataError(
            f"{place}: a column `file_name` must name the recordings, but the columns are {', '.join(columns)[:200]}{advice}"
        )


def _fairseq_labels(path: Path) -> dict[str, list[str]]:
    labels = {}
    for suffix in _FAIRSEQ_LABELS:
        beside = path.with_suffix(suffix)
        if beside.is_file():
            labels[suffix] = [_decode(line, place).strip() for place, line in _lines(beside, keep_blank=True)]
    return labels


def _add_label(row: Row, suffix: str, value: str) -> None:
    if suffix == ".wrd":
        row.text = value
    elif suffix == ".ltr":
        row.custom["letters"] = value
        row.text = value.replace(" ", "").replace("|", " ").strip() if row.text is None else row.text
    elif suffix == ".phn":
        row.custom["phones"] = value
    else:
        row.custom["units"] = value


def _pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (key, rest of the line, place) of a Kaldi table; a key that comes twice is a `DataError`."""
    seen: set[str] = set()
    for place, line in _lines(path):
        key, *rest = _decode(line, place).split(maxsplit=1)
        if key in seen:
            raise DataError(f"{place}: {key!r} comes twice")
        seen.add(key)
        yield key, rest[0].strip() if rest else "", place


def _optional_pairs(folder: Path, name: str) -> dict[str, str]:
    path = folder / name
    return {key: rest for key, rest, _ in _pairs(path)} if path.is_file() else {}


def _kaldi_path(folder: Path, name: str, place: str) -> Path:
    path = path_below(folder, name, place)
    if Path(name).is_absolute() or os.path.lexists(path):
        return path
    other = Path.cwd() / name
    return other if os.path.lexists(other) else path


def _kaldi_tried(folder: Path, path: Path) -> str:
    """Return where a missing recording was looked for; an absolute path was in one place only."""
    if not path.is_relative_to(folder):
        return ""
    return f"; a relative path starts at {printable(folder)}, or else at the working directory {printable(Path.cwd())}"


def _kaldi_recordings(folder: Path, recordings: dict[str, tuple[Path, str]]) -> Iterator[Row]:
    for key, (path, place) in recordings.items():
        yield Row(path, place, key, id=key, if_missing=_kaldi_tried(folder, path))


def _kaldi_segments(folder: Path, recordings: dict[str, tuple[Path, str]]) -> Iterator[Row]:
    for key, rest, place in _pairs(folder / "segments"):
        parts = rest.split()
        if len(parts) != 3:
            raise DataError(f"{place}: must be `utterance recording start end`, but has {len(parts) + 1} words")
        if parts[0] not in recordings:
            raise DataError(f"{place}: the recording {parts[0]!r} is not in wav.scp")
        try:
            start, end = float(parts[1]), float(parts[2])
        except ValueError:
            start, end = -1.0, -1.0
        if not 0 <= start < end < 1e6:
            raise DataError(
                f"{place}: must have 0 <= start < end in seconds, but has {parts[1][:30]!r} and {parts[2][:30]!r}"
            )
        path = recordings[parts[0]][0]
        tried = _kaldi_tried(folder, path)
        yield Row(path, place, key, id=key, start=start, duration=end - start, if_missing=tried)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield audio files by their suffix; hidden files and folders, and links to folders, are left out."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].casefold() in SUFFIXES:  # noqa: PTH122
                yield Path(parent) / name
        # a folder named like a recording is named in the report too
        yield from (Path(parent) / name for name in folders if os.path.splitext(name)[1].casefold() in SUFFIXES)  # noqa: PTH122
