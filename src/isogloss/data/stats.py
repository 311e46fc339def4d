"""The corpus table of LeBenchmark (arXiv 2309.05472, Table 1): per source and language, utterances and hours by gender, and totals.

The totals of that table can be checked against its rows, and here they are: a stated total that does not add up is an error.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lhotse import MonoCut

from isogloss.core.errors import DataError
from isogloss.core.languages import normalize_language

GENDERS = ("male", "female", "unknown")
_COLUMNS = (
    "source", "language", "licence", "utterances", "M", "F", "U", "duration", "M time", "F time", "U time", "speakers", "mean", "speech",
)  # fmt: skip
_LEFT = frozenset(("source", "language", "licence", "speech"))


@dataclass
class CorpusRow:
    """One line: a source in a language. `utterances` and `seconds` are by gender ("male", "female", "unknown").

    `num_speakers` is None where no speaker is known; `num_unknown_speakers` counts utterances without one.
    """

    source: str
    language: str
    license: str = ""
    speech_type: str = ""
    utterances: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GENDERS, 0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(GENDERS, 0.0))
    num_speakers: int | None = None
    num_unknown_speakers: int = 0
    synthetic: bool = False

    @property
    def num_utterances(self) -> int:
        """Utterances of all genders."""
        return sum(self.utterances.values())

    @property
    def total_seconds(self) -> float:
        """Seconds of all genders."""
        return sum(self.seconds.values())

    @property
    def mean_seconds(self) -> float:
        """Mean duration of an utterance in seconds."""
        return self.total_seconds / self.num_utterances if self.num_utterances else 0.0


@dataclass(frozen=True)
class CorpusStats:
    """Rows in order of source and language, and their total."""

    rows: list[CorpusRow]
    total: CorpusRow

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"rows": [asdict(row) for row in self.rows], "total": asdict(self.total)}

    def to_json(self) -> str:
        """Return JSON with the raw numbers."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n"

    def to_csv(self) -> str:
        """Return CSV with one line per source and language (no total, so that a column can be added up) and hours as numbers."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        by_gender = [f"{kind}_{gender}" for kind in ("utterances", "hours") for gender in GENDERS]
        writer.writerow(
            [
                "source",
                "language",
                "licence",
                "speech_type",
                "utterances",
                "hours",
                *by_gender,
                "speakers",
                "mean_seconds",
            ]
        )
        for row in self.rows:
            writer.writerow(
                [
                    row.source,
                    row.language,
                    row.license,
                    row.speech_type,
                    row.num_utterances,
                    f"{row.total_seconds / 3600:.4f}",
                ]
                + [row.utterances[gender] for gender in GENDERS]
                + [f"{row.seconds[gender] / 3600:.4f}" for gender in GENDERS]
                + ["" if row.num_speakers is None else row.num_speakers, f"{row.mean_seconds:.3f}"]
            )
        return out.getvalue()

    def to_markdown(self) -> str:
        """Return the table in Markdown, hours as h:mm:ss, the total last."""
        rule = ["---" if name in _LEFT else "---:" for name in _COLUMNS]
        lines = [
            list(_COLUMNS),
            rule,
            *(_cells(row) for row in self.rows),
            [f"**{cell}**" if cell else "" for cell in _cells(self.total)],
        ]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"

    def to_rich(self, title: str = "") -> Any:
        """Return a `rich.table.Table` that fits 80 columns: below a number, what men, women and unknown contribute."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=title or None, show_footer=True)
        footer = _stacked(self.total)
        for name, cell in footer.items():
            table.add_column(name, footer=escape(cell), justify="left" if name in _LEFT else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(escape(cell) for cell in _stacked(row).values()))
        if any(sum(row.utterances[gender] for gender in GENDERS[:2]) for row in self.rows):
            table.caption = "second lines: male / female / unknown"
        return table


def corpus_stats(cuts: Iterable[MonoCut]) -> CorpusStats:
    """Count cuts by source and language."""
    rows: dict[tuple[str, str], CorpusRow] = {}
    speakers: dict[tuple[str, str], set[str]] = {}
    licenses: dict[tuple[str, str], set[str]] = {}
    kinds: dict[tuple[str, str], set[str]] = {}
    for cut in cuts:
        custom: Mapping[str, Any] = cut.custom or {}
        supervision = cut.supervisions[0] if cut.supervisions else None
        tag = (supervision.language if supervision else None) or "und"
        key = (str(custom.get("source", "")), tag)
        row = rows.setdefault(key, CorpusRow(*key))
        gender = (supervision.gender if supervision else None) or "unknown"
        gender = gender if gender in GENDERS else "unknown"
        row.utterances[gender] += 1
        row.seconds[gender] += cut.duration
        row.synthetic |= bool(custom.get("synthetic"))
        if supervision is not None and supervision.speaker:
            speakers.setdefault(key, set()).add(supervision.speaker)
        else:
            row.num_unknown_speakers += 1
        licenses.setdefault(key, set()).add(str(custom.get("license") or ""))
        kinds.setdefault(key, set()).add(str(custom.get("speech_type") or ""))
    for key, row in rows.items():
        row.num_speakers = len(speakers[key]) if key in speakers else None
        row.license = ", ".join(sorted(licenses[key] - {""}))
        row.speech_type = ", ".join(sorted(kinds[key] - {""}))
    ordered = [rows[key] for key in sorted(rows)]
    # a speaker may speak several languages of one source
    people = {(source, speaker) for (source, _), names in speakers.items() for speaker in names}
    return CorpusStats(ordered, add_up(ordered, num_speakers=len(people) if people else None))


def add_up(rows: Sequence[CorpusRow], *, num_speakers: int | None = None) -> CorpusRow:
    """Return the total of rows."""
    total = CorpusRow("total", _plural(len({row.language for row in rows}), "language"), num_speakers=num_speakers)
    for row in rows:
        for gender in GENDERS:
            total.utterances[gender] += row.utterances[gender]
            total.seconds[gender] += row.seconds[gender]
        total.num_unknown_speakers += row.num_unknown_speakers
        total.synthetic |= row.synthetic
    return total


def check_totals(
    rows: Sequence[CorpusRow],
    *,
    num_utterances: int | None = None,
    seconds: float | None = None,
    tolerance_seconds: float | None = None,
    what: str = "the corpus",
) -> None:
    """Raise a `DataError` where stated totals are not the sums of the rows.

    Utterances must be equal; seconds may differ by rounding, `tolerance_seconds` (default: half a minute per row, for tables
    in hours and minutes).
    """
    total = add_up(rows)
    faults = []
    if num_utterances is not None and num_utterances != total.num_utterances:
        faults.append(
            f"{num_utterances:,} utterances are stated, but the rows add up to {total.num_utterances:,} "
            f"({num_utterances - total.num_utterances:+,})"
        )
    tolerance = 30.0 * max(1, len(rows)) if tolerance_seconds is None else tolerance_seconds
    if seconds is not None and abs(seconds - total.total_seconds) > tolerance:
        sign = "+" if seconds > total.total_seconds else "−"
        faults.append(
            f"{format_duration(seconds)} are stated, but the rows add up to {format_duration(total.total_seconds)} "
            f"({sign}{format_duration(abs(seconds - total.total_seconds))})"
        )
    if faults:
        raise DataError(f"the totals of {what} do not add up: {'; '.join(faults)}; is a source missing from the rows?")


def format_duration(seconds: float) -> str:
    """Return h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600:,}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _cells(row: CorpusRow) -> list[str]:
    counts = [f"{row.utterances[gender]:,}" if row.utterances[gender] else "-" for gender in GENDERS]
    times = [format_duration(row.seconds[gender]) if row.utterances[gender] else "-" for gender in GENDERS]
    speakers = "-" if row.num_speakers is None else f"{row.num_speakers:,}" + ("+" if row.num_unknown_speakers else "")
    is_total = row.source == "total"
    return [
        row.source + (" (synthetic)" if row.synthetic and not is_total else ""),
        row.language if is_total else f"{row.language} {normalize_language(row.language).name}",
        row.license or ("" if is_total else "not told"),
        f"{row.num_utterances:,}",
        *counts,
        format_duration(row.total_seconds),
        *times,
        speakers,
        f"{row.mean_seconds:.1f} s",
        row.speech_type,
    ]


def _stacked(row: CorpusRow) -> dict[str, str]:
    """Return the cells of the narrow table."""
    cells = dict(zip(_COLUMNS, _cells(row), strict=True))
    if row.utterances["male"] or row.utterances["female"]:
        cells["utterances"] += f"\n{cells['M']} / {cells['F']} / {cells['U']}"
        cells["duration"] += f"\n{cells['M time']} / {cells['F time']} / {cells['U time']}"
    cells["source"] = "\n".join(filter(None, (cells["source"], row.license, row.speech_type)))
    return {name: cells[name] for name in ("source", "language", "utterances", "duration", "speakers", "mean")}
