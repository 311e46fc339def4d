"""Updates of text: planned for the whole job, resumed exactly, divided into the same bins for any number of processes.

A batch of text is a `SpeechBatch` whose utterances have no audio. The order of an epoch, the window of a long text and the
seeds are functions of the run's seed, as for speech.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from isogloss.core.config import Config
from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed
from isogloss.core.types import Packed, SpeechBatch
from isogloss.data.loader import Update
from isogloss.data.text_index import TextIndex


class TextData(Config):
    """Which texts, and how many of them an update takes; lengths in bytes of UTF-8, which are known without reading.

    A text above `max_bytes` gives one window of so many characters at most, another one each epoch.
    """

    paths: tuple[str, ...]
    bytes_per_update: int = Field(65_536, ge=1)
    micro_batch_bytes: int = Field(16_384, ge=1)
    max_bytes: int = Field(512, ge=1)
    min_bytes: int = Field(1, ge=1)
    language: str | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.paths:
            raise ValueError("`paths` must name a text file or a corpus with transcripts, but is empty")
        if self.max_bytes > self.micro_batch_bytes:
            raise ValueError(
                f"`max_bytes` must be at most `micro_batch_bytes` ({self.micro_batch_bytes}), but is {self.max_bytes}"
            )
        return self


class TextLoader:
    """An endless stream of updates of text that goes on bit-identically from the `state` of any of them."""

    def __init__(
        self,
        index: TextIndex,
        settings: TextData,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        bins_multiple_of: int = 1,
        allow_data_change: bool = False,
    ) -> None:
        self._index, self._settings, self._seed = index, settings, seed
        self._rank, self._world_size = rank, world_size
        self._multiple = math.lcm(world_size, bins_multiple_of)
        self._allow_data_change = allow_data_change
        self._rows = np.flatnonzero(index.sizes >= settings.min_bytes)
        if not len(self._rows):
            raise DataError(f"no text has `text.min_bytes` = {settings.min_bytes} bytes; lower it")
        self.num_bytes = int(np.minimum(index.sizes[self._rows].astype(np.int64), settings.max_bytes).sum())
        self._epoch = self._position = self._number = 0
        self._orders: dict[int, NDArray[np.int64]] = {}

    @property
    def state(self) -> dict[str, Any]:
        """The state after the last update (JSON)."""
        settings = self._settings.model_dump(mode="json", exclude={"paths"})
        return {
            "manifest": self._index.manifest,
            "seed": self._seed,
            "settings": settings,
            "update": self._number,
            "cursor": [self._epoch, self._position],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on after the update that `state` came with; other texts, seeds or settings are a `DataError`."""
        own = self.state
        try:
            changes = [key for key in ("manifest", "seed", "settings") if state[key] != own[key]]
            number, (epoch, position) = int(state["update"]), state["cursor"]
        except (KeyError, TypeError, ValueError):
            raise DataError("the state of the text loader is damaged; resume from an older checkpoint") from None
        if changes and not self._allow_data_change:
            raise DataError(
                f"the checkpoint was made with other texts: {', '.join(changes)} differ; use the old ones, or pass --allow-data-change"
            )
        self._number, self._epoch, self._position = number, int(epoch), int(position)
        if self._position >= len(self._rows):
            self._epoch, self._position = self._epoch + 1, 0

    def __iter__(self) -> Iterator[Update]:
        """Yield updates from `state` on, for ever."""
        while True:
            bins = self._plan()
            self._number += 1
            mine = bins[self._rank :: self._world_size]
            yield Update(self._number, [self._batch(rows) for rows in mine], self.state)

    def _plan(self) -> list[list[tuple[int, int]]]:
        """Take (row, epoch) pairs until the update is full, and divide them into bins of about equal size."""
        settings, taken, total = self._settings, list[tuple[int, int]](), 0
        while True:
            row = int(self._rows[self._order(self._epoch)[self._position]])
            size = min(int(self._index.sizes[row]), settings.max_bytes)
            if taken and total + size > settings.bytes_per_update and len(taken) >= self._multiple:
                break
            taken.append((row, self._epoch))
            total += size
            self._position += 1
            if self._position == len(self._rows):
                self._epoch, self._position = self._epoch + 1, 0
        count = max(math.ceil(total / settings.micro_batch_bytes / self._multiple), 1) * self._multiple
        count = min(count, len(taken) // self._multiple * self._multiple)
        # longest first, dealt out in turn and back: bins of texts in equal number and about equal size
        order = sorted(range(len(taken)), key=lambda i: -int(self._index.sizes[taken[i][0]]))
        bins: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        for place, item in enumerate(order):
            lap, seat = divmod(place, count)
            bins[seat if lap % 2 == 0 else count - 1 - seat].append(taken[item])
        return bins

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._orders:
            keys = np.random.Philox(key=derive_seed(self._seed, "texts", epoch)).random_raw(len(self._rows))
            self._orders = {epoch: np.argsort(keys, kind="stable")}
        return self._orders[epoch]

    def _batch(self, rows: list[tuple[int, int]]) -> SpeechBatch:
        texts, seeds = [], []
        for row, epoch in rows:
            text, seed = self._index.line(row), derive_seed(self._seed, "text", row, epoch)
            limit = self._settings.max_bytes
            if int(self._index.sizes[row]) > limit:
                spare = max(len(text) - limit, 0)
                start = derive_seed(seed, "window") % (spare + 1)
                # of a script of several bytes a character, the window is cut down to the bytes that were planned
                text = text[start : start + limit].encode()[:limit].decode("utf-8", errors="ignore")
            texts.append(text)
            seeds.append(seed)
        count = len(rows)
        return SpeechBatch(
            audio=Packed(torch.zeros(0), torch.zeros(count, dtype=torch.int64)),
            ids=[f"text-{row}" for row, _ in rows],
            languages=[self._settings.language] * count,
            seeds_B=torch.tensor(seeds, dtype=torch.int64),
            text=list(texts),
        )


class MixedLoader:
    """Updates that hold the bins of several loaders, in their order; the state has the state of each."""

    def __init__(self, loaders: Mapping[str, Any]) -> None:
        self._loaders = dict(loaders)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on after the update that `state` came with."""
        if set(state) != set(self._loaders):
            raise DataError(
                f"the checkpoint was made with {' and '.join(sorted(state))} as data, not {' and '.join(sorted(self._loaders))}"
            )
        for name, loader in self._loaders.items():
            loader.load_state(state[name])

    def __iter__(self) -> Iterator[Update]:
        """Yield updates, for ever; numbers are those of the first loader."""
        streams = {name: iter(loader) for name, loader in self._loaders.items()}
        try:
            while True:
                updates = {name: next(stream) for name, stream in streams.items()}
                first = next(iter(updates.values()))
                yield Update(
                    first.number,
                    [batch for update in updates.values() for batch in update.micro_batches],
                    {name: update.state for name, update in updates.items()},
                    [rejected for update in updates.values() for rejected in update.rejected],
                    sum(update.wait_seconds for update in updates.values()),
                )
        finally:
            for stream in streams.values():
                if isinstance(stream, Generator):
                    stream.close()  # ends a loader's workers now
