"""Whole adaptations of encoders that depend on the language, of objectives that predict units, and on two ranks."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import isogloss.adapt.run
import training_fakes as fakes
from isogloss.adapt._beside import beside, check_rivals, needs_controls
from isogloss.adapt._outcome import outcome
from isogloss.adapt._utterances import TARGET, read_utterances, write_utterances
from isogloss.adapt.base import AdaptRecipe, parse_adapt
from isogloss.adapt.heldout import Utterance
from isogloss.adapt.judge import HeldOutJudge
from isogloss.adapt.run import adapt
from isogloss.cli.main import main
from isogloss.core.errors import ConfigError, DataError
from isogloss.data.inputs import open_corpus
from isogloss.data.units import UnitTable
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import edits_of
from isogloss.encoders.presets import build_encoder, preset
from isogloss.evaluation.subnetworks import mask_overlap, masks_of
from isogloss.evaluation.tables import ResultRecord, read_results
from isogloss.hub.load import load_encoder
from isogloss.hub.save import save_model
from isogloss.objectives.base import build_objective
from small_corpus import speech_corpus

pytestmark = pytest.mark.timeout(240)
OBJECTIVE = {"name": "wav2vec2", "num_codes": 8, "target_width": 16, "final_width": 16, "num_negatives": 5}
NUM_UNITS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold models of wav2vec 2.0 and HuBERT, a target corpus of languages a and b, and a source corpus of a and c."""
    folder = tmp_path_factory.mktemp("runs")
    for name, objective in (("model", OBJECTIVE), ("hubert", {"name": "hubert", "num_units": NUM_UNITS})):
        torch.manual_seed(0)
        encoder = build_encoder(preset("wave-tiny"))
        save_model(folder / name, encoder, build_objective(objective, encoder), {})
    speech_corpus(folder / "target", [9000 + 300 * i for i in range(20)], languages="ab")
    source = speech_corpus(folder / "source", [9100 + 300 * i for i in range(8)], languages="ac")
    for path in source.glob("*.wav"):  # recordings of its own, by name as well
        path.rename(source / f"x{path.name}")
    cuts = source / "cuts.jsonl"
    cuts.write_text(cuts.read_text().replace('"u', '"xu'))
    return folder


def recipe_of(model: Path, target: Path, **sections: dict[str, Any]) -> AdaptRecipe:
    defaults: dict[str, dict[str, Any]] = {
        "adapt": {"heldout": 0.4, "patience": 9},
        "start": {"model": str(model)},
        "data": {"path": str(target), "seconds_per_update": 4.0, "micro_batch_seconds": 1.5, "max_seconds": 1.0}
        | {"min_seconds": 0.1, "num_workers": 0, "bins_multiple_of": 2},
        "optim": {"lr": 1e-2},
        "schedule": {"shape": "constant"},
        "training": {"updates": 2, "log_every": 1},
        "method": {},
        "objective": {},
    }
    return parse_adapt({name: {**values, **sections.get(name, {})} for name, values in defaults.items()}, "test")


def values(records: list[ResultRecord], system: str) -> dict[tuple[str, str], float]:
    return {(r.dataset, r.metric): r.value for r in records if r.system == system and r.task != "quick probe"}


MASKS = {"name": "subnetwork", "importance": "random", "sparsity": 0.5}


def test_masks_that_were_not_trained_leave_the_weights_and_are_reported_against_the_dense_model(
    folder: Path, tmp_path: Path
) -> None:
    nothing = {"training": {"updates": 0}}
    dense = adapt(recipe_of(folder / "model", folder / "target", **nothing), tmp_path / "dense")
    masked = adapt(recipe_of(folder / "model", folder / "target", **nothing, method=MASKS), tmp_path / "masked")
    assert values(masked.records, "before") == values(dense.records, "before")
    assert values(masked.records, "after") != values(masked.records, "before")
    start, model = (load_file(place / "model.safetensors") for place in (folder / "model", masked.model_dir))
    assert start.keys() == model.keys()
    assert all(torch.equal(model[name], tensor) for name, tensor in start.items())
    assert mask_overlap(load_encoder(masked.model_dir)).sparsity_L == pytest.approx([0.5, 0.5], abs=1e-3)
    for record in masked.records:
        if record.task == "masked prediction":
            assert record.labels == ""  # nothing was labelled
            assert "the language is known at test time" in record.notes
    # ρ = 0 leaves nothing out: the dense model, bit for bit
    none = {**MASKS, "sparsity": 0.0}
    whole = adapt(recipe_of(folder / "model", folder / "target", **nothing, method=none), tmp_path / "whole")
    assert values(whole.records, "after") == values(dense.records, "after")


def test_lottery_masks_are_found_and_trained_in_one_run(folder: Path, tmp_path: Path) -> None:
    lottery = {**MASKS, "importance": "lottery", "alone_updates": 1}
    result = adapt(recipe_of(folder / "model", folder / "target", method=lottery), tmp_path)
    assert result.last_step == 2
    assert {path.name for path in (tmp_path / "alone").iterdir()} == {"a", "b"}
    assert mask_overlap(load_encoder(result.model_dir)).sparsity_L == pytest.approx([0.5, 0.5], abs=1e-3)


def test_forgetting_is_measured_on_languages_that_the_edits_do_not_know(folder: Path, tmp_path: Path) -> None:
    target, source = folder / "target", folder / "source"
    first = adapt(recipe_of(folder / "model", target, method=MASKS), tmp_path / "first", source=source)
    again = recipe_of(first.model_dir, target, method={"name": "continued"})
    second = adapt(again, tmp_path / "second", source=source)
    for result in (first, second):
        assert {"source", "source/a", "source/c"} <= {record.dataset for record in result.records}
    assert load_encoder(second.model_dir).edits is not None


def test_only_the_languages_that_are_named_are_heard_and_judged(folder: Path, tmp_path: Path) -> None:
    asked = recipe_of(folder / "model", folder / "target", data={"languages": ["b"]})
    result = adapt(asked, tmp_path)
    assert {record.dataset for record in result.records} == {"target held out", "target held out/b", "probe"}
    for part in ("train", "choosing", "reporting"):
        assert {cut.supervisions[0].language for cut in open_corpus(tmp_path / "corpus" / part)} == {"b"}
    with pytest.raises(DataError, match="names fr, which"):
        adapt(recipe_of(folder / "model", folder / "target", data={"languages": ["fr"]}), tmp_path / "no")


def test_nothing_usable_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    speech_corpus(tmp_path / "short", [400, 400], languages="a")  # shorter than a frame
    with pytest.raises(DataError, match="no utterance is as long as `min_seconds`"):
        adapt(recipe_of(folder / "model", folder / "target"), tmp_path / "run", source=tmp_path / "short")


def test_options_that_would_do_nothing_are_refused_or_told(folder: Path, tmp_path: Path) -> None:
    plain = recipe_of(folder / "model", folder / "target")
    with pytest.raises(ConfigError, match=r"--replay-data .* must come with its share .* say how much with `--replay`"):
        adapt(plain, tmp_path, replay_data=folder / "source")
    for objective in ({}, {"name": "multi", "parts": {"a": {"objective": OBJECTIVE}}}):
        given = recipe_of(folder / "model", folder / "target", data={"units": "nowhere"}, objective=objective)
        with pytest.raises(
            ConfigError, match=r"`--units nowhere` must go with an objective that predicts units, but `(wav|mul)"
        ):
            adapt(given, tmp_path)
    given = recipe_of(folder / "hubert", folder / "target", data={"units": "nowhere"})
    with pytest.raises(DataError, match="nowhere: not a table of units"):
        adapt(given, tmp_path)
    assert not list(tmp_path.iterdir())
    nothing = recipe_of(folder / "model", folder / "target", training={"updates": 0})
    speech_corpus(tmp_path / "one", [9000, 9000, 9000], languages="a")
    probed = adapt(nothing, tmp_path / "probed", probe_data=tmp_path / "one")
    assert "the quick probe measures nothing on" in probed.summary["notes"][0]
    assert not adapt(nothing, tmp_path / "default").summary["notes"]


def test_what_the_model_is_where_no_update_was_better(folder: Path, tmp_path: Path) -> None:
    nothing = {"training": {"updates": 0}}
    for method, said in (
        ({}, "no update was computed, so the model is the start, unchanged: "),
        (
            MASKS,
            "no update was computed, so the model is the start with the masks that were put in for a, b, as they were before",
        ),
    ):
        run = tmp_path / str(len(method))
        result = adapt(recipe_of(folder / "model", folder / "target", **nothing, method=method), run)
        assert outcome(result.summary, result.model_dir).startswith(said)
    again = adapt(recipe_of(run / "model", folder / "target", **nothing), tmp_path / "again")
    assert outcome(again.summary, again.model_dir).endswith(f"is the start, unchanged: {again.model_dir}")
    trained = {**again.summary, "updates": 3}
    assert outcome(trained, run).startswith("no update was better than the start")
    assert outcome({**trained, "chosen_update": 2}, run) == f"model of update 2: {run}"


def units_of(corpus: Path, table: Path) -> Path:
    geometry = build_encoder(preset("wave-tiny")).geometry
    random = torch.Generator().manual_seed(1)
    labels = [
        (cut.id, torch.randint(NUM_UNITS, (geometry.num_frames(cut.num_samples),), generator=random).tolist())
        for cut in open_corpus(corpus)
    ]
    UnitTable.write(table, labels, geometry=geometry, num_units=NUM_UNITS)
    return table


def test_an_objective_with_units_replays_and_is_measured_on_source_audio(folder: Path, tmp_path: Path) -> None:
    target = units_of(folder / "target", tmp_path / "target")
    source = units_of(folder / "source", tmp_path / "source")
    asked = recipe_of(folder / "hubert", folder / "target", data={"units": str(target)}, adapt={"replay": 0.5})
    audio: dict[str, Any] = {"source": folder / "source", "replay_data": folder / "source"}
    run = tmp_path / "run"
    result = adapt(asked, run, **audio, replay_units=str(source), source_units=str(source))
    assert "source/c" in {record.dataset for record in result.records}
    joined = UnitTable(run / "corpus" / "units")
    replayed = [cut.id for cut in open_corpus(run / "corpus" / "train") if cut.id.startswith("replay0-")]
    assert replayed
    for name in replayed:
        assert torch.equal(joined.labels(name), UnitTable(source).labels(name.removeprefix("replay0-")))
    own = next(cut.id for cut in open_corpus(run / "corpus" / "reporting"))
    assert torch.equal(joined.labels(own), UnitTable(target).labels(own))
    # without units of the other corpora nothing is computed
    with pytest.raises(ConfigError, match=r"the replayed audio must have units too.*--replay-units"):
        adapt(asked, tmp_path / "no", **audio, source_units=str(source))
    with pytest.raises(ConfigError, match=r"the source audio must have units too.*--source-units"):
        adapt(asked, tmp_path / "no", **audio, replay_units=str(source))
    assert not (tmp_path / "no").exists()


def test_sub_networks_are_shown_beside_their_controls_only(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    command = [
        "adapt",
        "--from",
        str(folder / "model"),
        "--data",
        str(folder / "target"),
        "--test",
        str(folder / "source"),
    ]
    for setting in (
        "adapt.heldout=0.4",
        "data.seconds_per_update=6",
        "data.micro_batch_seconds=1.5",
        "data.max_seconds=1",
    ):
        command += ["--set", setting]
    command += ["--set", "data.min_seconds=0.1", "--set", "data.num_workers=0", "--set", "training.updates=0"]

    def call(name: str, *options: str) -> str:
        with pytest.raises(SystemExit) as left:
            main([*command, "--out", str(tmp_path / name), *options])
        assert not left.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    found = ("--method", "subnetwork", "--set", "method.batches=1")
    alone = call("found", *found)
    assert "missing: random masks, one-hot" in alone
    assert "masked_accuracy" not in alone
    random = call("random", "--method", "subnetwork", "--set", "method.importance=random")
    assert "before" in random
    assert "missing: one-hot" in call("found", *found, "--beside", str(tmp_path / "random"))
    call("told", "--method", "one_hot")
    controls = ("--beside", str(tmp_path / "told"), "--beside", str(tmp_path / "random"))
    shown = call("found", *found, *controls)
    assert "missing" not in shown
    for name in ("taylor masks", "random masks", "one-hot"):
        assert name in shown
    # the comparison comes first, that with random masks at its top
    places = [shown.index(name) for name in ("masks − random masks", "masks − one-hot", "taylor masks: before")]
    assert places == sorted(places)
    assert "random masks: before" not in shown
    assert "one-hot: after" in shown
    found_beside = read_results(tmp_path / "found" / "beside.jsonl")
    assert [record.value for record in found_beside] == pytest.approx(
        [
            values(read_results(tmp_path / "found" / "results.jsonl"), "after")[record.dataset, "masked_accuracy"]
            - values(read_results(tmp_path / name / "results.jsonl"), "after")[record.dataset, "masked_accuracy"]
            for name, record in zip(["random"] * 3 + ["told"] * 3, found_beside, strict=True)
        ]
    )
    assert any(record.value for record in found_beside)
    assert not needs_controls(json.loads((tmp_path / "random" / "adapt.json").read_text())["method"])
    # a rival that cannot be compared is found before anything is computed
    for options, told in (
        (("--beside", str(tmp_path / "nowhere")), "nowhere: is not a finished run of `isogloss adapt`"),
        (
            (*controls, "--set", "optim.clip=3"),
            "settings .* but has not: `optim.clip` (1.0 there, 3.0 here); run it with",
        ),
        ((*controls, "--set", "method.sparsity=0.2"), "`method.sparsity` (0.3 there, 0.2 here); run"),
        ((*controls, "--set", "training.seed=4"), "`training.seed` (1 there, 4 here); run"),
        ((*controls, "--set", "data.languages=['a']"), "`data.languages` (not set there, ['a'] here); run"),
        ((*controls, "--set", "training.updates=1"), "number of updates .* one of the two has a budget of zero"),
    ):
        with pytest.raises(SystemExit) as left:
            main([*command, "--out", str(tmp_path / "new"), *found, *options])
        assert left.value.code == 2
        said = capsys.readouterr().err
        assert re.search(re.escape(told).replace(r"\ \.\*\ ", ".*"), said), said
        assert not (tmp_path / "new").exists()


def test_only_the_learning_rate_may_differ_beside_a_run_and_that_is_said(folder: Path, tmp_path: Path) -> None:
    nothing, runs = {"training": {"updates": 0}}, {}
    for name, method, changes in (
        ("found", {**MASKS, "importance": "taylor", "batches": 1}, {}),
        ("random", MASKS, {"optim": {"lr": 3e-3}}),
        ("frozen", {"name": "one_hot", "freeze_shared": True}, {}),
    ):
        runs[name] = tmp_path / name
        adapt(recipe_of(folder / "model", folder / "target", **nothing, **changes, method=method), runs[name])
    compared = beside(runs["found"], [runs["frozen"], runs["random"]])
    assert compared.missing == ["one-hot"]  # one that trains only its vectors is not the control
    assert [record.system for record in compared.differences[::3]] == [
        "taylor masks, lr 0.01 − random masks, lr 0.003",
        "taylor masks, lr 0.01 − one-hot, what is shared frozen, lr 0.01",
    ]
    assert "learning rates differ" in compared.notes[0]
    assert all("learning rates differ" in record.notes for record in compared.differences)
    # the same run again is no better than itself
    same = beside(runs["found"], [runs["found"]])
    assert {(record.value, record.low, record.high) for record in same.differences} == {(0, 0, 0)}
    assert len({record.system for record in same.differences}) == 1
    summary = json.loads((runs["random"] / "adapt.json").read_text())
    (runs["random"] / "adapt.json").write_text(json.dumps({**summary, "planned_updates": 7}))
    with pytest.raises(
        ConfigError, match=r"must have the same number of updates .*: one of the two has a budget of zero"
    ):
        beside(runs["found"], [runs["random"]])
    (runs["frozen"] / "utterances.jsonl").unlink()
    with pytest.raises(DataError, match="make the run again in a new folder"):
        beside(runs["found"], [runs["frozen"]])


def test_the_same_budget_in_other_numbers_of_updates_is_told_and_not_refused(folder: Path, tmp_path: Path) -> None:
    once: dict[str, dict[str, Any]] = {"training": {"updates": None, "passes": 1}, "data": {"max_seconds": 1.5}}
    masked, dense = (recipe_of(folder / "model", folder / "target", **once, method=m) for m in (MASKS, {}))
    for name, own in (("masked", masked), ("dense", dense)):
        adapt(own, tmp_path / name)
    counts = [
        json.loads((tmp_path / name / "adapt.json").read_text())["planned_updates"] for name in ("masked", "dense")
    ]
    assert counts[0] != counts[1]
    check_rivals(masked, [tmp_path / "dense"])
    compared = beside(tmp_path / "masked", [tmp_path / "dense"])
    told = (
        f"numbers of updates differ (random masks {counts[0]}, continued {counts[1]}): the budget of audio is the same"
    )
    assert compared.notes[0].startswith(told)
    assert all(told in record.notes for record in compared.differences)
    # another budget is found before anything is computed
    longer: dict[str, dict[str, Any]] = {**once, "training": {"updates": None, "passes": 2}}
    twice = recipe_of(folder / "model", folder / "target", **longer, method=MASKS)
    with pytest.raises(
        ConfigError, match=r"`training.passes` \(1.0 there, 2.0 here\); run it with the same options and an"
    ):
        check_rivals(twice, [tmp_path / "dense"])
    # where only the micro-batches differ, the recipe that makes them alike is named, whichever of the two it is for
    grouped: dict[str, dict[str, Any]] = {**once, "data": {"max_seconds": 1.5, "group_by": "language"}}
    for method in (MASKS, {}):
        with pytest.raises(ConfigError) as refused:
            check_rivals(recipe_of(folder / "model", folder / "target", **grouped, method=method), [tmp_path / "dense"])
        assert str(refused.value).endswith(f"as rivals have it: make {tmp_path / 'dense'} with it")
        assert "`--recipe adapt/dense` is `continued`" in str(refused.value)
    with pytest.raises(ConfigError, match="run it with the same options and another method"):
        check_rivals(recipe_of(folder / "model", folder / "target", **grouped, method=MASKS), [tmp_path / "masked"])


def test_runs_in_folders_of_one_name_are_told_apart(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = recipe_of(folder / "model", folder / "target", training={"updates": 0}, method=MASKS)
    for place in ("s0", "s1"):
        adapt(nothing, tmp_path / place / "run")
    own = tmp_path / "s0" / "run"
    compared = beside(own, [tmp_path / "s1" / "run"])
    system = "random masks (s0/run) − random masks (s1/run)"
    assert {record.system for record in compared.differences} == {system}
    monkeypatch.chdir(own)
    assert {record.system for record in beside(Path(), [tmp_path / "s1" / "run"]).differences} == {system}


def test_ids_with_separators_of_lines_in_them_are_read_back(tmp_path: Path) -> None:
    utterances = [Utterance(f"a{mark}b", "fra", "s", 1.0, 2.0, 3.0) for mark in "\x85\u2028\x0b\r\n"]
    figures: Any = SimpleNamespace(target=utterances, source=None)
    write_utterances(tmp_path, figures, figures)
    assert read_utterances(tmp_path) == {TARGET: utterances}


class Last(HeldOutJudge):
    """Finds that the last update is the best."""

    def best(self, last: int) -> int:
        return last


def adapt_main(model: str, target: str, run: str, parallel: str, environment: dict[str, str]) -> None:
    """Adapt in a process of a group."""
    os.environ.update(environment)
    sys.stderr = Path(f"{run}.{environment['RANK']}.err").open("w")  # noqa: SIM115
    recipe = recipe_of(Path(model), Path(target), method=MASKS, training={"parallel": parallel, "timeout_seconds": 60})
    isogloss.adapt.run.HeldOutJudge = Last  # type: ignore[attr-defined,misc]
    adapt(recipe, run)


def test_masks_are_adapted_alike_by_one_process_two_ddp_ranks_and_two_fsdp2_ranks(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isogloss.adapt.run.HeldOutJudge", Last)
    one = adapt(recipe_of(folder / "model", folder / "target", method=MASKS), tmp_path / "one")
    for parallel in ("ddp", "fsdp2"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = [
            fakes.SERVER.Process(
                target=adapt_main,
                args=(
                    str(folder / "model"),
                    str(folder / "target"),
                    str(tmp_path / parallel),
                    parallel,
                    {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                ),
            )
            for rank in range(2)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(110)
            alive = rank.is_alive()
            if alive:
                rank.kill()
            assert rank.exitcode == 0, [path.read_text() for path in tmp_path.glob(f"{parallel}.*.err")]
        summary = json.loads((tmp_path / parallel / "adapt.json").read_text())
        assert summary["chosen_update"] == one.step == 2
        assert summary["held_out_best"] == pytest.approx(one.summary["held_out_best"], abs=0.02)
        mine, theirs = load_encoder(tmp_path / parallel / "model"), load_encoder(one.model_dir)
        assert unused_weights(mine) == unused_weights(theirs) > 0
        for (name, tensor), other in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, other, rtol=1e-3, atol=1e-4)
            else:
                assert torch.equal(tensor, other), name


def unused_weights(encoder: Encoder) -> int:
    """Return how many weights no language uses; each must be as it was at the start of these tests."""
    torch.manual_seed(0)
    start = build_encoder(preset("wave-tiny")).state_dict()
    assert edits_of(encoder)
    num = 0
    for name, edit in masks_of(encoder).items():
        unused = ~(edit.mask(0) | edit.mask(1))
        weight = encoder.state_dict()[f"{name}.weight"]
        assert torch.equal(weight[unused], start[f"{name}.weight"][unused]), "a weight of no language has moved"
        num += int(unused.sum())
    return num
