"""An update that cannot be used is left out by all ranks together, and says whose fault it was; too many in a row end the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from isogloss.core import dist
from isogloss.core.errors import TrainingError
from isogloss.core.types import SpeechBatch
from isogloss.data.loader import Update
from isogloss.training.logging import RunLog

MAX_IN_ROW = 3  # updates that are left out; one more stops the run
_SHOWN = 20


def leave_out(
    update: Update, losses: Sequence[Tensor], *, has_targets: bool, step: int, in_row: int, log: RunLog
) -> None:
    """Log why update `step` is not used (`losses` are this rank's, one for each micro-batch), and which utterances are suspect.

    Every rank must call it. `TrainingError` where it is the `in_row`th in a row and those were too many.
    """
    bad = [b for b, loss in zip(update.micro_batches, losses, strict=True) if not bool(torch.isfinite(loss))]
    reason = "a non-finite loss" if has_targets else "no targets"
    names = _ids_of_all_ranks(bad)
    if not names:  # the loss was finite, its gradient was not
        reason = "a non-finite gradient" if has_targets else reason
        names = _ids_of_all_ranks(update.micro_batches)
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    log.write("skip", step, reason=reason, utterances=names)
    log.say("warning", step, f"update {step} skipped: {reason}; among these utterances: {shown}")
    if in_row > MAX_IN_ROW:
        usually = (
            "the learning rate is too high, or a recording holds NaN or huge samples (`isogloss corpus audit` finds them)"
            if has_targets
            else "the utterances are too short for the masks, or have no labels; raise `data.min_seconds`, or look at the labels"
        )
        raise TrainingError(
            f"{in_row} updates in a row had {reason}, the last one with {shown}; usually because {usually}"
        )


def _ids_of_all_ranks(batches: Iterable[SpeechBatch]) -> list[str]:
    found: list[Any] = [*dist.gather_objects([name for batch in batches for name in batch.ids])]
    return [name for part in found for name in part]
