"""Attach time-aligned phones and words to cuts: CTM files (Kaldi, NIST) and Praat TextGrids (MFA, WebMAUS)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lhotse import MonoCut, SupervisionSegment
from lhotse.supervision import AlignmentItem
from lhotse.utils import fastcopy

from isogloss.core.errors import DataError
from isogloss.data._paths import PathLike, printable
from isogloss.data.cut_lines import read_lines

AlignmentKind = Literal["gold", "silver", "synthetic"]
# Names that aligners give their tiers
TIERS = {
    "phones": "phone",
    "phone": "phone",
    "phonemes": "phone",
    "MAU": "phone",
    "words": "word",
    "word": "word",
    "ORT-MAU": "word",
}
_MAX_TEXTGRID_BYTES = 1 << 26
_SHORTEST = 1e-6


@dataclass(frozen=True)
class Attached:
    """`cuts` (all that were given, in order), how many of them got an alignment, and the files or recordings that no cut has."""

    cuts: list[MonoCut]
    num_aligned: int
    strangers: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Alignments:
    """Tables {level: {recording: items in seconds of the recording}}, and who made them; `used` collects the names that were found."""

    levels: Mapping[str, Mapping[str, Sequence[AlignmentItem]]]
    kind: AlignmentKind = "silver"
    used: set[str] = field(default_factory=set)

    def attach(self, cut: MonoCut) -> MonoCut:
        """Return the cut with what its recording has in any level; the same cut where it has nothing."""
        found = {}
        for level, table in self.levels.items():
            name = next((name for name in _names(cut) if name in table), None)
            if name is not None:
                self.used.add(name)
                if items := _within(table[name], cut):
                    found[level] = items
        return _with_alignment(cut, found, self.kind) if found else cut

    def check_used(self, example: str) -> None:
        """Raise a `DataError` where no cut had any of the names; `example` is the id of one."""
        if not self.used:
            known = next(iter(next(iter(self.levels.values()))), "none")
            raise DataError(
                f"no alignment belongs to any cut; the first alignment is of {known!r}, the first cut is {example!r}: "
                "names must be those of the recordings"
            )

    def strangers(self) -> list[str]:
        """Return the names that no cut had so far."""
        return sorted({name for table in self.levels.values() for name in table} - self.used)


def alignments_beside(folder: Path) -> Alignments | None:
    """Return the `phones.ctm` and `words.ctm` of a corpus folder, if any; as nobody says who made them, they are silver."""
    paths = {"phone": folder / "phones.ctm", "word": folder / "words.ctm"}
    levels = {level: _read_ctm(path) for level, path in paths.items() if path.is_file()}
    return Alignments(levels) if levels else None


def ctm_alignments(path: PathLike, level: Literal["phone", "word"], kind: AlignmentKind = "silver") -> Alignments:
    """Read the lines `recording channel start duration label [confidence]` of a CTM file (seconds of the recording)."""
    return Alignments({level: _read_ctm(Path(path))}, kind)


def textgrid_alignments(
    folder: PathLike, tiers: Mapping[str, str] = TIERS, kind: AlignmentKind = "silver"
) -> Alignments:
    """Read the TextGrids below a folder, each named like its recording; `tiers` maps tier names to "phone" and "word".

    Intervals without a label are left out. A tier "speaker - phones" counts as "phones". Raises `DataError`.
    """
    levels: dict[str, dict[str, list[AlignmentItem]]] = {}
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.casefold() == ".textgrid")
    if not paths:
        raise DataError(f"{printable(folder)}: has no .TextGrid files")
    for path in paths:
        for name, items in read_textgrid(path).items():
            level = tiers.get(name, tiers.get(name.rpartition(" - ")[2]))
            if level is not None:
                levels.setdefault(level, {})[path.stem] = items
    if not levels:
        raise DataError(f"{printable(folder)}: no tier is called {', '.join(tiers)}; say which is which with `tiers`")
    return Alignments(levels, kind)


def attach_ctm(
    cuts: Iterable[MonoCut], path: PathLike, level: Literal["phone", "word"], *, kind: AlignmentKind = "silver"
) -> Attached:
    """Attach a CTM file as `alignment[level]`; recordings are found by their id, the cut's id or their file's name.

    `kind` says who made the alignment: people ("gold") or an aligner ("silver"). Raises `DataError` where nothing matches.
    """
    return _attach(list(cuts), ctm_alignments(path, level, kind))


def attach_textgrids(
    cuts: Iterable[MonoCut], folder: PathLike, *, tiers: Mapping[str, str] = TIERS, kind: AlignmentKind = "silver"
) -> Attached:
    """Attach the TextGrids below a folder (`textgrid_alignments`). Raises `DataError` where nothing matches."""
    return _attach(list(cuts), textgrid_alignments(folder, tiers, kind))


def read_textgrid(path: PathLike) -> dict[str, list[AlignmentItem]]:
    """Return {tier: labelled intervals} of a Praat TextGrid, long or short text format, UTF-8 or UTF-16; point tiers are left out."""
    path = Path(path)
    tokens = _textgrid_tokens(path)
    where = printable(path)
    try:
        if [next(tokens), next(tokens)] != ["ooTextFile", "TextGrid"]:
            raise DataError(f"{where}: is no TextGrid in text format; save it as text in Praat")
        _number(next(tokens)), _number(next(tokens))
        num_tiers = int(_number(next(tokens)))
        tiers = {}
        for _ in range(num_tiers):
            kind, name = str(next(tokens)), str(next(tokens))
            _number(next(tokens)), _number(next(tokens))
            count = int(_number(next(tokens)))
            if kind == "TextTier":
                for _ in range(count):
                    next(tokens), next(tokens)
                continue
            tiers[name] = [item for item in (_interval(tokens) for _ in range(count)) if item is not None]
    except (StopIteration, RuntimeError):  # a generator turns StopIteration into RuntimeError
        raise DataError(f"{where}: ends too early; the file was probably cut short") from None
    except ValueError as error:
        raise DataError(f"{where}: is no TextGrid: {error}") from None
    return tiers


def _attach(cuts: list[MonoCut], alignments: Alignments) -> Attached:
    result = [alignments.attach(cut) for cut in cuts]
    alignments.check_used(cuts[0].id if cuts else "none")
    count = sum(new is not old for new, old in zip(result, cuts, strict=True))
    return Attached(result, count, alignments.strangers())


def _names(cut: MonoCut) -> list[str]:
    names = [cut.id, cut.recording.id]
    source = cut.recording.sources[0]
    if source.type == "file":
        names.append(Path(os.fspath(source.source)).stem)
    return names


def _within(items: Sequence[AlignmentItem], cut: MonoCut) -> list[AlignmentItem]:
    """Crop to the cut and count from its start."""
    kept = []
    for item in items:
        start = max(item.start, cut.start)
        end = min(item.start + item.duration, cut.start + cut.duration)
        if end - start > _SHORTEST:
            kept.append(AlignmentItem(item.symbol, round(start - cut.start, 6), round(end - start, 6), item.score))
    return kept


def _with_alignment(cut: MonoCut, found: dict[str, list[AlignmentItem]], kind: AlignmentKind) -> MonoCut:
    supervision = (
        cut.supervisions[0]
        if cut.supervisions
        else SupervisionSegment(id=cut.id, recording_id=cut.recording.id, start=0.0, duration=cut.duration)
    )
    aligned = fastcopy(supervision, alignment={**(supervision.alignment or {}), **found})
    return fastcopy(
        cut, supervisions=[aligned, *cut.supervisions[1:]], custom={**(cut.custom or {}), "alignment_kind": kind}
    )


def _read_ctm(path: Path) -> dict[str, list[AlignmentItem]]:
    if not path.is_file():
        raise DataError(f"{printable(path)}: no such CTM file")
    table: dict[str, list[AlignmentItem]] = {}
    for number, line in read_lines(path):
        place = f"{printable(path)}:{number}"
        try:
            words = line.decode("utf-8").split()
        except UnicodeDecodeError:
            raise DataError(f"{place}: not UTF-8") from None
        if not words or words[0].startswith(";;"):
            continue
        if len(words) not in (5, 6):
            raise DataError(
                f"{place}: must be `recording channel start duration label [confidence]`, but has {len(words)} words"
            )
        try:
            start, duration = _number(words[2]), _number(words[3])
            score = _number(words[5]) if len(words) == 6 and words[5] != "NA" else None
        except ValueError:
            raise DataError(
                f"{place}: start, duration and confidence must be numbers, but are {' '.join(words[2:])[:60]!r}"
            ) from None
        if start < 0 or duration < 0:
            raise DataError(f"{place}: start and duration must not be negative, but are {start} and {duration}")
        table.setdefault(words[0], []).append(AlignmentItem(words[4], start, duration, score))
    if not table:
        raise DataError(f"{printable(path)}: has no lines")
    for items in table.values():
        items.sort(key=lambda item: item.start)
    return table


def _textgrid_tokens(path: Path) -> Iterator[str | float]:
    """Yield the texts and numbers of a TextGrid: in both formats they come in the same order."""
    where = printable(path)
    try:
        if not path.is_file() or path.stat().st_size > _MAX_TEXTGRID_BYTES:
            raise DataError(f"{where}: must be a file of at most {_MAX_TEXTGRID_BYTES} bytes")
        raw = path.read_bytes()
        text = raw.decode("utf-16" if raw[:2] in (b"\xfe\xff", b"\xff\xfe") else "utf-8-sig")
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{where}: is neither UTF-8 nor UTF-16 text") from None
    # texts; numbers that stand alone (neither `item [1]:` nor a part of a word); everything else is a name or a flag
    for match in re.finditer(r'"((?:[^"]|"")*)"|(?<!\S)([-+]?\d[\d.]*(?:[eE][-+]?\d+)?)(?=\s|$)', text):
        yield match[1].replace('""', '"') if match[2] is None else _number(match[2])


def _interval(tokens: Iterator[str | float]) -> AlignmentItem | None:
    start, end, label = _number(next(tokens)), _number(next(tokens)), next(tokens)
    if not isinstance(label, str):
        raise ValueError(f"a label must be a text in quotation marks, but is {label}")
    if end < start or start < 0:
        raise ValueError(f"an interval goes from {start} to {end} s")
    return AlignmentItem(label.strip(), start, round(end - start, 9)) if label.strip() else None


def _number(token: str | float) -> float:
    number = float(token)
    if number != number or abs(number) == float("inf"):
        raise ValueError(f"{token} is no finite number")
    return number
