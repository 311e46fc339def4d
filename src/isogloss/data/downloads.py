"""Corpora of languages and dialects as they lie on a disk after their archives were unpacked: parts, labels, who speaks.

FLEURS (arXiv 2205.12446), Common Voice (arXiv 1912.06670), VoxLingua107 (arXiv 2011.12998), ADI-17 (ICASSP 2020). Nothing
is downloaded here. A reader yields the rows of each part; `import_corpus` makes a corpus of each.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.languages import language_of_folder, normalize_language
from isogloss.core.lookup import nearest
from isogloss.data._paths import printable
from isogloss.data._rows import Rejected, Row, cuts_of_rows, gender_of, name_rows
from isogloss.data._tables import regular_lines, rows_of_folder, rows_of_table
from isogloss.data._write import write_corpus

Parts = dict[str, Iterator[Row]]
_PARTS = ("train", "dev", "test")
_VIDEO = re.compile(r"(.{11})__(?:U__S|S)")  # VoxLingua107 names a segment after its video
_COUNTRIES = {
    "ALG": "DZ", "EGY": "EG", "IRA": "IQ", "JOR": "JO", "KSA": "SA", "KUW": "KW", "LEB": "LB", "LIB": "LY", "MAU": "MR", "MOR": "MA",
    "OMA": "OM", "PAL": "PS", "QAT": "QA", "SUD": "SD", "SYR": "SY", "UAE": "AE", "YEM": "YE",
}  # fmt: skip


@dataclass
class Imported:
    """Utterances and seconds of each part that was written, and what could not be used."""

    counts: dict[str, tuple[int, float]] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)


def import_corpus(name: str, folder: Path, out: Path) -> Imported:
    """Write `out/PART` for each part of a downloaded corpus; cuts point to the audio, which stays where it is.

    `ConfigError` for an unknown corpus, `DataError` for a folder that does not look like it.
    """
    if name not in READERS:
        raise ConfigError(f"there is no reader of `{name}`; {nearest(name, list(READERS))}")
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: no such folder; unpack the corpus first")
    result = Imported()
    for part, rows in READERS[name](folder.resolve()).items():
        cuts = []
        languages = set()
        for item in cuts_of_rows(name_rows(rows), source=name, language=None):
            if isinstance(item, Rejected):
                result.rejected.append(item)
                continue
            cuts.append(item)
            languages.add(item.supervisions[0].language)
        if cuts:
            write_corpus(cuts, out / part)
            result.counts[part] = (len(cuts), sum(cut.duration for cut in cuts))
            result.languages[part] = len(languages - {None})
    if not result.counts:
        reason = f" (the first: {result.rejected[0].reason})" if result.rejected else ""
        raise DataError(f"{printable(folder)}: no recording of {name} can be used{reason}")
    return result


def _fleurs(folder: Path) -> Parts:
    """`af_za/train.tsv` and `af_za/audio/train/NAME.wav`, also below `data/`, or with the audio in `af_za/train/`."""
    root = folder / "data" if (folder / "data").is_dir() else folder
    places = [place for place in sorted(root.iterdir()) if any((place / f"{part}.tsv").is_file() for part in _PARTS)]
    if not places:
        raise DataError(
            f"{printable(folder)}: has no `LANGUAGE/train.tsv`, as FLEURS has; give the folder of its languages"
        )

    def rows(part: str) -> Iterator[Row]:
        for place in places:
            table = place / f"{part}.tsv"
            if table.is_file():
                yield from _fleurs_rows(table, part)

    return {part: rows(part) for part in _PARTS}


def _fleurs_rows(table: Path, part: str) -> Iterator[Row]:
    language = _folder_language(table.parent)
    audio = next((p for p in (table.parent / "audio" / part, table.parent / part) if p.is_dir()), None)
    if audio is None:
        raise DataError(f"{printable(table)}: has no `audio/{part}/` beside it; unpack audio/{part}.tar.gz there")
    for number, line in regular_lines(table):
        place = f"{printable(table)}:{number}"
        if not line.strip():
            continue
        cells = line.decode("utf-8", errors="replace").rstrip("\r\n").split("\t")
        if len(cells) != 7:
            raise DataError(
                f"{place}: must have 7 cells (id, file, text, text, characters, samples, gender), but has {len(cells)}"
            )
        sentence, name, _, text, _, samples, gender = cells
        if "/" in name or not samples.isdecimal():
            raise DataError(
                f"{place}: must name a file and its number of samples, but has {name[:50]!r} and {samples[:20]!r}"
            )
        yield Row(
            audio / name,
            place,
            f"{table.parent.name}-{Path(name).stem}",
            text=text,
            language=language,
            gender=gender_of(gender),
            custom={"prompt": f"fleurs-{sentence}", "speech_type": "read", "license": "CC-BY-4.0"},
        )


def _common_voice(folder: Path) -> Parts:
    """`LOCALE/train.tsv` with its `clips/`, for one locale or many, also below the folder of a release."""
    places = [folder, *_subfolders(folder)]
    places += [inner for place in places[1:] if not (place / "clips").is_dir() for inner in _subfolders(place)]
    locales = [place for place in places if (place / "clips").is_dir() and (place / "train.tsv").is_file()]
    if not locales:
        raise DataError(f"{printable(folder)}: has no `LOCALE/train.tsv` with `clips/` beside it, as Common Voice has")

    def rows(part: str) -> Iterator[Row]:
        for place in locales:
            table = place / f"{part}.tsv"
            if not table.is_file():
                continue
            for row in rows_of_table(table):
                row.language = row.language or _folder_language(place)
                row.custom = {"speech_type": "read", "license": "CC0-1.0"}
                yield row

    return {part: rows(part) for part in _PARTS}


def _voxlingua107(folder: Path) -> Parts:
    """`LANGUAGE/VIDEO__U__S….wav`, and the same below `dev/`; a segment's video stands for its speaker."""
    train = folder / "train" if (folder / "train").is_dir() else folder
    dev = folder / "dev"
    if other := _other_form(folder):
        raise DataError(
            f"{printable(folder)}: has {other[1]}, and not the form of VoxLingua107 (`LANGUAGE/VIDEO__U__S….wav`); try "
            f"`isogloss corpus import {other[0]}`"
        )

    def rows(place: Path) -> Iterator[Row]:
        for row in rows_of_folder(place):
            if place != dev and dev in row.path.parents:
                continue
            # Deeper folders may be parts: read as one they would put the test into the training.
            if row.path.parent.parent != place:
                raise DataError(
                    f"{printable(row.path)}: must lie in a folder named after its language in {printable(place)}, as VoxLingua107's "
                    "recordings do (`LANGUAGE/VIDEO__U__S….wav`); give the folder of its languages, or another importer "
                    f"({', '.join(READERS)})"
                )
            video = _VIDEO.match(row.path.name)
            row.speaker = f"video-{video[1]}" if video is not None else None
            row.custom = {"speech_type": "web video", "license": "CC-BY-4.0"}
            if row.language is not None:
                yield row

    return {"train": rows(train), "dev": rows(dev)} if dev.is_dir() else {"train": rows(train)}


def _other_form(folder: Path) -> tuple[str, str] | None:
    """Return the importer of a folder that has the marks of another corpus than VoxLingua107, and the mark."""
    near = [folder, *_subfolders(folder)]
    for place in (*near, *(inner for p in near[1:] for inner in _subfolders(p))):
        table = next((f"{part}.tsv" for part in _PARTS if (place / f"{part}.tsv").is_file()), None)
        if table is not None:
            return "common-voice" if (place / "clips").is_dir() else "fleurs", f"`{printable(place / table)}`"
        if place.parent.name in _PARTS and place.name in _COUNTRIES:
            return "adi17", f"`{printable(place)}`"
    return None


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, in order; its files, which may be millions, are neither kept nor looked at."""
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if entry.is_dir())


def _adi17(folder: Path) -> Parts:
    """`PART/DIALECT/…wav`, or `PART/…wav` with a file of `NAME DIALECT` lines beside or in it; dialects become `ar-EG`, `ar-SA`, …."""
    parts = {part: folder / part for part in _PARTS if (folder / part).is_dir()}
    if not parts:
        raise DataError(f"{printable(folder)}: has no folder `train`, `dev` or `test`, as ADI-17 has")
    return {part: _dialect_rows(place, part) for part, place in parts.items()}


def _dialect_rows(folder: Path, part: str) -> Iterator[Row]:
    listed = _dialect_list(folder, part)
    for row in rows_of_folder(folder):
        above = [name for name in row.path.relative_to(folder).parts[:-1] if name.upper() in _COUNTRIES]
        dialect = above[0].upper() if above else listed.get(row.path.stem)
        if dialect is None:
            raise DataError(
                f"{printable(row.path)}: lies in no folder named after a dialect ({', '.join(sorted(_COUNTRIES))}), and no list names it"
            )
        row.language = f"ar-{_COUNTRIES[dialect]}"
        video = re.match(r"(.{11})_\d", row.path.stem)
        row.speaker = f"video-{video[1]}" if video is not None else None
        row.custom = {"speech_type": "web video", "variety": dialect}
        yield row


def _dialect_list(folder: Path, part: str) -> dict[str, str]:
    """Return the dialect of each recording that a list names: `utt2lang`, or a text file with the part and `label` in its name."""
    found: dict[str, str] = {}
    beside = [p for p in folder.parent.glob("*label*.txt") if part in p.name]
    for path in [folder / "utt2lang", *sorted(folder.glob("*label*.txt")), *sorted(beside)]:
        for number, line in regular_lines(path) if path.is_file() else ():
            cells = line.decode("utf-8", errors="replace").split()
            if len(cells) == 2 and cells[1].upper() in _COUNTRIES:
                found[Path(os.fspath(cells[0])).stem] = cells[1].upper()
            elif cells:
                raise DataError(f"{printable(path)}:{number}: must be a name and a dialect, but is {line[:60]!r}")
    return found


def _folder_language(folder: Path) -> str:
    language = language_of_folder(folder.name)
    return language.tag if language is not None else normalize_language(folder.name).tag


READERS: dict[str, Callable[[Path], Parts]] = {
    "fleurs": _fleurs,
    "common-voice": _common_voice,
    "voxlingua107": _voxlingua107,
    "adi17": _adi17,
}
