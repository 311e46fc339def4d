"""`isogloss adapt --method continued`: what may be heard, what is held out, when it stops, and that nothing done changes nothing."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch
from lhotse import CutSet, Recording
from lhotse.utils import fastcopy
from safetensors.torch import load_file

import training_fakes as fakes
from isogloss.adapt._budget import with_small_updates
from isogloss.adapt.base import AdaptRecipe, find_method, method_names, parse_adapt
from isogloss.adapt.guard import refuse_test_audio
from isogloss.adapt.heldout import Scores
from isogloss.adapt.judge import HeldOutJudge
from isogloss.adapt.mixture import prepare_mixture
from isogloss.adapt.run import adapt
from isogloss.cli.main import main
from isogloss.core.errors import ConfigError, DataError, TrainingError
from isogloss.core.types import LossTerms
from isogloss.data.index import CorpusIndex
from isogloss.data.inputs import open_corpus
from isogloss.data.loader import SpeechLoader
from isogloss.data.sampler import Planner
from isogloss.encoders.presets import build_encoder, preset
from isogloss.hub.save import save_model
from isogloss.objectives.base import build_objective

OBJECTIVE = {"name": "wav2vec2", "num_codes": 8, "target_width": 16, "final_width": 16, "num_negatives": 5}


def speech(folder: Path, num: int = 30, prefix: str = "") -> Path:
    """Write a corpus of two languages with three speakers each; recordings get a prefix and sound otherwise."""
    fakes.make_corpus(folder, num)
    cuts = []
    for number, cut in enumerate(open_corpus(folder)):
        name = f"{prefix}{cut.id}"
        path = folder / f"{name}.wav"
        if prefix:
            samples, rate = soundfile.read(cut.recording.sources[0].source)
            soundfile.write(path, samples[::-1], rate, subtype="PCM_16")
        recording = fastcopy(Recording.from_file(path), id=name)
        supervision = fastcopy(
            cut.supervisions[0],
            recording_id=name,
            language="fra" if number % 6 < 3 else "nld",
            speaker=f"{prefix}speaker{number % 6}",
        )
        cuts.append(fastcopy(cut, id=name, recording=recording, supervisions=[supervision]))
    (folder / "cuts.jsonl.gz").unlink()
    CutSet.from_cuts(cuts).to_file(folder / "cuts.jsonl.gz")
    return folder


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech(tmp_path_factory.mktemp("other"), 8, "other-")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "start"
    torch.manual_seed(3)
    encoder = build_encoder(preset("wave-tiny"))
    objective = build_objective(OBJECTIVE, encoder)
    objective.after_step(1.0)
    save_model(folder, encoder, objective, {})
    return folder


def recipe(model: Path, target: Path, **sections: dict[str, Any]) -> AdaptRecipe:
    defaults: dict[str, dict[str, Any]] = {
        "adapt": {"heldout": 0.3, "patience": 2},
        "start": {"model": str(model), "frozen": ["frontend"]},
        "data": {
            "path": str(target),
            "seconds_per_update": 3.2,
            "micro_batch_seconds": 1.6,
            "min_seconds": 0.3,
            "max_seconds": 1.2,
            "num_workers": 0,
        },
        "optim": {"lr": 1e-3},
        "training": {"passes": 2, "log_every": 1},
        "method": {},
    }
    tree = {name: {**values, **sections.get(name, {})} for name, values in defaults.items()}
    return parse_adapt(tree, "test")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_zero_passes_change_nothing(model: Path, target: Path, tmp_path: Path) -> None:
    result = adapt(recipe(model, target, training={"passes": 0}), tmp_path / "run")
    assert (result.step, result.last_step) == (0, 0)
    before, after = weights(model), weights(result.model_dir)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    differences = [record for record in result.records if record.metric == "masked_accuracy_difference"]
    assert differences
    assert all((record.value, record.low, record.high) == (0, 0, 0) for record in differences)


def test_a_learning_rate_of_1e_7_changes_nothing_measurable(model: Path, target: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = adapt(recipe(model, target, optim={"lr": 1e-7}, adapt={"patience": 9}), run)
    assert result.last_step > 2
    checkpoint = load_file(run / "checkpoints" / f"step_{result.last_step:08d}" / "model.safetensors")
    before = weights(model)
    # Adam moves a weight by about the rate at each update; decay adds rate × decay × weight
    limit = 1e-7 * 2 * result.last_step
    moved = max(
        float((checkpoint[name] - value).abs().max()) for name, value in before.items() if value.is_floating_point()
    )
    assert 0 < moved < limit
    for record in result.records:
        if record.metric == "masked_accuracy_difference":
            assert abs(record.value) < 0.02


def test_adapting_trains_stops_reports_and_resumes(model: Path, target: Path, other: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = recipe(model, target, optim={"lr": 2e-3}, training={"passes": 8}, adapt={"patience": 9})
    result = adapt(asked, run, tests=[other], source=other)
    summary = json.loads((run / "adapt.json").read_text())
    # a schedule that starts anew reaches its peak
    assert summary["learning_rate"]["peak"] == pytest.approx(2e-3)
    logged = [row["lr"] for row in fakes.read_log(run)]
    assert max(logged) == pytest.approx(2e-3)
    assert summary["learning_rate"]["mean"] == pytest.approx(sum(logged) / len(logged))
    assert (summary["held_out_by"], summary["reported_by"]) == ("speaker", "recording")
    assert summary["start"]["taken"]
    assert result.step > 0
    before, after = weights(model), weights(result.model_dir)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "objective.quantizer.codebook" in moved
    assert not any(name.startswith("encoder.convolutions") for name in moved)
    found = {(record.system, record.dataset, record.metric) for record in result.records}
    for place in ("target held out", "target held out/fr", "target held out/nl", "source", "source/fr"):
        assert ("after − before", place, "masked_accuracy_difference") in found
    assert ("after", "target held out", "code_perplexity") in found
    assert {record.labels for record in result.records if record.task == "codes"} == {""}
    heard = next(r for r in result.records if r.task == "masked prediction" and r.dataset == "target held out")
    rows = {record.num_units for record in result.records if record.task == "codes"}
    assert heard.unit == "utterance"
    assert rows == {heard.num_units}
    kinds = {(r.metric, r.labels) for r in result.records if r.task == "quick probe"}
    assert kinds == {("language_accuracy", "gold")}  # no phones are labelled
    compared = 1 + len(fakes.read_log(run, "probe"))
    for record in result.records:
        assert record.search_budget == (1 if record.system == "before" else compared)
        assert f"update {result.step} of {result.last_step}, the best of {compared} models" in record.notes
        assert "which flatters it" not in record.notes
    # the model is the update with the best held-out accuracy among all that were measured
    measured = {row["step"]: row["results"]["heldout/accuracy"] for row in fakes.read_log(run, "probe")}
    assert measured[result.step] == max(measured.values())
    assert measured[result.step] > summary["held_out_before"]
    # the same command finds it done, and a killed run comes to the same end
    again = adapt(asked, run, tests=[other], source=other)
    assert [record.value for record in again.records] == pytest.approx(
        [record.value for record in result.records], nan_ok=True
    )
    for step in sorted(measured)[1:]:
        shutil.rmtree(run / "checkpoints" / f"step_{step:08d}", ignore_errors=True)
    shutil.rmtree(run / "model")
    killed = adapt(asked, run, tests=[other], source=other)
    assert (killed.step, killed.last_step) == (result.step, result.last_step)
    assert all(torch.equal(after[name], value) for name, value in weights(killed.model_dir).items())


@pytest.mark.parametrize(("passes", "grouping"), [(0.1, "none"), (1, "none"), (1, "language"), (3, "none")])
def test_little_audio_gets_small_updates_and_the_passes_that_were_asked_for(
    model: Path, target: Path, tmp_path: Path, passes: float, grouping: str
) -> None:
    data = {"seconds_per_update": 600.0, "micro_batch_seconds": 60.0, "group_by": grouping}
    schedule = {"shape": "linear", "warmup": 0.1}
    result = adapt(
        recipe(model, target, data=data, schedule=schedule, training={"passes": passes}, adapt={"patience": 99}),
        tmp_path,
    )
    summary = result.summary
    heard = summary["target_seconds"]
    per_update = max(passes * heard / 10, 1.2)  # not below the longest utterance
    assert abs(summary["passes"] - passes) <= per_update / heard
    assert summary["planned_updates"] >= min(10, round(passes * heard / per_update))
    assert summary["learning_rate"]["last"] > 0
    assert summary["learning_rate"]["peak"] == pytest.approx(1e-3)
    started = " ".join(row["message"] for row in fakes.read_log(tmp_path, "start"))
    assert "instead of 600: the budget is" in started
    assert ("update only" in started or "updates only" in started) == (summary["planned_updates"] < 10)


def test_where_nothing_gets_better_the_model_is_the_start(
    model: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Falling(HeldOutJudge):
        """Finds each update worse than the one before."""

        def __call__(self, encoder: Any, step: int) -> dict[str, Any]:
            self._history = {**self._known(step), step: -float(step)}
            return {"heldout/accuracy": -float(step)}

    monkeypatch.setattr("isogloss.adapt.run.HeldOutJudge", Falling)
    worse = adapt(recipe(model, target, training={"passes": 20}), tmp_path / "run")
    measured = fakes.read_log(tmp_path / "run", "probe")
    assert len(measured) == 2  # the patience
    assert worse.last_step == measured[-1]["step"] < worse.summary["planned_updates"]
    assert worse.summary["stopped_early"]
    assert worse.step == 0
    assert all(torch.equal(value, weights(worse.model_dir)[name]) for name, value in weights(model).items())


class Scripted(torch.nn.Module):
    """A learner whose held-out accuracies are known."""

    def __init__(self, values: list[float], perplexity: float = 10.0) -> None:
        super().__init__()
        self.values, self.perplexity = values, perplexity
        self.weight = torch.nn.Parameter(torch.zeros(()))

        self.encoder = SimpleNamespace(edits=None)

    def objective(self, encoder: Any, batch: Any) -> LossTerms:
        value = self.values.pop(0)
        return LossTerms(
            torch.zeros(()), 100, {"accuracy": (100 * value, 100), "code_perplexity": (self.perplexity, 1)}
        )


def judge(tmp_path: Path, values: list[float], **learner: float) -> HeldOutJudge:
    batch: Any = SimpleNamespace(languages=["fr"])
    batch.to = lambda device: batch
    start = {"accuracy": 0.5, "code_perplexity": 50.0}
    return HeldOutJudge(Scripted(values, **learner), [batch], tmp_path, start=start, patience=2)  # type: ignore[arg-type]


def test_the_judge_waits_for_its_patience_and_keeps_the_best(tmp_path: Path) -> None:
    script = [0.6, 0.7, 0.65, 0.7, 0.9]
    own = judge(tmp_path, list(script))
    rows = []
    for step, ended in ((10, False), (20, False), (30, False), (40, True)):
        results = own(None, step)  # type: ignore[arg-type]
        rows.append({"event": "probe", "step": step, "results": results})
        assert results["heldout/accuracy/fr"] == pytest.approx(script[len(rows) - 1])
        assert own.enough(step) is ended
    assert own.best(40) == 20
    # resumed: what the log tells, up to where it goes on
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    resumed = judge(tmp_path, [])
    assert not resumed.enough(30)
    assert resumed.enough(40)
    assert resumed.best(30) == 20
    assert judge(tmp_path / "nothing", []).best(100) == 0


def test_a_measurement_that_is_not_a_number_counts_after_a_resume_too(tmp_path: Path) -> None:
    own = judge(tmp_path, [0.6, math.nan, math.nan])
    rows = [{"event": "probe", "step": step, "results": own(None, step)} for step in (1, 2, 3)]  # type: ignore[arg-type]
    text = "".join(json.dumps(row) + "\n" for row in rows).replace("NaN", "null")
    (tmp_path / "log.jsonl").write_text(text)
    resumed = judge(tmp_path, [])
    for one in (own, resumed):
        assert one.best(3) == 1
        assert (one.enough(2), one.enough(3)) == (False, True)
        assert one.num_compared(3) == 4


def test_nothing_to_judge_by_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must hold an utterance that the objective can be measured on"):
        HeldOutJudge(Scripted([]), [], tmp_path, start={}, patience=2)  # type: ignore[arg-type]


def test_the_judge_stops_a_collapse(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="code_perplexity.*collapsed"):
        judge(tmp_path, [0.9], perplexity=4.9)(None, 10)  # type: ignore[arg-type]


def test_scores_add_up_by_language() -> None:
    scores = Scores()
    scores.add("fr", LossTerms(torch.tensor(6.0), 3, {"accuracy": (2.0, 3)}))
    scores.add("nl", LossTerms(torch.tensor(2.0), 1, {"accuracy": (1.0, 1)}))
    assert scores.means() == {"loss": 2.0, "accuracy": 0.75}
    assert scores.means("nl") == {"loss": 2.0, "accuracy": 1.0}


def test_test_audio_is_refused_by_id_by_file_and_by_content(target: Path, other: Path, tmp_path: Path) -> None:
    cuts = list(open_corpus(target))
    refuse_test_audio(cuts, open_corpus(other), "elsewhere")
    with pytest.raises(DataError, match=rf"recording id \({cuts[0].recording.id}\)"):
        refuse_test_audio(cuts, cuts[:1], "test")
    renamed = fastcopy(cuts[1], id="x", recording=fastcopy(cuts[1].recording, id="another-name"))
    with pytest.raises(DataError, match=r"1 by file \(.*utterance_001\.wav\)"):
        refuse_test_audio(cuts, [renamed], "test")
    samples, rate = soundfile.read(cuts[2].recording.sources[0].source, dtype="int16")
    soundfile.write(tmp_path / "copy.flac", samples, rate, subtype="PCM_16")
    copied = fastcopy(cuts[2], id="y", recording=Recording.from_file(tmp_path / "copy.flac"))
    with pytest.raises(DataError, match=r"1 by content \(utterance_002\)"):
        refuse_test_audio(cuts, [copied], "test")


def test_the_mixture_divides_by_speaker_and_replays_its_share(target: Path, other: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"heldout": 0.3, "source": other, "replay": 0.5}
    mixture = prepare_mixture(tmp_path / "corpus", target, **settings)
    train, *parts = (list(open_corpus(folder)) for folder in (mixture.train, mixture.choosing, mixture.reporting))
    heldout = [cut for part in parts for cut in part]
    assert {cut.recording.id for cut in parts[0]}.isdisjoint(cut.recording.id for cut in parts[1])
    own = [cut for cut in train if not cut.id.startswith("replay")]
    assert {cut.supervisions[0].speaker for cut in own}.isdisjoint(cut.supervisions[0].speaker for cut in heldout)
    assert {cut.supervisions[0].language for cut in heldout} == {"fr", "nl"}
    assert len(own) + len(heldout) == len(list(open_corpus(target)))
    replayed = sum(cut.duration for cut in train) - sum(cut.duration for cut in own)
    assert replayed == pytest.approx(mixture.target_seconds, abs=1.3)
    assert len({cut.id for cut in train}) == len(train)
    # made once, and never of something else
    assert prepare_mixture(tmp_path / "corpus", target, **settings) == mixture
    with pytest.raises(DataError, match=r"are given now: `adapt.replay` \(was 0.5, is 0.2\); usually"):
        prepare_mixture(tmp_path / "corpus", target, **{**settings, "replay": 0.2})
    with pytest.raises(DataError, match=r"the audio of `--replay-data` \(was 8 .* s, is none\), `adapt.replay`"):
        prepare_mixture(tmp_path / "corpus", target, heldout=0.3)
    with pytest.raises(
        DataError, match=r"now: the audio of `--data` or `data.languages` \(was 30 .*, is 15 utterances"
    ):
        prepare_mixture(tmp_path / "corpus", target, **settings, languages=["fr"])
    with pytest.raises(DataError, match="its held-out part"):
        prepare_mixture(tmp_path / "same", target, heldout=0.3, source=target, replay=0.5)
    with pytest.raises(DataError, match="replay needs a source corpus"):
        prepare_mixture(tmp_path / "more", target, heldout=0.3, replay=0.2)


def test_the_command_line(model: Path, target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["adapt", "--from", str(model), "--data", str(target), "--out", str(tmp_path / "run"), "--passes", "1"]
    for setting in ("adapt.heldout=0.3", "data.seconds_per_update=3.2", "data.micro_batch_seconds=1.6"):
        command += ["--set", setting]
    command += ["--set", "data.min_seconds=0.3", "--set", "data.max_seconds=1.2", "--set", "data.num_workers=0"]
    with pytest.raises(SystemExit) as left:
        main([*command, "--test", str(target)])
    assert left.value.code == 1
    assert "audio of the test corpus" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main([*command, "--lr", "1e-3", "--set", "schedule.shape=constant"])
    assert not left.value.code
    told = capsys.readouterr()
    assert "no `--test` corpus was given" in told.err
    said = told.out
    assert "continued: wav2vec2" in said
    assert "0.001 at its peak" in said
    assert "where it chose among" in said
    assert json.loads((tmp_path / "run" / "energy.jsonl").read_text().splitlines()[-1])["wall_seconds"] > 0
    with pytest.raises(SystemExit) as left:
        main([*command, "--method", "continue"])
    assert left.value.code == 2
    assert "did you mean `continued`" in capsys.readouterr().err


def test_a_folder_belongs_to_one_method(model: Path, target: Path, tmp_path: Path) -> None:
    adapt(recipe(model, target, training={"passes": 0}, method={"name": "gates"}), tmp_path)
    changed = recipe(model, target, training={"passes": 0}, method={"name": "gates", "freeze_shared": True})
    with pytest.raises(
        ConfigError, match=r"was begun with another method: `method.freeze_shared` \(was False, is True\)"
    ):
        adapt(changed, tmp_path)


def test_methods_are_files() -> None:
    assert "continued" in method_names()
    assert not {"base", "run", "judge"} & set(method_names())
    with pytest.raises(ConfigError, match="needs a model to start from"):
        parse_adapt({"data": {}, "training": {"passes": 1}}, "test")
    with pytest.raises(ConfigError) as told:
        find_method("nope")
    assert str(told.value) == (
        "there is no method of adaptation `nope`; known are adapters, continued, gates, lora, one_hot, subnetwork"
    )
    with pytest.raises(ConfigError, match="known are adapters, "):
        find_method("loss_measur")


def test_two_lengths_of_a_run_are_named(model: Path, target: Path) -> None:
    for passes in (0, 1):
        with pytest.raises(ConfigError) as told:
            recipe(model, target, training={"passes": passes, "updates": 5})
        assert f"there are `training.updates` = 5 and `training.passes` = {passes}; leave one out" in str(told.value)
        assert "{" not in str(told.value)


def test_it_is_measured_after_passes_as_they_are_heard(model: Path, target: Path, tmp_path: Path) -> None:
    # Updates of 1.2 s hold one utterance of 0.8 s on average, so a pass is more of them than its seconds divided by 1.2.
    data = {"seconds_per_update": 1.2, "micro_batch_seconds": 1.2}
    result = adapt(recipe(model, target, data=data, training={"passes": 2}, adapt={"patience": 99}), tmp_path)
    measured = [row["step"] for row in fakes.read_log(tmp_path, "probe")]
    assert measured == [pytest.approx(result.last_step / 2, abs=1), result.last_step]
    assert measured[0] > 1.1 * result.summary["target_seconds"] / 1.2


@pytest.mark.parametrize("grouping", ["none", "language"])
def test_small_updates_are_as_long_as_what_their_processes_take(
    model: Path, target: Path, monkeypatch: pytest.MonkeyPatch, grouping: str
) -> None:
    data = {"seconds_per_update": 600.0, "micro_batch_seconds": 60.0, "group_by": grouping}
    for world, multiple in ((8, 1), (1, 8), (2, 4), (4, 6)):
        bins = math.lcm(world, multiple)
        monkeypatch.setattr("isogloss.core.dist.world_size", lambda world=world: world)
        own = recipe(model, target, data={**data, "bins_multiple_of": multiple}, training={"passes": 1}).recipe
        small, _ = with_small_updates(own)
        planner = Planner(
            CorpusIndex.open(target), small.data, seed=1, world_size=world, grouping=small.data.grouping(None)
        )
        updates = [planner.next().bins for _ in range(20)]
        assert {len(items) for items in updates} == {bins}
        held = sum(item.num_samples for items in updates for one in items for item in one) / 16_000 / len(updates)
        assert held == pytest.approx(small.data.seconds_per_update, rel=0.15)
    monkeypatch.undo()
    # each process has a micro-batch of its own, which is then shorter
    long = {**data, "micro_batch_seconds": 300.0, "bins_multiple_of": 4}
    small, _ = with_small_updates(recipe(model, target, data=long, training={"passes": 10}).recipe)
    assert small.data.micro_batch_seconds == pytest.approx(small.data.seconds_per_update / 4)


def test_a_run_of_another_length_is_not_gone_on_with(
    model: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(model, target, training={"passes": 1}, adapt={"patience": 99})
    first = adapt(asked, tmp_path)
    monkeypatch.setattr(SpeechLoader, "num_updates", lambda loader, seconds: first.last_step + 3)
    told = rf"was begun with {first.last_step} updates, but the same budget is {first.last_step + 3} now; .* in a new folder"
    with pytest.raises(ConfigError, match=told):
        adapt(asked, tmp_path)
    # a run that an older isogloss made says it as well
    newest = max((tmp_path / "checkpoints").glob("step_*")) / "state.json"
    state = newest.read_text()
    newest.write_text(json.dumps({key: value for key, value in json.loads(state).items() if key != "total_updates"}))
    with pytest.raises(ConfigError, match=told):
        adapt(asked, tmp_path)
    newest.write_text(state)
    monkeypatch.undo()
    assert adapt(asked, tmp_path).last_step == first.last_step
    # another budget is no other length of the same one
    with pytest.raises(ConfigError, match=r"`training\.passes` \(was 1\.0, is 3\.0\)"):
        adapt(recipe(model, target, training={"passes": 3}, adapt={"patience": 99}), tmp_path)
