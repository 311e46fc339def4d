"""A tiny demo, end to end, on synthesised speech: what it leaves behind, and that it takes up what is done."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from isogloss.benchmark.charts import Interval, interval_chart, line_chart
from isogloss.cli.main import main
from isogloss.evaluation.tables import read_results


def run(folder: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--size", "tiny", "--speech", "synthetic", "--out", str(folder)])
    assert stop.value.code == 0


def test_tiny_demo_measures_everything_and_says_that_speech_is_synthetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    printed = capsys.readouterr().out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "synthesised" in page
    assert "synthesised" in printed
    assert not re.search(r"""(src|href)=["'](?!#)""", page), "the page fetches something"
    assert "<script" not in page
    for cell in ("over its untrained encoder", "over log-mel"):
        assert f"<th>{cell}</th>" in page
    rows = re.findall(r"<tr[^>]*><td>phones</td><td>([^<]*)</td><td>([^<]*)</td><td>([^<]*)</td></tr>", page)
    assert [name for name, *_ in rows] == ["modified CPC", "wav2vec 2.0", "BEST-RQ"]
    assert all(
        re.fullmatch(r"[+-].* \[.*\] (better|worse|may be chance)", cell) for _, *cells in rows for cell in cells
    )

    records = read_results(tmp_path / "results.jsonl")
    points = {record.system: 100 * record.value for record in records if record.task == "phones"}
    for name, *cells in rows:
        wanted = [points[f"{name} − {other}"] for other in (f"{name}, untrained", "mel")]
        assert [float(cell.split()[0]) for cell in cells] == pytest.approx(wanted, abs=0.051)
    assert all(record.synthetic_speech for record in records)
    own = [record for record in records if " − " not in record.system]
    tasks = {record.task for record in own}
    assert tasks == {
        "phones",
        "ABX, within speaker",
        "ABX, across speaker",
        "languages, utterances held out",
        "languages, sources held out",
    }
    trained = ["modified CPC", "wav2vec 2.0", "BEST-RQ"]
    systems = ["mel", "mfcc", *(name for own in trained for name in (f"{own}, untrained", own))]
    for task in tasks:
        assert [record.system for record in own if record.task == task] == systems
    assert len(records) - len(own) == len(tasks) * 2 * len(
        trained
    )  # each trained encoder against its untrained self and log-mel
    for record in own:
        assert record.low <= record.value <= record.high
        assert (record.energy is not None) == (record.system in trained)

    logs = [
        [json.loads(line) for line in (tmp_path / "runs" / name / "log.jsonl").read_text().splitlines()]
        for name in ("modified-cpc", "wav2vec-20", "best-rq")
    ]
    seconds = [next(row["audio_seconds"] for row in rows if row["event"] == "update") for rows in logs]
    assert len(set(seconds)) == 1, "all objectives see the same data"

    before = (tmp_path / "runs" / "modified-cpc" / "log.jsonl").read_bytes()
    run(tmp_path)  # an interrupted or finished demo is taken up
    assert (tmp_path / "runs" / "modified-cpc" / "log.jsonl").read_bytes().startswith(before[:1000])
    again = read_results(tmp_path / "results.jsonl")
    assert [(r.system, r.task, r.value) for r in again] == [(r.system, r.task, r.value) for r in records]


def test_charts_follow_the_page_and_do_not_clash() -> None:
    chart = interval_chart("A", "%", [Interval("x", 1, 0, 2, emphasis=True), Interval("y", 3, 2, 4)], reference=1.5)
    other = line_chart("B", "update", {"x": ([0, 1], [1, 2])})
    assert not re.search(r"#0[1-9]0[1-9]0[1-9]", chart + other), "a placeholder colour is left"
    assert "var(--series-0)" in chart
    ids = re.findall(r'id="([^"]+)"', chart + other)
    assert len(ids) == len(set(ids))
    few, many = (line_chart("C", "layer", {str(i): ([0, 1], [i, i]) for i in range(n)}) for n in (4, 6))
    heights = [float(re.search(r'viewBox="0 0 [\d.]+ ([\d.]+)"', chart)[1]) for chart in (few, many)]  # type: ignore[index]
    assert heights[1] > heights[0], "the names of many curves have no room of their own"
