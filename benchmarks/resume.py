"""Reliability of training, measured: resume from every update, random kills, flipped bits, signals, ranks; prints a table.

OMP_NUM_THREADS=1 python benchmarks/resume.py            # everything, some 40 minutes on two cores
OMP_NUM_THREADS=1 python benchmarks/resume.py --quick    # a tenth of it
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import training_fakes as fakes
from isogloss.training.checkpoint import Checkpoints, tensors_hash
from isogloss.training.loop import train
from isogloss.training.recipe import load_recipe

OBJECTIVES = {
    "wav2vec2": [
        *("encoder.preset=wave-tiny", "encoder.layerdrop=0.1", "objective.num_codes=8"),
        *("objective.target_width=16", "objective.final_width=16", "objective.num_negatives=20"),
    ],
    "cpc": ["encoder.preset=cpc-tiny", "objective.ffn_width=32", "objective.num_negatives=16"],
}
RECIPES = {"wav2vec2": "wav2vec2-small", "cpc": "cpc-small"}


def overrides(corpus: Path, objective: str, updates: int, *more: str) -> list[str]:
    return [
        *OBJECTIVES[objective],
        *(
            "data.seconds_per_update=3.2",
            "data.micro_batch_seconds=1.3",
            "data.bins_multiple_of=4",
            "data.num_workers=0",
        ),
        *("data.min_seconds=0.3", "data.max_seconds=1.2", "data.long=crop", f'data.path="{corpus}"'),
        *(f"training.updates={updates}", "training.log_every=1", "training.checkpoint_every=1", "training.keep=1000"),
        *more,
    ]


def curve(run_dir: Path) -> dict[int, tuple[float, float, str]]:
    rows = fakes.read_log(run_dir)
    return {row["step"]: (row["loss"], row["grad_norm"], json.dumps(row["metrics"])) for row in rows}


def final_hash(run_dir: Path, step: int) -> str:
    return tensors_hash(fakes.weights(run_dir, step))


def resume_everywhere(work: Path, corpus: Path, objective: str, num_workers: int, updates: int) -> str:
    recipe = load_recipe(RECIPES[objective], overrides(corpus, objective, updates, f"data.num_workers={num_workers}"))
    full = work / "full"
    train(recipe, full)
    expected, final = curve(full), final_hash(full, updates)
    good = 0
    for step in range(1, updates + 1):
        run_dir = work / "again"
        shutil.copytree(full / "checkpoints" / f"step_{step:08d}", run_dir / "checkpoints" / f"step_{step:08d}")
        train(recipe, run_dir, resume="must")
        same = curve(run_dir) == {n: row for n, row in expected.items() if n > step}
        good += same and final_hash(run_dir, updates) == final
        shutil.rmtree(run_dir)
    return f"{good}/{updates} bit-equal (every loss, gradient norm, metric; final weights and moments)"


def kills(work: Path, corpus: Path, chains: int, kills_each: int, updates: int) -> str:
    chance = random.Random(11)
    settings = overrides(corpus, "wav2vec2", updates, "training.checkpoint_every=3", "training.keep=2")
    whole = work / "whole"
    train(load_recipe(RECIPES["wav2vec2"], settings), whole)
    hits = torn = equal = orphans = redone = 0
    for chain in range(chains):
        run_dir = work / f"chain_{chain}"
        for _ in range(kills_each):
            done = (
                max((row["step"] for row in fakes.read_log(run_dir)), default=0)
                if (run_dir / "log.jsonl").exists()
                else 0
            )
            ranks = fakes.launch(corpus, run_dir, recipe=RECIPES["wav2vec2"], overrides=settings)
            fakes.wait_for_step(run_dir, done + 1, ranks)
            time.sleep(chance.uniform(0, 0.5))
            hits += ranks[0].is_running()
            ranks[0].send(signal.SIGKILL)
            fakes.finish(ranks)
            steps = Checkpoints(run_dir).steps()
            torn += sum(Checkpoints(run_dir).verify(step) is not None for step in steps)
            redone += max((row["step"] for row in fakes.read_log(run_dir)), default=0) - (steps[-1] if steps else 0)
        ((code, said),) = fakes.finish(
            fakes.launch(corpus, run_dir, recipe=RECIPES["wav2vec2"], overrides=settings), 600
        )
        assert code == 0, said
        equal += curve(run_dir) == curve(whole) and final_hash(run_dir, updates) == final_hash(whole, updates)
        orphans += len(list((run_dir / "checkpoints").glob(".tmp-*")))
        shutil.rmtree(run_dir)
    return (
        f"{hits} kills, {torn} torn checkpoints, {orphans} orphans after the restart, {equal}/{chains} chains bit-equal, "
        f"{redone / max(hits, 1):.1f} updates redone a kill at an interval of 3"
    )


def flips(work: Path, corpus: Path, count: int) -> str:
    settings = overrides(corpus, "wav2vec2", 2)
    train(load_recipe(RECIPES["wav2vec2"], settings), work / "run")
    checkpoints, chance, found = Checkpoints(work / "run"), random.Random(3), 0
    files = sorted(checkpoints.path(2).iterdir())
    for trial in range(count):
        file = files[trial % len(files)]
        with file.open("r+b") as stream:
            position = chance.randrange(file.stat().st_size)
            stream.seek(position)
            byte = stream.read(1)[0]
            stream.seek(position)
            stream.write(bytes([byte ^ (1 << chance.randrange(8))]))
            stream.flush()
            found += checkpoints.verify(2) is not None
            stream.seek(position)
            stream.write(bytes([byte]))
    assert checkpoints.verify(2) is None
    return f"{found}/{count} detected and named"


def signals(work: Path, corpus: Path, count: int) -> str:
    chance, good, slowest, updates = random.Random(5), 0, 0.0, 60
    settings = overrides(corpus, "wav2vec2", updates, "training.checkpoint_every=1000")
    whole = work / "whole"
    train(load_recipe(RECIPES["wav2vec2"], settings), whole)
    for trial in range(count):
        run_dir = work / f"run_{trial}"
        number, code = list({signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 75}.items())[trial % 3]
        ranks = fakes.launch(corpus, run_dir, recipe=RECIPES["wav2vec2"], overrides=settings)
        fakes.wait_for_step(run_dir, 1, ranks)
        time.sleep(chance.uniform(0, 1.0))
        begin = time.monotonic()
        ranks[0].send(number)
        ((left, _),) = fakes.finish(ranks)
        slowest = max(slowest, time.monotonic() - begin)
        train(load_recipe(RECIPES["wav2vec2"], settings), run_dir)
        good += left == code and curve(run_dir) == curve(whole)
        shutil.rmtree(run_dir)
    return f"{good}/{count} left with 143, 130 or 75 and resumed bit-equal; slowest {slowest:.1f} s"


def one_rank(work: Path, corpus: Path, count: int) -> str:
    good, slowest = 0, 0.0
    settings = overrides(corpus, "wav2vec2", 100_000, "training.checkpoint_every=100000")
    for trial in range(count):
        run_dir = work / f"run_{trial}"
        ranks = fakes.launch(corpus, run_dir, ranks=2, recipe=RECIPES["wav2vec2"], overrides=settings)
        fakes.wait_for_step(run_dir, 2, ranks)
        begin = time.monotonic()
        ranks[trial % 2].send(signal.SIGTERM)
        ended = fakes.finish(ranks)
        slowest = max(slowest, time.monotonic() - begin)
        good += [code for code, _ in ended] == [143, 143] and len(Checkpoints(run_dir).steps()) == 1
    return f"{good}/{count} both ranks left with 143 after saving one and the same update; slowest {slowest:.1f} s"


def agreement(work: Path, corpus: Path, objective: str, updates: int) -> str:
    curves: dict[str, dict[int, Any]] = {}
    for parallel, ranks in (("one", 1), ("ddp", 2), ("fsdp2", 2)):
        more = [f"training.parallel={parallel}"] if ranks > 1 else []
        settings = overrides(corpus, objective, updates, "optim.clip=1.0", *more)
        ended = fakes.finish(
            fakes.launch(corpus, work / parallel, ranks=ranks, recipe=RECIPES[objective], overrides=settings), 300
        )
        assert all(code == 0 for code, _ in ended), ended
        curves[parallel] = curve(work / parallel)
    worst = {
        parallel: max(
            abs(other[i] - row[i]) / abs(row[i])
            for row, other in zip(curves["one"].values(), curves[parallel].values(), strict=True)
            for i in (0, 1)
        )
        for parallel in ("ddp", "fsdp2")
    }
    return f"largest relative difference of loss and gradient norm over {updates} updates: " + ", ".join(
        f"{parallel} {value:.1e}" for parallel, value in worst.items()
    )


def cost(work: Path) -> str:
    tensors = {f"tensor_{i}": torch.randn(1024, 1024) for i in range(60)}  # 252 MB
    plain, whole = [], []
    for trial in range(5):
        begin = time.perf_counter()
        save_file(tensors, work / "plain.safetensors")
        with (work / "plain.safetensors").open("rb") as file:
            import os

            os.fsync(file.fileno())
        plain.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        Checkpoints(work / "run", keep=1).save(trial, tensors, {}, {})
        whole.append(time.perf_counter() - begin)
    assert load_file(Checkpoints(work / "run").path(4) / "model.safetensors").keys() == tensors.keys()
    plain.sort()
    whole.sort()
    return f"252 MB: plain safetensors + fsync {plain[2]:.2f} s, with hashes, rename and pointer {whole[2]:.2f} s (medians of 5)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    updates = 8 if quick else 75
    torch.set_num_threads(1)
    table: list[tuple[str, Callable[[Path, Path], str]]] = [
        *(
            (
                f"resume from every update, {o}, {w} workers",
                lambda d, c, o=o, w=w: resume_everywhere(d, c, o, w, updates),
            )  # type: ignore[misc]
            for o in OBJECTIVES
            for w in (0, 2)
        ),
        ("random kill -9", lambda d, c: kills(d, c, 2 if quick else 25, 2, 30 if quick else 60)),
        ("one flipped bit", lambda d, c: flips(d, c, 50 if quick else 500)),
        ("SIGTERM, SIGINT, SIGUSR1", lambda d, c: signals(d, c, 3 if quick else 24)),
        ("SIGTERM to one of two ranks", lambda d, c: one_rank(d, c, 2 if quick else 10)),
        *((f"one process, 2 DDP, 2 FSDP2, {o}", lambda d, c, o=o: agreement(d, c, o, 10)) for o in OBJECTIVES),  # type: ignore[misc]
        ("cost of a whole checkpoint", lambda d, c: cost(d)),
    ]
    print(f"torch {torch.__version__}, one thread a process\n\n| what | result | minutes |\n|---|---|---|", flush=True)
    for name, measure in table:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            corpus = fakes.make_corpus(work / "corpus")
            begin = time.monotonic()
            result = measure(work, corpus)
            print(f"| {name} | {result} | {(time.monotonic() - begin) / 60:.1f} |", flush=True)


if __name__ == "__main__":
    main()
