"""What an objective makes of two updates, in one process or on the ranks of a group, for the contract tests to compare."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import training_fakes as fakes
from isogloss.core import dist
from isogloss.encoders.presets import build_encoder
from isogloss.objectives.base import build_objective
from isogloss.training.parallel import Learner, Parallel, parallelize, set_threads, without_sync
from objective_cases import BATCH, Case, all_cases, speech

Bins = list[list[int]]
TWO_BINS: Bins = [[0, 1], [2, 3]]
TIMEOUT = 100
# Sharded as well: what holds whole tensors beside an encoder in parts, and statistics that ranks move together.
SHARDED = ("data2vec-batch-norm", "spidr-batch-norm")


def trace(case: Case, bins: Bins, parallel: Parallel = "ddp") -> dict[str, Tensor]:
    """Return loss, number of targets, metrics, gradients and state of two updates, summed over ranks.

    Each rank takes its share of the bins, as the loop's planner gives them; the second update is after half of the run, where
    teachers are frozen and temperatures lower.
    """
    torch.manual_seed(3)
    encoder = build_encoder(case.encoder)
    learner = Learner(encoder, build_objective(case.tree, encoder)).train()
    wrapped = parallelize(learner, parallel, torch.device("cpu"))
    batch = speech(BATCH, encoder=encoder)
    found: dict[str, Tensor] = {}
    for update, progress in enumerate((0.3, 0.6)):
        mine = bins[dist.rank() :: dist.world_size()]
        sums: dict[str, Tensor] = {}
        for number, members in enumerate(mine, 1):
            with without_sync(wrapped, number == len(mine)):
                terms = wrapped(batch.select(members))
                terms.total.backward()
            pairs = {"loss": (terms.total, terms.num_targets), **terms.metrics}
            for name, (total, count) in pairs.items():
                pair = torch.stack([torch.as_tensor(value, dtype=torch.float64).detach() for value in (total, count)])
                sums[f"{update}/sum/{name}"] = sums.get(f"{update}/sum/{name}", 0.0) + pair
        found |= {name: dist.sum_over_ranks(pair) for name, pair in sums.items()}
        num_targets = float(found[f"{update}/sum/loss"][1])
        with torch.no_grad():
            for name, parameter in learner.named_parameters():
                if parameter.grad is None:
                    continue
                parameter.grad *= dist.world_size()  # DDP and FSDP2 average
                found[f"{update}/gradient/{name}"] = dist.full_tensor(parameter.grad).clone()
                parameter -= 0.1 / num_targets * parameter.grad
                parameter.grad = None
        learner.after_step(progress)
        batch.seeds_B = batch.seeds_B + 1
    found |= {f"state/{name}": dist.full_tensor(tensor).clone() for name, tensor in learner.state_dict().items()}
    return found


def trace_on_two_ranks(folder: Path) -> dict[str, Path]:
    """Trace every case on two forked ranks in one group; return a file of tensors for each way of dividing the model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ranks = [fakes.SERVER.Process(target=_rank_main, args=(folder, rank, port)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(TIMEOUT)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
        rank.join()
    said = [path.read_text() for path in sorted(folder.glob("said_*"))]
    assert codes == [0, 0], (codes, said)
    return {parallel: folder / f"{parallel}.safetensors" for parallel in ("ddp", "fsdp2")}


def _rank_main(folder: Path, rank: int, port: str) -> None:
    sys.stderr = (folder / f"said_{rank}").open("w", buffering=1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    set_threads(1)
    cases = all_cases()
    with dist.process_group(TIMEOUT):
        for parallel, names in (("ddp", cases), ("fsdp2", SHARDED)):
            found = {}
            for name in names:
                tensors = trace(cases[name], TWO_BINS, parallel)
                for key, tensor in tensors.items():
                    # a + b = 2a only where b = a
                    assert torch.equal(dist.sum_over_ranks(tensor), 2 * tensor), (name, key, "differs between ranks")
                    found[f"{name}/{key}"] = tensor
            if rank == 0:
                save_file(found, folder / f"{parallel}.safetensors")
