"""Few-shot curves: nested speaker-aware draws, closed forms of area and equivalents, and that more shots and better features help."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isogloss.cli.main import main
from isogloss.core.errors import DataError
from isogloss.evaluation.fewshot import (
    FewShotCurve,
    FewShotSettings,
    accuracy_difference,
    area_difference,
    equivalent_shots,
    few_shot,
    nested_draw,
)
from isogloss.evaluation.fewshot_records import few_shot_records, few_shot_table
from isogloss.evaluation.lid import LidSettings, Pooled
from isogloss.evaluation.tables import read_results

SETTINGS = FewShotSettings(shots=(1, 4, 16), draws=3, seeds=2, updates=100)


def planted(strength: float, seed: int = 0) -> Pooled:
    """Three languages of six speakers with ten utterances each; `strength` is how far languages lie apart, speakers apart by 1."""
    random = np.random.default_rng(seed)
    centre = random.normal(size=(3, 12)) * strength
    rows, languages, speakers, ids = [], [], [], []
    for language in range(3):
        for speaker in range(6):
            voice = random.normal(size=12)
            for utterance in range(10):
                rows.append(centre[language] + voice + 0.5 * random.normal(size=12))
                languages.append("abc"[language])
                speakers.append(f"{language}-{speaker}")
                ids.append(f"{language}-{speaker}-{utterance}")
    values = np.array(rows, np.float32)
    return Pooled("planted", {0: values}, ids, languages, speakers, ["one"] * len(ids), np.ones(len(ids)))


def test_shots_are_nested_and_take_speakers_in_turn() -> None:
    pooled = planted(1.0)
    order = nested_draw(pooled, range(180), 5)
    for language, rows in order.items():
        assert sorted(rows) == [i for i, other in enumerate(pooled.languages) if other == language]
        for first in range(0, 60, 6):
            assert len({pooled.speakers[i] for i in rows[first : first + 6]}) == 6
    assert nested_draw(pooled, range(180), 6) != order


def test_more_shots_and_better_features_give_more_and_no_test_speaker_is_trained_on() -> None:
    weak, strong = (few_shot(planted(s, seed=1), settings=SETTINGS) for s in (0.7, 2.0))
    assert weak.accuracy(2).value > weak.accuracy(0).value
    assert strong.accuracy(0).value > weak.accuracy(0).value
    assert strong.accuracy(2).value > 0.95
    difference = area_difference(strong, weak)
    assert difference.low > 0
    assert difference.value == pytest.approx(strong.area().value - weak.area().value)
    assert accuracy_difference(strong, weak, 0).low > 0
    tested = {speaker for speaker in weak.speakers if speaker is not None}
    assert 0 < len(tested) < 18
    assert weak.counts_NPSIK.shape == (3, 3, 2, len(weak.ids), 6)
    noise = few_shot(planted(0.0), settings=SETTINGS)
    assert noise.accuracy(2).value == pytest.approx(1 / 3, abs=0.2)
    several = planted(2.0, seed=1)
    several.values[1] = np.zeros_like(several.values[0])
    chosen = few_shot(several, settings=SETTINGS)
    assert chosen.layer == 0
    assert {record.search_budget for record in few_shot_records(chosen, dataset="d")} == {2}
    assert "chosen with all labels" in few_shot_records(chosen, dataset="d")[0].notes
    assert "chosen" not in few_shot_records(weak, dataset="d")[0].notes
    same = few_shot(planted(0.7, seed=1), settings=SETTINGS)
    assert np.array_equal(same.counts_NPSIK, weak.counts_NPSIK)


def curve(name: str, accuracies: list[float], shots: tuple[int, ...]) -> FewShotCurve:
    """One draw, one seed, one class, 100 test utterances of which the given shares are right."""
    counts = np.ones((len(shots), 1, 1, 100, 2))
    for i, accuracy in enumerate(accuracies):
        counts[i, 0, 0, :, 0] = np.arange(100) < round(100 * accuracy)
    return FewShotCurve(name, 0, "speaker", shots, counts, [str(i) for i in range(100)], ["a"] * 100, [None] * 100, {})


def test_area_and_equivalents_have_closed_forms() -> None:
    shots = (1, 10, 100)
    ours, theirs = curve("ours", [0.5, 0.7, 0.9], shots), curve("theirs", [0.3, 0.5, 0.7], shots)
    assert ours.area().value == pytest.approx(0.7)
    assert area_difference(ours, theirs).value == pytest.approx(0.2)
    assert equivalent_shots(ours, theirs, 0) == pytest.approx(10)
    assert equivalent_shots(ours, theirs, 1) == pytest.approx(100)
    assert equivalent_shots(ours, theirs, 2) == math.inf
    assert equivalent_shots(theirs, ours, 0) == 0.0
    halfway = curve("halfway", [0.6, 0.6, 0.6], shots)
    assert equivalent_shots(halfway, ours, 0) == pytest.approx(10**0.5)
    plateau = curve("plateau", [0.3, 0.6, 0.6], shots)
    assert equivalent_shots(halfway, plateau, 0) == pytest.approx(10)
    assert equivalent_shots(curve("low", [0.5] * 3, shots), curve("flat", [0.5] * 3, shots), 2) == pytest.approx(1)
    records = few_shot_records(ours, [theirs], dataset="d")
    gain = next(r for r in records if r.system == "ours − theirs" and r.meta.get("shots") == 10)
    assert gain.meta["relative_gain"] == pytest.approx(0.4)
    assert gain.meta["relative_error_reduction"] == pytest.approx(0.4)
    assert records[-1].value == pytest.approx(0.2)
    header, rows = few_shot_table([ours, theirs])
    assert header[1:4] == ["1", "10", "100"]
    assert [row[0] for row in rows] == ["ours", "theirs", "ours − theirs", "shots of theirs for as much"]
    assert rows[2][1].startswith("20.0")
    assert rows[3][1:4] == ["10.0", "100.0", "above 100"]
    assert few_shot_table([theirs, ours])[1][3][1] == "below 1"


def test_curves_of_other_shots_are_not_compared_and_one_speaker_is_no_test() -> None:
    with pytest.raises(DataError, match="measure both alike"):
        area_difference(curve("a", [0.5], (1,)), curve("b", [0.5], (5,)))
    pooled = planted(1.0)
    pooled.speakers = list(pooled.languages)
    with pytest.raises(DataError, match="two speakers"):
        few_shot(pooled, settings=SETTINGS)
    with pytest.raises(DataError, match="this corpus has 1 language and 18 speakers"):
        few_shot(replace(planted(1.0), languages=["a"] * 180), settings=SETTINGS)
    # Each source has one language that is elsewhere too: no fold can tell two apart.
    sources = [
        f"{language}{int(s[-1]) % 2}" for language, s in zip(planted(1.0).languages, planted(1.0).speakers, strict=True)
    ]
    with pytest.raises(DataError, match="none of them has two languages"):
        few_shot(
            replace(planted(1.0), sources=sources),
            settings=SETTINGS,
            held_out="source",
            lid=LidSettings(min_source_seconds=1),
        )


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def test_the_command_measures_draws_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, results, plot = tmp_path / "corpus", tmp_path / "results.jsonl", tmp_path / "curve.svg"
    synthesize = ["--language", "fr", "--language", "sw", "--voices", "3", "--utterances", "4", "--workers", "1"]
    assert run("corpus", "synthesize", "--out", str(corpus), *synthesize) == 0
    common = ["probe", "lid", "--data", str(corpus), "--against", "mfcc,mel"]
    few = ["--shots", "1,4", "--draws", "2", "--heads", "1", "--out", str(results), "--plot", str(plot)]
    assert run(*common, *few) == 0
    shown = capsys.readouterr().out
    assert "shots of mel for as much" in shown
    tasks = {(record.system, record.task) for record in read_results(results)}
    assert ("mfcc − mel", "languages, speakers held out, area over log shots") in tasks
    assert ("mel", "languages, speakers held out, 4 shots") in tasks
    assert "light-dark" in plot.read_text()
    assert run(*common, "--shots", "one") != 0
    assert "1,5,10,25" in capsys.readouterr().err
