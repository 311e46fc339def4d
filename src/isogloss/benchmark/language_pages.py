"""Reports by language as pages: each one HTML file, its charts as SVG files beside it, and its records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isogloss.benchmark.charts import Interval, interval_chart, scatter_chart, standalone
from isogloss.benchmark.heat_map import heat_map
from isogloss.benchmark.report import Report
from isogloss.evaluation.bootstrap import Estimate
from isogloss.evaluation.language_reports import GainByHours, TransferReport
from isogloss.evaluation.subnetworks import Overlap
from isogloss.evaluation.tables import ResultRecord, footnotes, is_percent, rows, write_results
from isogloss.evaluation.under_masks import Lesions, Table, rise_of


@dataclass
class LanguagePage:
    """A page in the making: its charts by file name, what is said above them, and the records below."""

    title: str
    lead: str
    records: list[ResultRecord]
    charts: dict[str, tuple[str, str]] = field(default_factory=dict)  # name → SVG, caption
    notes: list[str] = field(default_factory=list)

    def write(self, folder: Path, name: str) -> Path:
        """Write `NAME.html`, `NAME-CHART.svg` (`NAME.svg` where there is one chart), and the records to `NAME.jsonl`."""
        folder.mkdir(parents=True, exist_ok=True)
        page = Report(self.title, self.lead)
        for note in self.notes:
            page.paragraph(note, kind="note")
        page.charts(list(self.charts.values()))
        for stem, (svg, _) in self.charts.items():
            file = f"{name}.svg" if len(self.charts) == 1 else f"{name}-{stem}.svg"
            (folder / file).write_text(standalone(svg), encoding="utf-8")
        page.heading("Figures")
        table = rows(self.records)
        header = list(table[0]) if table else []
        numeric = [i for i, head in enumerate(header) if head.startswith("value")]
        page.table(header, [list(row.values()) for row in table], numeric=numeric)
        for note in footnotes(self.records):
            page.paragraph(note, kind="note")
        path = folder / f"{name}.html"
        page.write(path)
        write_results(folder / f"{name}.jsonl", self.records)
        return path


def overlap_chart(title: str, overlap: Overlap, order: Sequence[int]) -> str:
    """Draw the overlap of every pair of languages, in this order: white is what random masks of these sizes would have, dark is one."""
    names = [overlap.languages[i] for i in order]
    expected = _mean_off_diagonal(overlap.expected_LL)
    values = [[math.nan if i == j else float(overlap.iou_LL[i, j]) for j in order] for i in order]
    return heat_map(title, names, names, values, reference=expected, farthest=1 - expected)


def overlap_caption(overlap: Overlap) -> str:
    """Say what the heat map shows, and the random expectation."""
    return (
        f"Intersection over union of the weights that two languages leave out: {_mean_off_diagonal(overlap.iou_LL):.3f} on average, "
        f"{_mean_off_diagonal(overlap.expected_LL):.3f} = ρ/(2 − ρ) for masks at random. Kin stand side by side."
    )


def mask_chart(masks: Table, order: Sequence[str], metric: str) -> str:
    """Draw by how much each language (column) errs more under another's mask (row) than under its own."""
    table = {name: {other: masks[name][other] for other in order} for name in order}
    rise = rise_of(table, {name: masks[name][name] for name in order})
    np.fill_diagonal(rise, math.nan)
    return _rise_chart("Under another's mask", rise, order, metric, "mask of")


def lesion_charts(cut: Lesions, order: Sequence[str], metric: str) -> tuple[str, str]:
    """Draw by how much each language (column) errs more without the weights of one (row), and without as many at random.

    Both have the scale of the first.
    """
    rises = [
        rise_of({name: {other: table[name][other] for other in order} for name in order}, cut.whole)
        for table in (cut.own, cut.random)
    ]
    farthest = float(np.abs(rises[0]).max())
    first, second = (
        _rise_chart(title, rise, order, metric, "without", farthest)
        for title, rise in zip(("Without a language's own", "Without as many at random"), rises, strict=True)
    )
    return first, second


def mask_page(
    masks: Table,
    cut: Lesions,
    order: Sequence[str],
    records: list[ResultRecord],
    *,
    system: str,
    metric: str,
    notes: Sequence[str] = (),
) -> LanguagePage:
    """Return the page of other masks and lesions."""
    unit = "points of error rate" if is_percent(f"{metric}_rise") else "nats a target"
    page = LanguagePage(
        f"Whose weights: {system}",
        "What another language's mask costs, and whom the loss of a language's own weights hurts.",
        records,
        notes=list(notes),
    )
    page.charts["masks"] = (
        mask_chart(masks, order, metric),
        f"Rise in {unit} of the language in the column under the mask of the language in the row.",
    )
    for kind, svg in zip(("lesions", "random"), lesion_charts(cut, order, metric), strict=True):
        page.charts[kind] = (svg, f"Rise in {unit} of the dense model, which uses no mask.")
    return page


def gain_page(
    found: GainByHours, records: list[ResultRecord], *, system: str, metric: str, notes: Sequence[str]
) -> LanguagePage:
    """Return the page of gains against hours."""
    scale, unit = _scale(f"{metric}_gain", metric)
    points = [
        (name, found.hours[name], scale * own.value, scale * own.low, scale * own.high)
        for name, own in found.gains.items()
    ]
    page = LanguagePage(
        f"Gain by hours heard: {system}",
        f"Spearman's ρ {found.correlation.format(digits=2)}, permutation p = {found.p_value:.3f}; below zero where languages that were "
        "little heard gain most.",
        records,
        notes=list(notes),
    )
    page.charts["gain"] = (
        scatter_chart(f"Gain: {system}", "hours heard in pretraining", f"gain, {unit}", points),
        "One mark a language, with its interval; above the dashed line the language got better.",
    )
    return page


def transfer_page(
    found: TransferReport,
    records: list[ResultRecord],
    *,
    multilingual: str,
    adapted: str,
    metric: str,
    notes: Sequence[str],
) -> LanguagePage:
    """Return the page of transfer and interference."""
    scale, unit = _scale(f"{metric}_gain", metric)
    page = LanguagePage(
        f"Transfer and interference: {adapted}",
        "Languages that sharing helps and languages that it costs, told apart on a development set. A method that succeeds keeps "
        "the transfer and undoes the interference.",
        records,
        notes=list(notes),
    )
    for name, group in (("transfer", found.transfer), ("interference", found.interference)):
        if group is not None:
            told = f"{name}: {', '.join(group.languages)}"
            page.charts[name] = (
                interval_chart(
                    name.capitalize(),
                    f"gain, {unit}",
                    [
                        _interval("sharing", group.shared, scale),
                        _interval(adapted, group.adapted, scale, emphasis=True),
                    ],
                    reference=0.0,
                ),
                f"{told}. Sharing: monolingual to {multilingual}; {adapted}: from {multilingual} on.",
            )
    return page


def forgetting_page(
    table: Mapping[str, Mapping[str, Estimate]], records: list[ResultRecord], *, metric: str, notes: Sequence[str]
) -> LanguagePage:
    """Return the page of the forgetting matrix."""
    scale, unit = _scale(f"{metric}_rise", metric)
    languages = list(dict.fromkeys(name for own in table.values() for name in own))
    values = [[scale * own[n].value if n in own else math.nan for n in languages] for own in table.values()]
    page = LanguagePage(
        "Forgetting",
        "How much worse each adapted system is on each language than the model that it starts from; below zero it is better.",
        records,
        notes=list(notes),
    )
    page.charts["forgetting"] = (
        heat_map(
            f"{'Loss' if metric == 'loss' else 'Errors'} after − before, {unit}",
            list(table),
            languages,
            values,
            x_label="tested on",
            y_label="adapted",
            digits=_digits(np.array(values)),
        ),
        "Positive is forgotten.",
    )
    return page


def _rise_chart(
    title: str, rise_MK: np.ndarray, order: Sequence[str], metric: str, y_label: str, farthest: float | None = None
) -> str:
    scale, unit = _scale(f"{metric}_rise", metric)
    if scale * np.nanmax(np.abs(rise_MK), initial=0.0) < 0.1:
        scale, unit = 1000 * scale, f"thousandths of {unit}"
    values = (scale * rise_MK).tolist()
    return heat_map(
        f"{title}, {unit}",
        order,
        order,
        values,
        x_label="tested on",
        y_label=y_label,
        digits=_digits(scale * rise_MK),
        farthest=None if not farthest else scale * farthest,
    )


def _scale(name: str, metric: str) -> tuple[float, str]:
    """Return the factor to what is shown, and its unit."""
    if is_percent(name):
        return 100.0, "points"
    return 1.0, "nats" if metric == "loss" else metric.replace("_", " ")


def _digits(values: np.ndarray) -> int:
    """Two digits of the largest value, at most two behind the point: a cell holds no more."""
    largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    return min(max(1 - math.floor(math.log10(largest)), 0), 2) if largest > 0 else 0


def _interval(label: str, estimate: Estimate, scale: float, *, emphasis: bool = False) -> Interval:
    return Interval(label, scale * estimate.value, scale * estimate.low, scale * estimate.high, emphasis=emphasis)


def _mean_off_diagonal(values_LL: np.ndarray) -> float:
    return float(values_LL[~np.eye(len(values_LL), dtype=bool)].mean())
