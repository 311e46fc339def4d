"""The demo's results as a page, and as the table that the terminal prints."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isogloss.benchmark.charts import Interval, interval_chart, line_chart
from isogloss.benchmark.demo import Demo
from isogloss.benchmark.report import Report
from isogloss.benchmark.suite_report import verdict
from isogloss.benchmark.testbed import source_of
from isogloss.core.config import to_toml
from isogloss.evaluation.lid import language_of
from isogloss.evaluation.probes import speaker_of
from isogloss.evaluation.tables import ResultRecord, footnotes, format_value, is_percent


def write_report(demo: Demo) -> Path:
    """Write `report.html` into the demo's folder and return its path."""
    page = Report("isogloss: what self-supervised objectives learned", demo.speech)
    if demo.synthetic:
        page.paragraph(
            "The speech in this report is synthesised, not human: figures say that the chain works, and nothing about any "
            f"language. Reason: {demo.why_synthetic}.",
            kind="warning",
        )
    names = list(demo.runs)
    page.paragraph(
        f"Encoders were pretrained by {', '.join(names[:-1])} and {names[-1]} on the same recordings, in the same order, from the same "
        f"seed ({demo.seed}), and measured beside log-mel, MFCC and their own untrained selves on voices that no training saw."
    )
    page.heading("Did pretraining help?")
    header, rows = _gains(demo.measured.differences)
    page.table(header, rows, emphasis=[i for i, row in enumerate(rows) if row[2].endswith("better")])
    page.paragraph(
        "Intervals are 95 % bootstrap intervals of the paired difference on the same test items. Where fewer than five voices "
        "are held out, utterances are resampled: such an interval says nothing about other voices.",
        kind="note",
    )
    page.heading("What a frozen encoder tells")
    page.charts([(_task_chart(demo, task), _task_caption(demo, task)) for task in _tasks(demo.measured.records)])
    page.heading("Layer by layer")
    page.charts(
        [
            (
                _layer_chart(demo),
                "Test accuracy of the linear phone probe; the layer that tables report was chosen on development data.",
            )
        ]
    )
    page.heading("How training went")
    page.charts(_curves(demo))
    header, rows = _table(demo.measured.records, demo)
    page.heading("All figures")
    trained = [i for i, row in enumerate(rows) if row[0] in demo.runs]
    page.table(header, rows, caption="Value [95 % interval].", numeric=range(1, len(header)), emphasis=trained)
    for reason in demo.measured.left_out:
        page.paragraph(f"Left out: {reason}.", kind="warning")
    for note in footnotes([*demo.measured.records, *demo.measured.differences]):
        page.paragraph(note, kind="note")
    page.heading("The speech")
    page.paragraph(f"{demo.labels[:1].upper()}{demo.labels[1:]}.")
    page.table(*_corpus_table(demo), numeric=(4, 5))
    page.paragraph(
        f"{demo.audit.num_input} recordings were looked at; {len(demo.audit.rejected)} were left out by the audit.",
        kind="note",
    )
    page.heading("Cost")
    page.table(
        ("stage", "minutes"), [(stage, f"{seconds / 60:.1f}") for stage, seconds in demo.seconds.items()], numeric=(1,)
    )
    for name, energy in demo.energy.items():
        page.paragraph(f"{name}: {_energy(energy)}", kind="note")
    for name, recipe in demo.recipes.items():
        page.details(f"Recipe: {name}", to_toml(recipe.model_dump(mode="json")))
    provenance = next(iter(demo.runs.values())).run_dir / "provenance.json"
    page.details("Provenance", provenance.read_text(encoding="utf-8"))
    page.footer("Written by `isogloss demo`; every figure is in results.jsonl beside this page.")
    path = demo.out / "report.html"
    page.write(path)
    return path


def result_table(demo: Demo) -> tuple[list[str], list[list[str]]]:
    """Return the header and rows of the table that the page and the terminal show: one row per system, one column per task."""
    return _table(demo.measured.records, demo)


def findings(demo: Demo) -> list[str]:
    """Return each paired difference as a line for the terminal."""
    return [f"{r.task}: {r.system} {_points(r)} points, {verdict(r)}" for r in demo.measured.differences]


def _points(record: ResultRecord) -> str:
    return f"{100 * record.value:+.1f} [{100 * record.low:+.1f}, {100 * record.high:+.1f}]"


def _gains(differences: Sequence[ResultRecord]) -> tuple[list[str], list[list[str]]]:
    """Return a row for each task and trained system: what it gained over its untrained encoder and over log-mel."""
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for record in differences:
        name, other = record.system.split(" − ")
        cells[record.task, name][other] = f"{_points(record)} {verdict(record)}"
    rows = [
        [task, name, *(own.get(other, "–") for other in (f"{name}, untrained", "mel"))]
        for (task, name), own in cells.items()
    ]
    return ["points [95 %]", "trained", "over its untrained encoder", "over log-mel"], rows


def _energy(record: Mapping[str, Any]) -> str:
    methods = ", ".join(dict.fromkeys(part["method"] for part in record["parts"]))
    about = "about " if record["kind"] == "estimated" else ""
    return f"pretraining took {about}{1000 * record['kwh']:.2g} Wh ({record['kind']}: {methods})."


def _tasks(records: Sequence[ResultRecord]) -> list[str]:
    return list(dict.fromkeys(record.task for record in records))


def _task_chart(demo: Demo, task: str) -> str:
    own = [record for record in demo.measured.records if record.task == task]
    intervals = [
        Interval(r.system, 100 * r.value, 100 * r.low, 100 * r.high, emphasis=r.system in demo.runs) for r in own
    ]
    unit = f"{own[0].metric.replace('_', ' ')}, % ({'more' if own[0].higher_is_better else 'less'} is better)"
    reference = 50.0 if own[0].metric == "abx_error" else None
    return interval_chart(
        task, unit, intervals, reference=reference if reference and max(i.high for i in intervals) > 45 else None
    )


def _task_caption(demo: Demo, task: str) -> str:
    own = next(record for record in demo.measured.records if record.task == task)
    labels = f"{own.labels} labels; " if own.labels != "gold" else ""
    return f"{labels}resampled over {own.num_units} {own.unit}s."


def _layer_chart(demo: Demo) -> str:
    series = {
        name: (list(layers), [100 * value for value in layers.values()])
        for name, layers in demo.measured.layers.items()
        if len(layers) > 1
    }
    return line_chart("Phone accuracy by layer, %", "layer", series)


def _curves(demo: Demo) -> list[tuple[str, str]]:
    charts = []
    for name, run in demo.runs.items():
        rows = [json.loads(line) for line in (run.run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        updates = [row for row in rows if row["event"] == "update"]
        for metric in ("contrastive_loss", "accuracy", "code_perplexity"):
            points = [(row["step"], row["metrics"][metric]) for row in updates if metric in row["metrics"]]
            if points:
                x, y = zip(*points, strict=True)
                charts.append((line_chart(f"{name}: {metric.replace('_', ' ')}", "update", {name: (x, y)}), ""))
    return charts


def _table(records: Sequence[ResultRecord], demo: Demo) -> tuple[list[str], list[list[str]]]:
    tasks = _tasks(records)
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    first = {record.task: record for record in reversed(records)}
    for record in records:
        cells[record.system][record.task] = format_value(record)
    arrows = {
        task: f"{' %' if is_percent(first[task].metric) else ''} {'↑' if first[task].higher_is_better else '↓'}"
        for task in tasks
    }
    header = ["system", *(task + arrows[task] for task in tasks)]
    return header, [[system, *(row.get(task, "–") for task in tasks)] for system, row in cells.items()]


def _corpus_table(demo: Demo) -> tuple[list[str], list[list[str]]]:
    groups: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for part, cuts in (("trained on", demo.division.train), ("held out", demo.division.test)):
        for cut in cuts:
            voice = speaker_of(cut).removeprefix(f"{source_of(cut)}/")
            groups[str(language_of(cut)), source_of(cut), voice, part].append(cut)
    rows = [
        [
            *key,
            str(len(cuts)),
            f"{sum(c.duration for c in cuts) / 60:.1f}",
            str((cuts[0].custom or {}).get("license", "")),
        ]
        for key, cuts in sorted(groups.items())
    ]
    return ["language", "source", "voice", "use", "recordings", "minutes", "licence"], rows
