"""Several processes, and processes that are killed: the same numbers, no torn checkpoint, nobody waits for ever."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import training_fakes as fakes
from isogloss.training.checkpoint import Checkpoints, tensors_hash

pytestmark = pytest.mark.timeout(240)
WAVE: dict[str, Any] = {"encoder": "wave-tiny", "updates": 3, "probe_every": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.make_corpus(tmp_path_factory.mktemp("corpus"))


def test_one_process_two_ddp_ranks_and_two_fsdp2_ranks_agree_and_continue_each_other(
    corpus: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one"
    fakes.run(fakes.make_job(corpus, **WAVE), one, probe=fakes.spread_of_tone)
    expected = fakes.curve(one)
    for parallel in ("ddp", "fsdp2"):
        run_dir = tmp_path / parallel
        ended = fakes.finish(fakes.launch(corpus, run_dir, ranks=2, parallel=parallel, **WAVE))
        assert [code for code, _ in ended] == [0, 0], ended
        for step, row in fakes.curve(run_dir).items():
            assert row == pytest.approx(expected[step], rel=2e-6), f"{parallel}, update {step}"
        (probed,), (expected_probe,) = fakes.read_log(run_dir, "probe"), fakes.read_log(one, "probe")
        assert probed["results"] == pytest.approx(expected_probe["results"], rel=1e-5)
        mine, theirs = fakes.weights(run_dir, 3), fakes.weights(one, 3)
        assert mine.keys() == theirs.keys()
        assert all(mine[name].shape == theirs[name].shape for name in mine)
    # a sharded run's checkpoint goes on in one process, and the other way round
    for old, ranks, parallel in (("fsdp2", 1, "ddp"), ("one", 2, "fsdp2")):
        run_dir = tmp_path / f"{old}_continued"
        (run_dir / "checkpoints").mkdir(parents=True)
        (tmp_path / old / "checkpoints" / "step_00000002").rename(run_dir / "checkpoints" / "step_00000002")
        ended = fakes.finish(fakes.launch(corpus, run_dir, ranks=ranks, parallel=parallel, **WAVE))
        assert [code for code, _ in ended] == [0] * ranks, ended
        assert fakes.curve(run_dir)[3] == pytest.approx(expected[3], rel=1e-5)


@pytest.mark.parametrize("objective", ["wav2vec2", "cpc"])
def test_real_objectives_give_the_same_numbers_however_they_are_divided(
    corpus: Path, tmp_path: Path, objective: str
) -> None:
    overrides = [
        *(
            "data.seconds_per_update=3.2",
            "data.micro_batch_seconds=1.3",
            "data.bins_multiple_of=4",
            "data.num_workers=0",
        ),
        *("data.min_seconds=0.3", "data.max_seconds=1.2", "data.long=crop", f'data.path="{corpus}"'),
        *("training.updates=3", "training.log_every=1", "optim.clip=1.0"),
    ]
    if objective == "wav2vec2":
        overrides += ["encoder.preset=wave-tiny", "encoder.layerdrop=0.5", "objective.num_codes=8"]
        overrides += ["objective.target_width=16", "objective.final_width=16"]
    else:
        overrides += ["encoder.preset=cpc-tiny", "objective.ffn_width=16", "objective.num_negatives=16"]
    recipe = {"wav2vec2": "wav2vec2-small", "cpc": "cpc-small"}[objective]
    curves = {}
    for parallel, ranks in (("one", 1), ("ddp", 2), ("fsdp2", 2)):
        run_dir = tmp_path / parallel
        mine = [*overrides, *([f"training.parallel={parallel}"] if ranks > 1 else [])]
        ended = fakes.finish(fakes.launch(corpus, run_dir, ranks=ranks, recipe=recipe, overrides=mine))
        assert [code for code, _ in ended] == [0] * ranks, ended
        curves[parallel] = {row["step"]: row for row in fakes.read_log(run_dir)}
    for step, row in curves["one"].items():
        for parallel in ("ddp", "fsdp2"):
            other = curves[parallel][step]
            for key in ("loss", "grad_norm"):
                assert other[key] == pytest.approx(row[key], rel=2e-6), (parallel, step, key)
            assert other["metrics"] == pytest.approx(row["metrics"], rel=1e-4), (parallel, step)


def kill_chain(corpus: Path, run_dir: Path, kills: int, seed: int, updates: int) -> tuple[int, int]:
    """Kill -9 at random moments and start again; return kills that hit and checkpoints that were found torn."""
    chance, hits = random.Random(seed), 0
    options: dict[str, Any] = {"updates": updates, "checkpoint_every": 3, "keep": 2}
    for _ in range(kills):
        processes = fakes.launch(corpus, run_dir, **options)
        done = (
            max((row["step"] for row in fakes.read_log(run_dir)), default=0) if (run_dir / "log.jsonl").exists() else 0
        )
        fakes.wait_for_step(run_dir, min(done + 1, updates), processes)
        time.sleep(chance.uniform(0, 0.4))
        hits += processes[0].is_running()
        processes[0].send(signal.SIGKILL)
        fakes.finish(processes)
    (code, said), *_ = fakes.finish(fakes.launch(corpus, run_dir, **options))
    assert code == 0, said
    warnings = [row["message"] for row in fakes.read_log(run_dir, "warning")]
    return hits, sum("damaged" in message for message in warnings)


def check_chain(corpus: Path, tmp_path: Path, kills: int, seed: int, updates: int) -> None:
    fakes.run(fakes.make_job(corpus, updates=updates), tmp_path / "whole")
    run_dir = tmp_path / f"killed_{seed}"
    hits, torn = kill_chain(corpus, run_dir, kills, seed, updates)
    assert torn == 0
    assert hits > 0
    assert fakes.curve(run_dir) == fakes.curve(tmp_path / "whole"), "a loss differs from the uninterrupted run"
    assert tensors_hash(fakes.weights(run_dir, updates)) == tensors_hash(fakes.weights(tmp_path / "whole", updates))
    assert not list((run_dir / "checkpoints").glob(".tmp-*"))
    assert Checkpoints(run_dir).verify(updates) is None


def test_killed_and_started_again_ends_bit_equal(corpus: Path, tmp_path: Path) -> None:
    check_chain(corpus, tmp_path, kills=2, seed=1, updates=40)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(5))
def test_25_kills_end_bit_equal(corpus: Path, tmp_path: Path, seed: int) -> None:
    check_chain(corpus, tmp_path, kills=5, seed=seed, updates=150)


def test_a_signal_to_one_of_two_ranks_stops_both_at_the_same_update(corpus: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    processes = fakes.launch(corpus, tmp_path, ranks=2, updates=100_000, checkpoint_every=100_000)
    fakes.wait_for_step(tmp_path, 2, processes)
    processes[1].send(signal.SIGTERM)
    ended = fakes.finish(processes, 60)
    assert [code for code, _ in ended] == [143, 143], ended
    (step,) = Checkpoints(tmp_path).steps()
    assert all(f"saved update {step}" in said for _, said in ended)
    assert time.monotonic() - began < 60


def test_a_signal_to_the_whole_process_group_spares_the_workers(corpus: Path, tmp_path: Path) -> None:
    # as a scheduler sends it: to the main process and to its loader's workers alike
    options: dict[str, Any] = {"updates": 100_000, "checkpoint_every": 100_000, "data": {"num_workers": 2}}
    (process,) = fakes.launch(corpus, tmp_path, **options)
    fakes.wait_for_step(tmp_path, 2, [process])
    process.send_to_group(signal.SIGTERM)
    ((code, said),) = fakes.finish([process])
    assert code == 143, said
    assert len(Checkpoints(tmp_path).steps()) == 1


def test_nan_on_one_rank_stops_both_and_names_its_utterances(corpus: Path, tmp_path: Path) -> None:
    ended = fakes.finish(fakes.launch(corpus, tmp_path, ranks=2, bad_rank=1))
    assert [code for code, _ in ended] == [1, 1], ended
    assert all("4 updates in a row had a non-finite loss, the last one with utterance_" in said for _, said in ended)
    rows = fakes.read_log(tmp_path, "skip")
    assert len(rows) == 4
    assert all(0 < len(row["utterances"]) < 6 for row in rows), "only the bad rank's utterances are named"


def test_ranks_with_different_amounts_of_data_stop_together(corpus: Path, tmp_path: Path) -> None:
    ended = fakes.finish(fakes.launch(corpus, tmp_path, ranks=2, short_rank=1), 60)
    assert [code for code, _ in ended] == [1, 1], ended
    assert all("the ranks disagree on the data" in said for _, said in ended)


def test_a_frozen_rank_is_named_and_a_dead_one_is_told(corpus: Path, tmp_path: Path) -> None:
    processes = fakes.launch(corpus, tmp_path / "frozen", ranks=2, frozen_rank=1, timeout_seconds=5)
    code, said = processes[0].finish(60)
    processes[1].send(signal.SIGKILL)
    processes[1].finish(10)
    assert code == 76, said
    assert "rank 1 is frozen or dead" in said
    assert "at update 0" in said
    processes = fakes.launch(corpus, tmp_path / "dead", ranks=2, updates=100_000)
    fakes.wait_for_step(tmp_path / "dead", 1, processes)
    processes[1].send(signal.SIGKILL)
    (code, said), _ = fakes.finish(processes, 60)
    assert code == 1, said
    assert "lost contact with another rank" in said.splitlines()[-1]
