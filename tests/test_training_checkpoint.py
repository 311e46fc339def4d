"""Checkpoints: whole or absent, every changed bit found, a full disk survived."""

from __future__ import annotations

import json
import math
import random
import resource
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import training_fakes as fakes
from isogloss.core.errors import CheckpointError
from isogloss.training.checkpoint import (
    Checkpoints,
    first_non_finite,
    gather_tensors,
    load_tensors,
    read_state,
    tensors_hash,
)

STATE = {"step": 1, "loader": {"update": 1}}


def make(step: int = 1) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(step)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    module(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    return module, optimizer


def save(checkpoints: Checkpoints, step: int) -> Path:
    module, optimizer = make(step)
    return checkpoints.save(step, *gather_tensors(module, optimizer, keep=True), {**STATE, "step": step})


def test_round_trip_is_bit_equal_and_overwrites_what_was_there(tmp_path: Path) -> None:
    folder = save(Checkpoints(tmp_path), 1)
    module, optimizer = make(2)
    load_tensors(folder, module, optimizer)
    expected = gather_tensors(*make(1), keep=True)
    for mine, theirs in zip(gather_tensors(module, optimizer, keep=True), expected, strict=True):
        assert tensors_hash(mine) == tensors_hash(theirs)
    assert read_state(folder) == {**STATE, "step": 1}
    assert (tmp_path / "checkpoints" / "LATEST").read_text() == "step_00000001\n"


def test_the_oldest_are_forgotten_and_orphans_swept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):
        save(checkpoints, step)
    assert checkpoints.steps() == [2, 10]
    orphan = checkpoints.folder / ".tmp-save-123-00000011"
    orphan.mkdir()
    (orphan / "model.safetensors").write_bytes(b"half")
    assert checkpoints.sweep() == [orphan]
    assert not list(checkpoints.folder.glob(".tmp-*"))


def test_every_flipped_bit_is_found_named_and_the_older_checkpoint_used(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    newest = save(checkpoints, 2)
    keep = tmp_path / "keep"
    shutil.copytree(newest, keep)
    chance = random.Random(3)
    files = sorted(newest.iterdir())
    for trial in range(160):
        file = files[trial % len(files)]
        original = file.read_bytes()
        changed = bytearray(original)
        position = chance.randrange(len(changed))
        changed[position] ^= 1 << chance.randrange(8)
        file.write_bytes(changed)
        fault = checkpoints.verify(2)
        assert fault is not None, f"{file.name}, byte {position}"
        if file.name != "hashes.json":
            assert str(file) in fault
        file.write_bytes(original)
    assert checkpoints.verify(2) is None
    files[1].write_bytes(b"")
    said: list[str] = []
    assert checkpoints.newest_good(said.append) == checkpoints.path(1)
    assert len(said) == 1
    assert str(newest / files[1].name) in said[0]
    assert checkpoints.steps() == [1], "the damaged one is set aside"
    assert (checkpoints.folder / "step_00000002.damaged").is_dir()


def test_only_checkpoint_errors_come_from_fuzzed_folders(tmp_path: Path) -> None:
    chance = random.Random(5)
    for trial in range(40):
        run_dir = tmp_path / str(trial)
        checkpoints = Checkpoints(run_dir)
        folder = save(checkpoints, 1)
        file = chance.choice(sorted(folder.iterdir()))
        match trial % 4:
            case 0:
                file.write_bytes(file.read_bytes()[: chance.randrange(len(file.read_bytes()))])
            case 1:
                file.write_bytes(chance.randbytes(chance.randrange(300)))
            case 2:
                file.unlink()
            case 3:
                file.write_bytes(b"[" * 100_000)
        with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
            checkpoints.newest_good(lambda message: None)


def test_a_newer_format_is_not_read(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    folder = save(checkpoints, 1)
    hashes = json.loads((folder / "hashes.json").read_text())
    (folder / "hashes.json").write_text(json.dumps({**hashes, "format": 2}))
    assert "format" in (checkpoints.verify(1) or "")


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = save(Checkpoints(tmp_path), 1)
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    with pytest.raises(CheckpointError, match=r"made for another model.*'1.running_mean'"):
        load_tensors(folder, other, torch.optim.AdamW(other.parameters()))
    wider = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5))
    with pytest.raises(CheckpointError, match=r"`0.weight` must have shape \(5, 3\), but has \(4, 3\)"):
        load_tensors(folder, wider, torch.optim.AdamW(wider.parameters()))


@pytest.mark.parametrize("limit", [0, 100, 500, 1000])
def test_a_disk_that_refuses_leaves_the_older_checkpoint(tmp_path: Path, limit: int) -> None:
    # A limit on the size of a file fails a write in the middle, as a full disk does.
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CheckpointError, match="step_00000002: could not be saved"):
            save(checkpoints, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoints.newest_good(lambda message: None) == checkpoints.path(1)
    assert not list(checkpoints.folder.glob(".tmp-*"))
    assert save(checkpoints, 2) == checkpoints.path(2)


def test_no_room_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 100)  # type: ignore[attr-defined]
    monkeypatch.setattr("isogloss.training.checkpoint.shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"needs 0.00 GB free \(2.2 times its size\), but 0.00 GB are free"):
        save(Checkpoints(tmp_path), 1)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_run_survives_two_failed_saves_and_stops_at_the_third(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = fakes.make_corpus(tmp_path / "corpus", 8)
    real, calls = Checkpoints._need_space, []

    def refuse(self: Checkpoints, num_bytes: int) -> None:
        calls.append(num_bytes)
        if len(calls) in (1, 2, 4, 5, 6):
            raise OSError(28, "No space left on device")
        real(self, num_bytes)

    monkeypatch.setattr(Checkpoints, "_need_space", refuse)
    with pytest.raises(CheckpointError, match=r"3 checkpoints in a row could not be saved.*No space left"):
        fakes.run(fakes.make_job(corpus, updates=8), tmp_path / "run")
    assert Checkpoints(tmp_path / "run").steps() == [3]
    assert len(fakes.read_log(tmp_path / "run", "warning")) == 5


def test_a_run_falls_back_to_the_older_checkpoint_and_ends_with_the_same_weights(tmp_path: Path) -> None:
    corpus = fakes.make_corpus(tmp_path / "corpus", 8)
    fakes.run(fakes.make_job(corpus, updates=4), tmp_path / "whole")
    fakes.run(fakes.make_job(corpus, updates=4), tmp_path / "run")
    for step in (3, 4):
        file = tmp_path / "run" / "checkpoints" / f"step_{step:08d}" / "optimizer.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    fakes.run(fakes.make_job(corpus, updates=4), tmp_path / "run")
    warnings = [row["message"] for row in fakes.read_log(tmp_path / "run", "warning")]
    assert sum("optimizer.safetensors has changed since it was saved" in message for message in warnings) == 2
    assert "continues from" in fakes.read_log(tmp_path / "run", "resume")[0]["message"]
    assert tensors_hash(fakes.weights(tmp_path / "run", 4)) == tensors_hash(fakes.weights(tmp_path / "whole", 4))


def test_finite_weights_whose_sum_overflows_are_finite() -> None:
    huge = torch.full((4,), 3e38)
    assert first_non_finite({"huge": huge, "number": torch.tensor(7)}) is None
    for bad in (math.nan, math.inf, -math.inf):
        assert first_non_finite({"huge": huge, "bad": torch.tensor([0.0, bad])}) == "bad"
    assert first_non_finite({"both": torch.tensor([math.inf, -math.inf])}) == "both"
