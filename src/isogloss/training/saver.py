"""Saving a run and going on from where it was saved: what is gathered, what is refused, and how often a disk may fail."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from isogloss.core import dist
from isogloss.core.errors import CheckpointError, TrainingError
from isogloss.training.checkpoint import Checkpoints, first_non_finite, gather_tensors
from isogloss.training.logging import RunLog
from isogloss.training.parallel import Learner, on_main
from isogloss.training.stall import StallWatch

MAX_FAILED = 3  # saves in a row; the disk may have been full for a while


class Saver:
    """Commits the checkpoints of a run; every rank takes part, rank 0 writes. `saved_step` is the newest one."""

    def __init__(self, checkpoints: Checkpoints, stall: StallWatch, log: RunLog) -> None:
        self.checkpoints, self._stall, self._log = checkpoints, stall, log
        self.saved_step = -1
        self._failed = 0

    def save(
        self,
        step: int,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        state: Mapping[str, Any],
        *,
        spare: tuple[int, ...] = (),
        is_needed: bool = False,
    ) -> None:
        """Commit a checkpoint, unless this step has one; those of `spare` are not forgotten for it.

        A disk that refuses it is warned about, and is a `CheckpointError` at the third time in a row; at the first where the
        checkpoint `is_needed`. Weights that are not finite are never saved: `TrainingError`.
        """
        if self.saved_step == step:
            return
        self._stall.beat(step, "saving")
        model, moments = gather_tensors(learner, optimizer, keep=dist.is_main())

        def commit() -> str | None:
            name = first_non_finite(model) or first_non_finite(moments)
            if name is not None:
                raise TrainingError(
                    f"`{name}` is not finite after update {step}, so nothing was saved; lower the learning rate and resume from the "
                    "last checkpoint"
                )
            try:
                self.checkpoints.save(step, model, moments, state, spare=spare)
            except CheckpointError as error:
                return str(error)
            return None

        problem = on_main(commit)
        self._stall.beat(step, "saved")
        if problem is None:
            self.saved_step, self._failed = step, 0
            self._log.write("checkpoint", step, message=str(self.checkpoints.path(step)))
            return
        if is_needed:
            raise CheckpointError(
                f"{problem}; the run cannot go on without update {step}, the best on held-out audio so far: make room and resume"
            )
        self._failed += 1
        self._log.say("warning", step, f"{problem}; the run goes on and will try again")
        if self._failed >= MAX_FAILED:
            raise CheckpointError(f"{self._failed} checkpoints in a row could not be saved: {problem}")

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return self.checkpoints.folder
