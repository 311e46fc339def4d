"""A teacher, frozen half-way, and codebooks under one process, DDP and FSDP2: the same numbers, and each continues the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

import training_fakes as fakes

pytestmark = pytest.mark.timeout(120)
UPDATES = 4


def test_teacher_and_codebooks_are_the_same_however_the_work_is_divided(tmp_path: Path) -> None:
    corpus = fakes.make_corpus(tmp_path / "corpus")
    overrides = [
        *("data.seconds_per_update=3.2", "data.micro_batch_seconds=1.3", "data.bins_multiple_of=4"),
        *("data.num_workers=0", "data.min_seconds=0.3", "data.max_seconds=1.2", "data.long=crop"),
        *(f'data.path="{corpus}"', f"training.updates={UPDATES}", "training.log_every=1", "optim.clip=1.0"),
        *("training.checkpoint_every=1", "training.keep=100", "encoder.preset=spidr-tiny", "encoder.layerdrop=0.3"),
        *("objective.top_layers=2", "objective.num_codes=8", "objective.decay_start=0.5", "objective.freeze_after=0.5"),
    ]

    def train(run_dir: Path, parallel: str, ranks: int) -> None:
        mine = [*overrides, *([f"training.parallel={parallel}"] if ranks > 1 else [])]
        ended = fakes.finish(fakes.launch(corpus, run_dir, ranks=ranks, recipe="spidr-small", overrides=mine))
        assert [code for code, _ in ended] == [0] * ranks, ended

    def checkpoint(run_dir: Path, step: int) -> Path:
        return run_dir / "checkpoints" / f"step_{step:08d}"

    def agree(run_dir: Path) -> None:
        rows = {row["step"]: row for row in fakes.read_log(run_dir)}
        for step, row in rows.items():
            assert row["loss"] == pytest.approx(expected[step]["loss"], rel=5e-6), (run_dir.name, step)
            assert row["metrics"] == pytest.approx(expected[step]["metrics"], rel=1e-4), (run_dir.name, step)
        mine = load_file(checkpoint(run_dir, UPDATES) / "model.safetensors")
        assert mine.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (mine[name] - tensor).abs().max() < 2e-4 * tensor.abs().max() + 2e-5, (run_dir.name, name)

    train(tmp_path / "one", "ddp", 1)
    expected = {row["step"]: row for row in fakes.read_log(tmp_path / "one")}
    tensors = load_file(checkpoint(tmp_path / "one", UPDATES) / "model.safetensors")
    halfway = load_file(checkpoint(tmp_path / "one", 2) / "model.safetensors")
    early = load_file(checkpoint(tmp_path / "one", 1) / "model.safetensors")
    for name in tensors:
        is_still = (halfway[name] == tensors[name]).all()
        if "teacher.model.layers" in name or name.startswith("encoder.convolutions"):
            assert is_still, name
            assert not (early[name] == halfway[name]).all(), name
        elif name.startswith(("encoder.layers", "objective.heads", "objective.codebook")):
            assert not is_still, name
    for parallel in ("ddp", "fsdp2"):
        train(tmp_path / parallel, parallel, 2)
        agree(tmp_path / parallel)
    # a sharded run's checkpoint goes on in one process
    target = checkpoint(tmp_path / "continued", 1)
    target.parent.mkdir(parents=True)
    checkpoint(tmp_path / "fsdp2", 1).rename(target)
    train(tmp_path / "continued", "ddp", 1)
    agree(tmp_path / "continued")
