"""Processes: who am I, agree with the others, never wait for ever."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def is_distributed() -> bool:
    """True inside an initialised process group."""
    return torch_dist.is_available() and torch_dist.is_initialized()


def launched_rank() -> int:
    """Rank that `torchrun` gave this process, known before it joins the group; 0 without `torchrun`."""
    return int(os.environ.get("RANK", "0"))


def rank() -> int:
    """Rank of this process, 0 outside a process group."""
    return torch_dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return torch_dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    """True on rank 0: the process that writes."""
    return rank() == 0


@contextmanager
def process_group(timeout_seconds: float = 120.0) -> Iterator[torch.device]:
    """Join the process group that `torchrun` describes in the environment (none without it) and yield this rank's device."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ or is_distributed():
        yield device
        return
    torch_dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(seconds=timeout_seconds)
    )
    # Whoever drops the last reference to a gloo group waits, holding Python's lock, for a thread of the group that may want
    # that lock to free a tensor: a rank that leaves by an error, whose traceback keeps a DDP wrapper, stood still so. Here the
    # last reference goes when the next group comes, or with the interpreter, when that thread has long had its turn.
    _kept[:] = [torch_dist.group.WORLD]
    try:
        yield device
    finally:
        torch_dist.destroy_process_group()


_kept: list[object] = []


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the sum over all ranks (not differentiable); the tensor itself in a single process."""
    if not is_distributed():
        return values
    total = values.detach().clone()
    torch_dist.all_reduce(total)
    return total


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """True on every rank if the flag is True on at least one."""
    if not is_distributed():
        return flag
    return bool(sum_over_ranks(torch.tensor(float(flag), device=device)) > 0)


def gather_objects(value: object) -> list[object]:
    """Return the values of all ranks, in rank order (trusted processes of one run only)."""
    if not is_distributed():
        return [value]
    gathered: list[object] = [None] * world_size()
    torch_dist.all_gather_object(gathered, value)
    return gathered


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded (FSDP2); every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_into(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded; each rank takes its own part, nothing is sent."""
    if isinstance(target, DTensor):
        target.copy_(
            distribute_tensor(source.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
        )
    else:
        target.copy_(source)
