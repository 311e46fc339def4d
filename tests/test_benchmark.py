"""A tiny suite, end to end, on synthesised speech: what it leaves, what a failing system does, and that it goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from data_helpers import make_cut
from isogloss.benchmark import measure as measuring
from isogloss.benchmark.suite import load_suite
from isogloss.benchmark.testbed import divide, sample
from isogloss.cli.main import main
from isogloss.core.errors import ConfigError, DataError
from isogloss.evaluation.lid import TooFewLanguagesError
from isogloss.evaluation.probes import SearchBudget
from isogloss.evaluation.tables import read_results
from planted import PlantedSource, planted_splits

SUITE = """
[budgets.small]
train_seconds = 16.0
phone_seconds = 30.0
abx_seconds = 20.0
seconds_per_voice = 8.0
num_units = 8

[shared]
data = { seconds_per_update = 8.0, micro_batch_seconds = 8.0, min_seconds = 0.3, max_seconds = 4.0, num_workers = 0 }
optim = { lr = 1e-3 }
training = { threads = 1, log_every = 1 }

[[systems]]
name = "modified CPC"
recipe = { encoder = { preset = "cpc-tiny" }, objective = { name = "cpc", ffn_width = 32, num_negatives = 16 } }

[[systems]]
name = "divergent"
recipe = { encoder = { preset = "cpc-tiny" }, objective = { name = "cpc", ffn_width = 32 }, optim = { lr = 1e30 } }
"""


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def test_tiny_suite_measures_names_a_failure_and_takes_up_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, corpus, out = tmp_path / "suite.toml", tmp_path / "corpus", tmp_path / "out"
    suite.write_text(SUITE)
    synthesize = ["--language", "fr", "--language", "sw", "--voices", "2", "--utterances", "8", "--workers", "1"]
    assert run("corpus", "synthesize", "--out", str(corpus), *synthesize) == 0
    assert run("benchmark", str(suite), "--data", str(corpus), "--out", str(out)) == 0
    records = read_results(out / "results.jsonl")
    assert {r.system for r in records if r.task == "units"} == {"mel", "modified CPC", "modified CPC, untrained"}
    assert all(r.synthetic_speech for r in records)
    table = (out / "table.md").read_text()
    assert re.search(r"\| modified CPC \| .*\d\.\d \[.*\| (better|worse|may be chance) \|", table)
    assert "utterances held out" not in table  # of too few to test two languages
    assert (
        "Left out: language identification with held-out utterances needs two languages"
        in (out / "report.html").read_text()
    )
    assert re.search(r"\| divergent \| – .*\| failed \|", table)
    layers = (out / "layers.md").read_text()
    assert re.search(r"\| modified CPC \| \d+\.\d \([+-]\d+\.\d\) \| \d+\.\d \([+-]\d+\.\d\) \|", layers)
    assert "| divergent |  |  |" in layers
    assert "divergent has no figures" in (out / "report.html").read_text()
    curve = (out / "curves" / "modified-cpc.svg").read_text()
    assert curve.startswith("<svg")
    assert "var(--series-0)" in curve
    assert "--series-0: light-dark(" in curve
    before = (out / "runs" / "modified-cpc" / "log.jsonl").stat().st_mtime_ns
    assert run("benchmark", str(suite), "--data", str(corpus), "--out", str(out), "--only", "modified CPC") == 0
    assert (out / "runs" / "modified-cpc" / "log.jsonl").stat().st_mtime_ns == before
    capsys.readouterr()
    assert run("benchmark", str(suite), "--data", str(corpus), "--out", str(out), "--seed", "2") != 0
    assert "another seed" in capsys.readouterr().err
    suite.write_text(SUITE.replace("num_negatives = 16", "num_negatives = 8"))
    assert run("benchmark", str(suite), "--data", str(corpus), "--out", str(out), "--only", "modified CPC") != 0
    assert "another recipe" in capsys.readouterr().err


def test_only_too_few_languages_are_left_out_and_no_other_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = planted_splits()
    for number, cut in enumerate(cuts := [*splits.train, *splits.test]):
        cut.supervisions[0].language = ("fr", "sw")[number % 2]
    voices = frozenset(cut.supervisions[0].speaker for cut in splits.test)
    bed = measuring.TestBed("planted", splits, splits.test, splits.test, cuts, "speaker", voices, True, (0,))
    budget = SearchBudget(weight_decays=(1e-3,), max_iterations=5)

    def raising(error: Exception) -> Callable[..., None]:
        def probe(*_: object, **__: object) -> None:
            raise error

        return probe

    monkeypatch.setattr("isogloss.benchmark.measure.probe_language", raising(TooFewLanguagesError("too few")))
    measured = measuring.measure([measuring.System(PlantedSource(), "baseline")], bed, budget=budget)
    assert measured.left_out == ["too few", "too few"]
    monkeypatch.setattr("isogloss.benchmark.measure.probe_language", raising(DataError("features are not finite")))
    with pytest.raises(DataError, match="not finite"):
        measuring.measure([measuring.System(PlantedSource(), "baseline")], bed, budget=budget)


def test_shipped_suites_are_valid() -> None:
    names = [system.name for system in load_suite("objectives").systems]
    assert len(set(names)) == len(names)


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean `objectives`"):
        load_suite("objective")
    faulty = tmp_path / "faulty.toml"
    faulty.write_text(SUITE.replace('preset = "cpc-tiny"', 'preset = "cpc-tinny"', 1))
    with pytest.raises(ConfigError, match="cpc-tiny"):
        load_suite(faulty)


def test_one_voice_in_five_is_held_out_and_time_is_shared_evenly() -> None:
    def voice(language: str, speaker: str, source: str, count: int) -> list[object]:
        known = {"language": language, "speaker": speaker, "text": "a", "source": source}
        return [make_cut(f"{source}-{speaker}-{i}", seconds=2.0, **known) for i in range(count)]

    cuts = [c for i in range(10) for c in voice("en", f"e{i}", "one", 20 - i)]
    cuts += voice("fr", "f0", "one", 9) + voice("fr", "f1", "two", 5) + voice("sw", "s0", "one", 50)
    division = divide(cuts)
    assert division.speakers == {"e1", "e6", "f1"}
    assert division.foreign == {"fr"}
    assert division.held_out == "speaker"
    seconds = {"en": 0.0, "fr": 0.0, "sw": 0.0}
    for cut in sample(division.train, 60.0, 1):
        seconds[cut.supervisions[0].language] += cut.duration  # type: ignore[attr-defined]
    assert seconds == {"en": 22.0, "fr": 18.0, "sw": 20.0}
