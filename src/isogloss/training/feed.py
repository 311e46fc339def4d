"""The next update, the same one on every rank."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator

import torch

from isogloss.core import dist
from isogloss.core.errors import TrainingError
from isogloss.data.loader import Update
from isogloss.training.logging import RunLog
from isogloss.training.stall import StallWatch


class Feed:
    """Hands out this rank's part of each update, and stops all ranks together where they do not have the same one.

    `waited` adds up the seconds that it took; whoever logs them sets it to zero.
    """

    def __init__(
        self, loader: Iterable[Update], total_updates: int, device: torch.device, stall: StallWatch, log: RunLog
    ) -> None:
        self._loader, self._total, self._device = loader, total_updates, device
        self._stall, self._log = stall, log
        self._updates: Iterator[Update] = iter(())
        self.waited = 0.0

    def __enter__(self) -> Feed:
        self._updates = iter(self._loader)
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._updates, Generator):
            self._updates.close()  # ends the loader's workers now, not when the interpreter leaves

    def after(self, step: int) -> Update:
        """Return the update that follows `step` of them; `TrainingError` where there is none, or the ranks disagree."""
        self._stall.beat(step, "waiting for data")
        begin = time.perf_counter()
        update = next(self._updates, None)
        self.waited += time.perf_counter() - begin
        self._stall.beat(step, "agreeing on the update")
        if dist.is_distributed():
            self._agree(step, update)
        if update is None:
            raise TrainingError(f"the data ended after update {step} of {self._total}")
        for name, reason in update.rejected:
            self._log.say("warning", step, f"left out {name}: {reason}")
        return update

    def _agree(self, step: int, update: Update | None) -> None:
        mine = (update.number, len(update.micro_batches)) if update is not None else (-1, 0)
        table = torch.zeros(dist.world_size(), 2, dtype=torch.int64, device=self._device)
        table[dist.rank()] = torch.tensor(mine)
        rows = dist.sum_over_ranks(table).tolist()
        if any(row != rows[0] for row in rows):
            parts = ", ".join(f"rank {r}: update {number} of {bins} bins" for r, (number, bins) in enumerate(rows))
            raise TrainingError(
                f"the ranks disagree on the data after update {step} ({parts}; −1 is the end); usually because they were started with "
                "different corpora or seeds"
            )
