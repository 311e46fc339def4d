"""What is reported: one record per figure, written as JSON lines, shown as Markdown, CSV, LaTeX or on the terminal.

A record carries what a reader needs to believe it: the interval and what was resampled, the seeds, the search budget, the
kind of labels, whether the speech was synthetic, and the energy. Non-finite numbers are null in JSON.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from isogloss.core.errors import DataError
from isogloss.core.files import write_whole
from isogloss.evaluation.bootstrap import Estimate

Labels = Literal["gold", "silver", "synthetic", ""]


def worst_labels(kinds: Iterable[Labels]) -> Labels:
    """Return what is to be said of labels of several kinds: untold if any is, else silver, else synthetic, else gold."""
    found = set(kinds)
    order: tuple[Labels, ...] = ("", "silver", "synthetic", "gold")
    return next((kind for kind in order if kind in found), "")


@dataclass(frozen=True)
class ResultRecord:
    """One figure: system × task × dataset × metric, its interval, and how it came about.

    `value`, `low` and `high` are in the metric's own unit (fractions, not percent). `unit` is what was resampled. `labels`
    tells where the reference comes from: people, a forced aligner, or the synthesiser; it is empty where the figure needs no labels,
    and where nothing tells who made them. `search_budget` counts the
    configurations that were tried on the development set before this one was scored.
    """

    system: str
    task: str
    dataset: str
    metric: str
    value: float
    low: float
    high: float
    unit: str = "utterance"
    num_units: int = 0
    sd: float = math.nan
    level: float = 0.95
    method: str = ""
    caveat: str = ""
    higher_is_better: bool = False
    labels: Labels = "gold"
    synthetic_speech: bool = False
    seeds: tuple[int, ...] = ()
    search_budget: int = 1
    energy: Mapping[str, Any] | None = None
    notes: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("system", "task", "dataset", "metric"):
            if not getattr(self, name):
                raise DataError(f"`{name}` of a result must not be empty")
        if self.labels not in get_args(Labels):
            raise DataError(f"`labels` must be gold, silver, synthetic or empty, but is `{self.labels}`")
        if self.low > self.high:
            raise DataError(f"`low` must be at most `high`, but they are {self.low} and {self.high}")

    @classmethod
    def from_estimate(
        cls,
        estimate: Estimate,
        *,
        system: str,
        task: str,
        dataset: str,
        metric: str,
        higher_is_better: bool,
        labels: Labels = "gold",
        synthetic_speech: bool = False,
        seeds: Sequence[int] = (),
        search_budget: int = 1,
        energy: Mapping[str, Any] | None = None,
        notes: str = "",
        meta: Mapping[str, Any] | None = None,
    ) -> ResultRecord:
        """Make the record of an estimate."""
        return cls(
            system=system,
            task=task,
            dataset=dataset,
            metric=metric,
            value=estimate.value,
            low=estimate.low,
            high=estimate.high,
            unit=estimate.unit,
            num_units=estimate.num_units,
            sd=estimate.sd,
            level=estimate.level,
            method=estimate.method,
            caveat=estimate.caveat,
            higher_is_better=higher_is_better,
            labels=labels,
            synthetic_speech=synthetic_speech,
            seeds=tuple(seeds),
            search_budget=search_budget,
            energy=energy,
            notes=notes,
            meta=meta or {},
        )

    @property
    def estimate(self) -> Estimate:
        """The figure with its interval."""
        return Estimate(
            self.value,
            self.low,
            self.high,
            self.sd,
            self.method,
            self.num_units,
            self.level,
            self.unit,
            self.caveat,
        )


def write_results(path: Path | str, records: Iterable[ResultRecord], *, append: bool = False) -> None:
    """Write records as JSON lines (UTF-8), replacing the file unless `append`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(_plain(asdict(r)), ensure_ascii=False, allow_nan=False) + "\n" for r in records)
    if not append:
        write_whole(path, text)
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def read_results(path: Path | str) -> list[ResultRecord]:
    """Read records; a line that is not one is a `DataError` with its number."""
    path = Path(path)
    known = {f.name: f for f in fields(ResultRecord)}
    records = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of results") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            unknown = sorted(set(row) - set(known))
            if unknown:
                raise DataError(f"unknown field `{unknown[0]}`")
            row["seeds"] = tuple(row.get("seeds", ()))
            for name in ("value", "low", "high", "sd"):
                row[name] = math.nan if row.get(name) is None else float(row[name])
            records.append(ResultRecord(**row))
        except (ValueError, TypeError, AttributeError, RecursionError, DataError) as error:
            raise DataError(f"{path}:{number}: not a result: {error}") from None
    return records


# Columns of every table: heading, and the text of a record.
_SHOWN_AS_PERCENT = frozenset(
    (
        "per",
        "wer",
        "cer",
        "accuracy",
        "macro_accuracy",
        "error",
        "masked_error",
        "macro_f1",
        "f1",
        "eer",
        "abx",
        "phone_purity",
        "cluster_purity",
    )
)


def is_percent(metric: str) -> bool:
    """True for metrics that are shown in percent: error rates, accuracies, F1, EER, ABX, purities."""
    return any(metric == name or metric.startswith(f"{name}_") for name in _SHOWN_AS_PERCENT)


def format_value(record: ResultRecord) -> str:
    """Return "12.3 [11.0, 13.7]", in percent where the metric is a rate."""
    return record.estimate.format(scale=100.0 if is_percent(record.metric) else 1.0)


def rows(records: Iterable[ResultRecord]) -> list[dict[str, str]]:
    """Return the cells of a table, one dictionary per record; every table below shows the same cells."""
    records = list(records)
    levels = {record.level for record in records}
    value = f"value [{round(100 * levels.pop())} %]" if len(levels) == 1 else "value [interval]"
    table = []
    for record in records:
        arrow = "↑" if record.higher_is_better else "↓"
        percent = " %" if is_percent(record.metric) else ""
        labels = ", ".join(filter(None, (record.labels, "synthetic speech" if record.synthetic_speech else "")))
        table.append(
            {
                "system": record.system,
                "task": record.task,
                "dataset": record.dataset,
                "metric": f"{record.metric}{percent} {arrow}",
                value: format_value(record),
                "resampled": _counted(record) + (" †" if record.caveat else ""),
                "labels": labels,
            }
        )
    return table


def _counted(record: ResultRecord) -> str:
    """Return "12 speakers"; nothing of a figure of which nobody counted what it is over."""
    if not record.num_units:
        return ""
    return f"{record.num_units} {record.unit}{'' if record.num_units == 1 else 's'}"


def footnotes(records: Iterable[ResultRecord]) -> list[str]:
    """Return the caveats of the records marked †, each once."""
    return list(dict.fromkeys(f"† {record.caveat}" for record in records if record.caveat))


def to_markdown(records: Sequence[ResultRecord]) -> str:
    """Return a Markdown table with its footnotes."""
    table = rows(records)
    if not table:
        return ""
    head = list(table[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_escape_pipe(row[h]) for h in head) + " |" for row in table]
    notes = footnotes(records)
    return "\n".join(lines + ([""] if notes else []) + notes) + "\n"


def to_csv(records: Sequence[ResultRecord]) -> str:
    """Return CSV with the raw numbers, one column per field."""
    out = io.StringIO()
    names = [f.name for f in fields(ResultRecord)]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        row = _plain(asdict(record))
        writer.writerow({k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in row.items()})
    return out.getvalue()


def to_latex(records: Sequence[ResultRecord]) -> str:
    """Return a LaTeX `tabular` (booktabs) of the same cells."""
    table = rows(records)
    if not table:
        return ""
    head = list(table[0])
    lines = [f"\\begin{{tabular}}{{{'l' * len(head)}}}", "\\toprule"]
    lines.append(" & ".join(_escape_latex(h) for h in head) + r" \\")
    lines.append("\\midrule")
    lines += [" & ".join(_escape_latex(row[h]) for h in head) + r" \\" for row in table]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def to_rich(records: Sequence[ResultRecord], title: str = "") -> Any:
    """Return a `rich.table.Table` of the same cells, footnotes as its caption."""
    from rich.markup import escape
    from rich.table import Table

    table = rows(records)
    shown = Table(title=title or None, caption=escape("\n".join(footnotes(records))) or None, caption_justify="left")
    for head in table[0] if table else ():
        # Where the terminal is narrow, words are folded, and figures never cut.
        is_figure = head.startswith("value")
        shown.add_column(escape(head), justify="right" if is_figure else "left", overflow="fold", no_wrap=is_figure)
    for row in table:
        shown.add_row(*(escape(cell) for cell in row.values()))
    return shown


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _escape_pipe(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_LATEX = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
_LATEX |= {
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "†": r"$\dagger$",
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
}


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)
