from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from isogloss.cli._show import print_table
from isogloss.core.errors import DataError
from isogloss.evaluation.bootstrap import Estimate
from isogloss.evaluation.tables import (
    ResultRecord,
    read_results,
    to_csv,
    to_latex,
    to_markdown,
    to_rich,
    write_results,
)

CAVEAT = "only 3 speakers: utterances were resampled"


def records() -> list[ResultRecord]:
    few = Estimate(0.1234, 0.1101, 0.1371, 0.007, "bootstrap over 40 utterances", 40, caveat=CAVEAT)
    none = Estimate(0.5, math.nan, math.nan, math.nan, "none", 1)
    return [
        ResultRecord.from_estimate(
            few,
            system="cpc_small",
            task="phones|probe",
            dataset="A & B",
            metric="per",
            higher_is_better=False,
            labels="silver",
            seeds=(0, 1),
            search_budget=9,
            energy={"kwh": 0.1, "co2_kg": math.nan},
        ),
        ResultRecord.from_estimate(
            none,
            system="mel",
            task="languages",
            dataset="A",
            metric="accuracy",
            higher_is_better=True,
            synthetic_speech=True,
        ),
    ]


def test_results_survive_the_disk_and_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "out" / "results.jsonl"
    first, second = records()
    write_results(path, [first])
    write_results(path, [second], append=True)
    assert "NaN" not in path.read_text()
    back = read_results(path)
    assert back[0].estimate == first.estimate
    assert back[0].seeds == (0, 1)
    assert back[0].energy == {"kwh": 0.1, "co2_kg": None}
    assert math.isnan(back[1].low)
    assert back[1].synthetic_speech
    write_results(tmp_path / "marks.jsonl", [replace(first, notes="a\u2028b\x85c")])
    assert read_results(tmp_path / "marks.jsonl")[0].notes == "a\u2028b\x85c"
    for bad in ("{", "[1]", '{"system": "x"}', '{"sistem": 1}', "7"):
        path.write_text(path.read_text().splitlines()[0] + "\n" + bad + "\n")
        with pytest.raises(DataError, match=r"results.jsonl:2: not a result"):
            read_results(path)
    with pytest.raises(DataError, match="no such file"):
        read_results(tmp_path / "absent.jsonl")


def test_every_table_shows_interval_direction_labels_and_caveats() -> None:
    markdown = to_markdown(records())
    assert "| cpc_small | phones\\|probe | A & B | per % ↓ | 12.3 [11.0, 13.7] | 40 utterances † | silver |" in markdown
    assert "| accuracy % ↑ | 50.0 [no interval] | 1 utterance | gold, synthetic speech |" in markdown
    assert f"† {CAVEAT}" in markdown
    latex = to_latex(records())
    assert "cpc\\_small" in latex
    assert "A \\& B" in latex
    assert "per \\% $\\downarrow$" in latex
    console = Console(width=200, file=io.StringIO())
    console.print(to_rich(records(), "Results"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "12.3 [11.0, 13.7]" in shown  # the brackets are no markup
    assert CAVEAT in shown
    rows = list(csv.DictReader(io.StringIO(to_csv(records()))))
    assert [row["value"] for row in rows] == ["0.1234", "0.5"]
    assert rows[1]["low"] == ""
    assert rows[0]["seeds"] == "[0, 1]"


def test_a_figure_over_nobody_knows_how_many_is_not_over_none() -> None:
    record = replace(records()[1], num_units=0, labels="")
    assert "| 50.0 [no interval] |  |" in to_markdown([record])


def test_a_narrow_terminal_folds_words_and_cuts_nothing() -> None:
    console = Console(width=80, file=io.StringIO())
    long = [
        replace(record, system="a-system-of-a-long-name", task="language, linear, held-out speaker")
        for record in records()
    ]
    console.print(to_rich(long))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in shown
    assert "12.3 [11.0, 13.7]" in shown
    assert "50.0 [no interval]" in shown


def test_where_no_one_looks_tables_are_wide(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_table(to_rich([replace(record, task="language, linear, held-out speaker") for record in records()]))
    assert any(
        "language, linear, held-out speaker" in line and "40 utterances" in line
        for line in capsys.readouterr().out.splitlines()
    )


def test_tables_of_nothing_are_empty() -> None:
    assert to_markdown([]) == to_latex([]) == ""
    to_rich([])


def test_a_record_must_make_sense() -> None:
    settings = {"system": "a", "task": "b", "dataset": "c", "metric": "per", "value": 1.0}
    with pytest.raises(DataError, match="`labels`"):
        ResultRecord(**settings, low=0, high=1, labels="platinum")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="`low` must be at most `high`"):
        ResultRecord(**settings, low=2, high=1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="`system`"):
        ResultRecord(**{**settings, "system": ""}, low=0, high=1)  # type: ignore[arg-type]
