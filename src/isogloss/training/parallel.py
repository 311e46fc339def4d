"""One module for the loop to call, and parallelism applied to it from outside."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, TypeVar, cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from isogloss.core import dist
from isogloss.core.errors import IsoglossError, TrainingError
from isogloss.core.threads import usable_cores
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.encoders.base import Encoder
from isogloss.nn.batch_norm import forget_statistics, step_statistics
from isogloss.objectives.base import Objective, Trainable

Parallel = Literal["ddp", "fsdp2"]
T = TypeVar("T")


class Learner(nn.Module):
    """An encoder and what trains it, behind one forward, so that DDP and FSDP2 see every parameter in one call."""

    def __init__(self, encoder: Encoder, trainable: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = trainable

    def forward(self, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss of a micro-batch."""
        terms: LossTerms = self.objective(self.encoder, batch)
        return terms

    @property
    def trainable(self) -> Trainable:
        """The objective, as the protocol that the loop speaks."""
        return cast(Trainable, self.objective)

    def after_step(self, progress: float) -> None:
        """Follow an update: first the encoder's statistics and what depends on the progress alone, then teachers, which read both."""
        step_statistics(self.encoder)
        self.trainable.after_step(progress)
        if isinstance(self.objective, Objective):
            self.objective.follow(self.encoder, progress)

    def forget_update(self) -> None:
        """Drop what the micro-batches of an update that is left out have left behind."""
        forget_statistics(self.encoder)
        if isinstance(self.objective, Objective):
            self.objective.forget_update()


def parallelize(learner: Learner, parallel: Parallel, device: torch.device) -> nn.Module:
    """Wrap a learner for the ranks of this job; alone it stays as it is.

    DDP copies it to every rank. FSDP2 shards the parameters, gradients and optimizer state of every block of the encoder and
    of what remains; parameters are gathered in fp32, so both ways compute the same numbers.
    """
    if dist.world_size() == 1:
        return learner
    if parallel == "ddp":
        with warnings.catch_warnings():
            # The name that torch 2.13 prefers, `forward_sync_buffers`, is unknown to 2.10.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                learner,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
    mesh = init_device_mesh(device.type, (dist.world_size(),))
    for block in learner.encoder.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(learner, mesh=mesh)
    return learner


def without_sync(wrapped: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Let DDP exchange gradients only after the last micro-batch of an update.

    FSDP2 exchanges after each one: unsharded gradients would cost the memory that sharding is there to save.
    """
    if isinstance(wrapped, DistributedDataParallel) and not is_last:
        return wrapped.no_sync()
    return nullcontext()


@contextmanager
def unsharded(learner: Learner) -> Iterator[None]:
    """Let the encoder be called by itself, outside the learner's forward, which gathers what FSDP2 shards."""
    if not isinstance(learner, FSDPModule):
        yield
        return
    learner.unshard()
    try:
        yield
    finally:
        learner.reshard()


def on_main(work: Callable[[], T]) -> T:
    """Do something on rank 0 and return its result on every rank; its error is raised on every rank, so that none waits."""
    outcome: tuple[T | None, IsoglossError | None] = (None, None)
    unforeseen: Exception | None = None
    if dist.is_main():
        try:
            outcome = (work(), None)
        except IsoglossError as error:
            outcome = (None, error)
        except Exception as error:
            unforeseen = error
            outcome = (None, TrainingError(f"rank 0 could not go on: {type(error).__name__}: {error}"))
    value, failure = cast("tuple[T | None, IsoglossError | None]", dist.gather_objects(outcome)[0])
    if unforeseen is not None:
        raise unforeseen
    if failure is not None:
        raise failure
    return cast(T, value)


def set_threads(threads: int | None) -> None:
    """Give this process its threads: as told, else as `OMP_NUM_THREADS` says, else the cores divided by the processes here.

    `torchrun` sets `OMP_NUM_THREADS=1` itself where there is more than one process, so a 1 is no wish then.
    """
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    wished = os.environ.get("OMP_NUM_THREADS", "")
    if threads is None and wished.isdecimal() and not (local_ranks > 1 and wished == "1"):
        threads = int(wished)
    torch.set_num_threads(threads or max(1, usable_cores() // local_ranks))


@contextmanager
def explained_failures() -> Iterator[None]:
    """Turn the collective libraries' complaint about a lost rank into one sentence."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).splitlines()[0] if str(error) else ""
        lost = (
            "Connection closed by peer",
            "Connection reset by peer",
            "Timed out waiting",
            "Broken pipe",
            "Socket closed",
        )
        if dist.world_size() > 1 and (
            isinstance(error, torch.distributed.DistError) or any(t in str(error) for t in lost)
        ):
            raise TrainingError(
                f"rank {dist.rank()} lost contact with another rank ({text}); usually because that one died: look at its last lines, "
                "then resume with the same command"
            ) from None
        raise
