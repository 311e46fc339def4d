"""A suite's results: one table, a page, and a curve for each system that documentation can show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from isogloss.benchmark.charts import Interval, interval_chart, line_chart, panels, standalone
from isogloss.benchmark.measure import Measured
from isogloss.benchmark.report import Report
from isogloss.benchmark.suite import SystemResult, curves, slug
from isogloss.evaluation.tables import ResultRecord, footnotes, format_value, is_percent, write_results

MAX_PANELS = 4  # of a curve: the loss, and what the watchdog reads


def write_suite(
    results: Sequence[SystemResult], out: Path, *, title: str, lead: str, watched: dict[str, list[str]]
) -> Path:
    """Write `report.html`, `table.md`, `layers.md`, `results.jsonl` and `curves/`; `watched` names the metrics of each curve."""
    records = [record for result in results for record in (*result.measured.records, *result.measured.differences)]
    write_results(out / "results.jsonl", _once(records))
    header, rows = comparison(results)
    (out / "table.md").write_text(markdown(header, rows), encoding="utf-8")
    (out / "layers.md").write_text(markdown(*by_layer(results)), encoding="utf-8")
    page = Report(title, lead)
    page.heading("Did pretraining help?")
    gains = [i for i, row in enumerate(rows) if row[2] == "better"]
    page.table(header, rows, numeric=(1, *range(3, len(header))), emphasis=gains)
    for note in footnotes(_once(records)):
        page.paragraph(note, kind="note")
    for reason in dict.fromkeys(reason for result in results for reason in result.measured.left_out):
        page.paragraph(f"Left out: {reason}.", kind="warning")
    for result in results:
        if result.failure:
            page.paragraph(f"{result.name} has no figures: {result.failure}", kind="warning")
    page.heading("Task by task")
    page.charts([(_chart(results, task), "") for task in _tasks(results)])
    page.heading("Layer by layer")
    page.charts(
        [
            (line_chart(f"{r.name}: phones by layer, %", "layer", _layers(r.measured)), "")
            for r in results
            if len(r.measured.layers.get(r.name, ())) > 1
        ]
    )
    page.heading("How training went")
    (out / "curves").mkdir(exist_ok=True)
    drawn = []
    for result in results:
        if result.cost is not None:
            series = curves(out / "runs" / slug(result.name))
            names = ["loss", *(name for name in watched.get(result.name, ()) if name in series)][:MAX_PANELS]
            chart = panels(result.name, "update", {name.replace("_", " "): series[name] for name in names})
            (out / "curves" / f"{slug(result.name)}.svg").write_text(standalone(chart), encoding="utf-8")
            drawn.append((chart, ""))
    page.charts(drawn)
    path = out / "report.html"
    page.write(path)
    return path


def comparison(results: Sequence[SystemResult]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: log-mel first, then each system's figures, its gain in phones over its untrained encoder, its cost."""
    tasks = _tasks(results)
    first = {task: next(r for result in results for r in result.measured.records if r.task == task) for task in tasks}
    heads = [
        f"{task}{' %' if is_percent(first[task].metric) else ''} {'↑' if first[task].higher_is_better else '↓'}"
        for task in tasks
    ]
    header = ["system", "phones, points over untrained", "verdict", *heads, "ms/update", "GiB", "Wh"]
    rows = []
    baseline = next((result for result in results if result.measured.records), None)
    if baseline is not None:
        own = {r.task: r for r in baseline.measured.records if r.system == "mel"}
        rows.append(["log-mel", "", "", *(format_value(own[task]) for task in tasks), "", "", ""])
    for result in results:
        if result.failure or result.cost is None:
            rows.append([result.name, "–", "failed", *("–" for _ in tasks), "–", "–", "–"])
            continue
        own = {r.task: r for r in result.measured.records if r.system == result.name}
        gain = next(
            d
            for d in result.measured.differences
            if d.task == "phones" and d.system == f"{result.name} − {result.name}, untrained"
        )
        rows.append(
            [
                result.name,
                f"{100 * gain.value:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]",
                verdict(gain),
                *(format_value(own[task]) for task in tasks),
                f"{1000 * result.cost.seconds_per_update:.0f}",
                f"{result.cost.peak_gib:.2f}",
                f"{1000 * result.cost.energy['kwh']:.2g}",
            ]
        )
    return header, rows


def by_layer(results: Sequence[SystemResult]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the phone probe on each layer, %: the trained encoder's, and points over its untrained self."""
    found = {result.name: result.measured.layers.get(result.name, {}) for result in results}
    depth = 1 + max((layer for layers in found.values() for layer in layers), default=0)
    rows = []
    for result in results:
        before = result.measured.layers.get(f"{result.name}, untrained", {})
        cells = [
            f"{100 * value:.1f} ({100 * (value - before[layer]):+.1f})" for layer, value in found[result.name].items()
        ]
        rows.append([result.name, *cells, *("" for _ in range(depth - len(cells)))])
    return ["system", *(f"layer {layer}" for layer in range(depth))], rows


def verdict(difference: ResultRecord) -> str:
    """Return "better", "worse" or "may be chance"."""
    if not difference.estimate.is_clear_of(0.0):
        return "may be chance"
    return "better" if (difference.value > 0) == difference.higher_is_better else "worse"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _once(records: Sequence[ResultRecord]) -> list[ResultRecord]:
    """Return the records without repeats of the baseline, which is measured beside every system."""
    seen: dict[tuple[str, str, str], ResultRecord] = {}
    for record in records:
        seen.setdefault((record.system, record.task, record.metric), record)
    return list(seen.values())


def _tasks(results: Sequence[SystemResult]) -> list[str]:
    return list(dict.fromkeys(record.task for result in results for record in result.measured.records))


def _layers(measured: Measured) -> dict[str, tuple[list[float], list[float]]]:
    return {
        ("untrained" if name.endswith(", untrained") else "trained"): (
            [float(layer) for layer in layers],
            [100 * value for value in layers.values()],
        )
        for name, layers in measured.layers.items()
        if name != "mel"
    }


def _chart(results: Sequence[SystemResult], task: str) -> str:
    intervals = []
    for number, result in enumerate(results):
        for record in result.measured.records:
            is_baseline = record.system == "mel"
            if record.task == task and (record.system == result.name or (is_baseline and number == 0)):
                scale = 100.0 if is_percent(record.metric) else 1.0
                values = (scale * record.value, scale * record.low, scale * record.high)
                intervals.append(Interval(record.system, *values, emphasis=not is_baseline))
    record = next(r for result in results for r in result.measured.records if r.task == task)
    unit = f"{record.metric.replace('_', ' ')} ({'more' if record.higher_is_better else 'less'} is better)"
    return interval_chart(task, unit, intervals)
