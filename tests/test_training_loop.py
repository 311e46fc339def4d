"""The loop: same numbers however an update is divided, exact resume, honest stops."""

from __future__ import annotations

import itertools
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import training_fakes as fakes
from isogloss.core.errors import CheckpointError, ConfigError, DataError, TrainingError
from isogloss.core.types import Packed
from isogloss.data.loader import Update
from isogloss.training.checkpoint import Checkpoints, tensors_hash
from isogloss.training.loop import Loop
from isogloss.training.preempt import PreemptedError, StopRequest


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.make_corpus(tmp_path_factory.mktemp("corpus"))


def resume_points(full: Path, work: Path, corpus: Path, steps: range, updates: int, **options: Any) -> None:
    expected = fakes.curve(full)
    final = tensors_hash(fakes.weights(full, updates))
    for step in steps:
        run_dir = work / f"from_{step}"
        shutil.copytree(full / "checkpoints" / f"step_{step:08d}", run_dir / "checkpoints" / f"step_{step:08d}")
        fakes.run(fakes.make_job(corpus, updates=updates, checkpoint_every=1000, **options), run_dir, resume="must")
        redone = fakes.curve(run_dir)
        assert redone == {n: expected[n] for n in range(step + 1, updates + 1)}, f"losses after a resume at {step}"
        assert tensors_hash(fakes.weights(run_dir, updates)) == final, f"weights after a resume at {step}"
        shutil.rmtree(run_dir)


def test_resume_from_every_step_is_bit_equal(corpus: Path, tmp_path: Path) -> None:
    # 9 updates are more than a pass: the edge of an epoch is among the points.
    fakes.run(fakes.make_job(corpus, updates=9), tmp_path / "full")
    resume_points(tmp_path / "full", tmp_path, corpus, range(1, 9), 9)


def test_resume_is_bit_equal_with_workers_and_a_window_that_is_not_full(corpus: Path, tmp_path: Path) -> None:
    data = {"num_workers": 2, "prefetch": 4}
    fakes.run(fakes.make_job(corpus, updates=9), tmp_path / "full")
    # lines of two updates: a checkpoint at an odd update holds half a line
    fakes.run(fakes.make_job(corpus, updates=9, data=data, log_every=2), tmp_path / "pairs")
    assert tensors_hash(fakes.weights(tmp_path / "pairs", 9)) == tensors_hash(fakes.weights(tmp_path / "full", 9))
    run_dir = tmp_path / "again"
    shutil.copytree(tmp_path / "pairs" / "checkpoints" / "step_00000005", run_dir / "checkpoints" / "step_00000005")
    fakes.run(fakes.make_job(corpus, updates=9, data=data, log_every=2), run_dir, resume="must")
    expected = {n: row for n, row in fakes.curve(tmp_path / "pairs").items() if n > 5}
    assert fakes.curve(run_dir) == expected
    assert tensors_hash(fakes.weights(run_dir, 9)) == tensors_hash(fakes.weights(tmp_path / "full", 9))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_from_every_step_to_75(corpus: Path, tmp_path: Path, num_workers: int) -> None:
    options: dict[str, Any] = {"data": {"num_workers": num_workers}}
    fakes.run(fakes.make_job(corpus, updates=75, **options), tmp_path / "full")
    resume_points(tmp_path / "full", tmp_path, corpus, range(1, 75), 75, **options)


def test_bf16_keeps_fp32_weights_and_resumes_exactly(corpus: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"encoder": "wave-tiny", "precision": "bf16", "updates": 3}
    fakes.run(fakes.make_job(corpus, **options), tmp_path / "full")
    assert {t.dtype for t in fakes.weights(tmp_path / "full", 3).values()} == {torch.float32}
    resume_points(tmp_path / "full", tmp_path, corpus, range(2, 3), 3, encoder="wave-tiny", precision="bf16")


def test_same_seed_same_weights_and_another_seed_others(corpus: Path, tmp_path: Path) -> None:
    hashes = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        fakes.run(fakes.make_job(corpus, updates=2, seed=seed), tmp_path / name)
        hashes.append(tensors_hash(fakes.weights(tmp_path / name, 2)))
    assert hashes[0] == hashes[1] != hashes[2]


def test_dropout_is_drawn_anew_for_each_update_and_bin(corpus: Path, tmp_path: Path) -> None:
    seeds: list[int] = []

    def look(batch: Any) -> bool:
        seeds.append(torch.initial_seed())
        return False

    fakes.run(fakes.make_job(corpus, updates=3, poison=look), tmp_path)
    assert len(set(seeds)) == len(seeds) == 12


class Scripted:
    """A loader that yields what it is given."""

    def __init__(self, updates: list[Update]) -> None:
        self.updates = updates

    def __iter__(self) -> Any:
        return iter(self.updates)

    def load_state(self, state: Any) -> None:
        self.updates = self.updates[state["update"] :]


def in_one_bin(update: Update) -> Update:
    batches = update.micro_batches
    one = replace(
        batches[0],
        audio=Packed.from_list([part for batch in batches for part in batch.audio.split()]),
        ids=[name for batch in batches for name in batch.ids],
        languages=[name for batch in batches for name in batch.languages],
        seeds_B=torch.cat([batch.seeds_B for batch in batches]),
    )
    return replace(update, micro_batches=[one])


def test_one_bin_or_four_give_the_same_update_and_the_mean_is_over_all_targets(corpus: Path, tmp_path: Path) -> None:
    # Without dropout, which is drawn per bin.
    options: dict[str, Any] = {"updates": 4, "objective": lambda encoder: fakes.NextFrame(encoder, dropout=0.0)}
    updates = list(itertools.islice(fakes.make_job(corpus).loader, 4))
    assert len(updates[0].micro_batches) == 4
    fakes.run(fakes.make_job(corpus, loader=Scripted(updates), **options), tmp_path / "four")
    fakes.run(fakes.make_job(corpus, loader=Scripted([in_one_bin(u) for u in updates]), **options), tmp_path / "one")
    four, one = fakes.curve(tmp_path / "four"), fakes.curve(tmp_path / "one")
    for step in four:
        assert four[step][:2] == pytest.approx(one[step][:2], rel=1e-6)


def test_the_end_of_the_data_is_an_error_that_says_where(corpus: Path, tmp_path: Path) -> None:
    first = next(iter(fakes.make_job(corpus).loader))
    with pytest.raises(TrainingError, match="the data ended after update 1 of 12"):
        fakes.run(fakes.make_job(corpus, loader=Scripted([first])), tmp_path)


def test_non_finite_updates_are_skipped_named_and_stop_the_run_after_three(corpus: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def poison(batch: Any) -> bool:
        seen.extend(batch.ids)
        return "utterance_003" in batch.ids

    job, forgotten = fakes.make_job(corpus, updates=12, poison=poison), []
    job.learner.forget_update = lambda: forgotten.append(1)  # type: ignore[method-assign]
    fakes.run(job, tmp_path / "some")
    rows = fakes.read_log(tmp_path / "some", "skip")
    assert rows
    assert all("utterance_003" in row["utterances"] and row["reason"] == "a non-finite loss" for row in rows)
    assert len(rows) == seen.count("utterance_003") == len(forgotten)
    assert all(math.isfinite(loss) for loss, *_ in fakes.curve(tmp_path / "some").values())
    with pytest.raises(TrainingError, match="4 updates in a row had a non-finite loss, the last one with utterance_"):
        fakes.run(fakes.make_job(corpus, poison=lambda batch: True), tmp_path / "all")
    last = fakes.make_job(corpus).build().state_dict()
    saved = fakes.weights(tmp_path / "all", 3)
    assert all(torch.equal(saved[name], value) for name, value in last.items()), "a skipped update changed the weights"


def test_non_finite_weights_are_never_saved(corpus: Path, tmp_path: Path) -> None:
    job = fakes.make_job(corpus, updates=3)
    with torch.no_grad():
        job.learner.objective.head.bias[0] = float("inf")
    job.learner.objective.head.bias.requires_grad_(False)
    loop = Loop(job, tmp_path, torch.device("cpu"), StopRequest())
    with loop.stall, pytest.raises(TrainingError, match=r"`objective.head.bias` is not"):
        loop.save()
    assert not list(tmp_path.glob("checkpoints/step_*"))


def test_a_collapse_warns_then_stops_with_advice(corpus: Path, tmp_path: Path) -> None:
    job = fakes.make_job(corpus, updates=12)
    with torch.no_grad():
        for parameter in job.learner.encoder.parameters():
            parameter.zero_()
    for parameter in job.learner.encoder.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(
        TrainingError, match=r"stopped at update 6: `spread` must be above 0.0001.*constant; lower the rate"
    ):
        fakes.run(job, tmp_path)
    assert ["update 3" in row["message"] for row in fakes.read_log(tmp_path, "warning")] == [True]


def test_signals_save_and_leave_with_their_codes(corpus: Path, tmp_path: Path) -> None:
    fakes.run(fakes.make_job(corpus, updates=6), tmp_path / "full")
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)):
        run_dir = tmp_path / str(code)
        sent: list[bool] = []

        def send(batch: Any, number: int = number, sent: list[bool] = sent) -> bool:
            if not sent:
                sent.append(True)
                signal.raise_signal(number)
            return False

        with pytest.raises(PreemptedError, match="saved update 1") as stopped:
            fakes.run(fakes.make_job(corpus, updates=6, checkpoint_every=100, poison=send), run_dir)
        assert stopped.value.exit_code == code
        fakes.run(fakes.make_job(corpus, updates=6, checkpoint_every=100), run_dir)
        assert fakes.curve(run_dir) == fakes.curve(tmp_path / "full")
        assert tensors_hash(fakes.weights(run_dir, 6)) == tensors_hash(fakes.weights(tmp_path / "full", 6))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_resume_refuses_another_configuration_or_corpus_by_name(corpus: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    fakes.run(fakes.make_job(corpus, updates=2), run_dir)
    with pytest.raises(ConfigError, match=r"`training.seed` \(was 1, is 2\)"):
        fakes.run(fakes.make_job(corpus, updates=2, seed=2), run_dir)
    with pytest.raises(ConfigError, match="holds a run already"):
        fakes.run(fakes.make_job(corpus, updates=2), run_dir, resume="never")
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        fakes.run(fakes.make_job(corpus, updates=2), tmp_path / "new", resume="must")
    other = fakes.make_corpus(tmp_path / "other", 20)
    with pytest.raises(DataError, match=r"corpus has changed.*--allow-data-change"):
        fakes.run(fakes.make_job(other, updates=2), run_dir)
    # what does not change the result may change
    fakes.run(fakes.make_job(corpus, updates=2, keep=1, timeout_seconds=77), run_dir)


def test_a_run_folder_has_one_writer(corpus: Path, tmp_path: Path) -> None:
    from isogloss.training.rundir import run_lock

    with run_lock(tmp_path), pytest.raises(ConfigError, match="another process trains there"):
        fakes.run(fakes.make_job(corpus, updates=1), tmp_path)


def test_the_log_is_one_clean_curve_and_the_probe_leaves_no_trace(corpus: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def probe(encoder: Any, step: int) -> dict[str, Any]:
        asked.append(step)
        assert not encoder.training
        torch.rand(3)
        return {"accuracy": step / 10, "nothing": float("nan")}

    fakes.run(fakes.make_job(corpus, updates=4), tmp_path / "plain")
    fakes.run(fakes.make_job(corpus, updates=4, probe_every=2), tmp_path / "probed", probe=probe)
    assert asked == [2, 4]
    assert fakes.read_log(tmp_path / "probed", "probe")[0]["results"] == {
        "accuracy": 0.2,
        "nothing": None,
    }
    assert fakes.curve(tmp_path / "probed") == fakes.curve(tmp_path / "plain")
    with (tmp_path / "plain" / "log.jsonl").open("a") as file:
        file.write('{"event": "update", "step": 9, "loss": 1}\n{"torn')
    fakes.run(fakes.make_job(corpus, updates=4), tmp_path / "plain")
    assert list(fakes.curve(tmp_path / "plain")) == [1, 2, 3, 4]


def test_a_run_leaves_its_model_its_configuration_and_where_it_comes_from(corpus: Path, tmp_path: Path) -> None:
    import json

    result = fakes.run(fakes.make_job(corpus, updates=2), tmp_path)
    assert result.step == 2
    assert (tmp_path / "model" / "model.safetensors").exists()
    assert json.loads((tmp_path / "model" / "extra.json").read_text())["step"] == 2
    provenance = json.loads((tmp_path / "provenance.json").read_text())
    assert provenance["packages"]["torch"] == torch.__version__
    assert provenance["manifest_sha256"]
    assert "[training]" in (tmp_path / "config.toml").read_text()


class Remembering:
    """A judge that found one update better than all that came after it, and never has enough."""

    def __init__(self, best: int) -> None:
        self._best = best

    def __call__(self, encoder: Any, step: int) -> dict[str, Any]:
        return {}

    def enough(self, step: int) -> bool:
        return False

    def best(self, last: int) -> int:
        return min(self._best, last)


def test_preemptions_never_cost_the_best_checkpoint(corpus: Path, tmp_path: Path) -> None:
    fakes.run(fakes.make_job(corpus, updates=7), tmp_path / "whole")
    run_dir = tmp_path / "run"
    options: dict[str, Any] = {"updates": 7, "keep": 2, "checkpoint_every": 2}
    for _ in range(4):  # each leaves a checkpoint that no one asked for
        sent: list[bool] = []

        def send(batch: Any, sent: list[bool] = sent) -> bool:
            if not sent:
                sent.append(True)
                signal.raise_signal(signal.SIGTERM)
            return False

        with pytest.raises(PreemptedError):
            fakes.run(fakes.make_job(corpus, poison=send, **options), run_dir, judge=Remembering(2))
    assert Checkpoints(run_dir).steps() == [2, 3, 4]
    fakes.run(fakes.make_job(corpus, **options), run_dir, judge=Remembering(2))
    assert Checkpoints(run_dir).steps() == [2, 6, 7]
    model = load_file(run_dir / "model" / "model.safetensors")
    best = load_file(tmp_path / "whole" / "checkpoints" / "step_00000002" / "model.safetensors")
    assert tensors_hash(model) == tensors_hash(best)


def test_a_run_stops_at_once_where_its_best_update_cannot_be_saved(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"updates": 6, "keep": 1, "checkpoint_every": 2}
    fakes.run(fakes.make_job(corpus, **options), tmp_path / "whole", judge=Remembering(4))
    refused, real = [4], Checkpoints.save

    def refuse(self: Checkpoints, step: int, *rest: Any, **more: Any) -> Path:
        if step in refused:
            raise CheckpointError("the disk is full")
        return real(self, step, *rest, **more)

    monkeypatch.setattr(Checkpoints, "save", refuse)
    with pytest.raises(
        CheckpointError, match=r"the disk is full; .* without update 4, the best .* make room and resume"
    ):
        fakes.run(fakes.make_job(corpus, **options), tmp_path / "run", judge=Remembering(4))
    assert Checkpoints(tmp_path / "run").steps() == [2]
    refused.clear()
    fakes.run(fakes.make_job(corpus, **options), tmp_path / "run", judge=Remembering(4))
    found, whole = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "whole"))
    assert tensors_hash(found) == tensors_hash(whole)


def test_a_best_checkpoint_that_is_damaged_or_gone_is_told_and_never_becomes_the_model(
    corpus: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"updates": 4, "keep": 1, "checkpoint_every": 2}
    fakes.run(fakes.make_job(corpus, **options), tmp_path, judge=Remembering(2))
    shutil.rmtree(tmp_path / "model")
    file = Checkpoints(tmp_path).path(2) / "model.safetensors"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    with pytest.raises(CheckpointError, match=r"that of update 2, but .*model.safetensors has changed since"):
        fakes.run(fakes.make_job(corpus, **options), tmp_path, judge=Remembering(2))
    shutil.rmtree(file.parent)
    with pytest.raises(CheckpointError, match="that of update 2, but .* cannot be read"):
        fakes.run(fakes.make_job(corpus, **options), tmp_path, judge=Remembering(2))
    assert not (tmp_path / "model").exists()
