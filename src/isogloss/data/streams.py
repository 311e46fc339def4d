"""One language's utterances, epoch after epoch: the order, the windows and the seeds, as functions of the run's seed."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from isogloss.core.config import Config
from isogloss.core.rng import derive_seed
from isogloss.data.index import CorpusIndex

SAMPLE_RATE = 16_000
START_STEP = (
    320  # samples: a window begins on a frame of 20 ms, so that labels of 50 and 100 Hz are cropped exactly with it
)
Grouping = Literal["speaker", "language"]


class SamplingConfig(Config):
    """What an update is made of (defaults: wav2vec 2.0 BASE, arXiv 2006.11477 §4.2).

    `language_temperature` is α of p_l ∝ (seconds_l / total)^α (XLSR, arXiv 2006.13979: 0.5); 1 takes the corpus as it is, and
    then every utterance comes exactly once an epoch. `long` says what becomes of an utterance above `max_seconds`: one
    random window each epoch, or all of ⌊duration / max_seconds⌋ consecutive windows, begun at a random offset.
    `num_buckets` above 1 makes bins of similar durations. `bins_multiple_of` makes the number of bins of an update a multiple
    of it as well as of the number of processes: with 4, one, two and four processes work through the same bins.
    `shuffle_shards` above 0 reads a sharded corpus that many shards at a time instead of jumping through all of it.
    `languages` takes these only (all where it is not given).
    """

    seconds_per_update: float = Field(5760.0, gt=0)
    micro_batch_seconds: float = Field(87.5, gt=0)
    min_seconds: float = Field(2.0, ge=0)
    max_seconds: float = Field(15.625, gt=0)
    long: Literal["crop", "windows"] = "crop"
    language_temperature: float = Field(1.0, ge=0)
    num_buckets: int = Field(1, ge=1)
    bins_multiple_of: int = Field(1, ge=1)
    shuffle_shards: int = Field(0, ge=0)
    languages: list[str] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_seconds > self.micro_batch_seconds:
            raise ValueError(
                f"`max_seconds` must be at most `micro_batch_seconds` ({self.micro_batch_seconds:g} s), but is "
                f"{self.max_seconds:g} s: a window would not fit into a micro-batch; raise the one or lower the other"
            )
        if self.min_seconds > self.max_seconds:
            raise ValueError(
                f"`min_seconds` must be at most `max_seconds` ({self.max_seconds:g} s), but is {self.min_seconds:g} s"
            )
        return self


class Item(NamedTuple):
    """One window of one utterance: row of the index, first sample and number of samples (at 16 kHz), random seed."""

    row: int
    start: int
    num_samples: int
    seed: int


class _Epoch(NamedTuple):
    rows_I: NDArray[np.int32]  # the items in their order
    windows_I: NDArray[np.int32] | None
    bounds: (
        NDArray[np.int64] | None
    )  # first item of each chunk, and the number of items; None where a chunk is one item


class Stream:
    """The utterances of one language, epoch after epoch, without replacement."""

    def __init__(
        self,
        index: CorpusIndex,
        rows: NDArray[np.int32],
        name: str,
        settings: SamplingConfig,
        seed: int,
        grouping: Grouping | None,
    ) -> None:
        self._index, self._rows, self._name = index, rows, name
        self._settings, self._seed, self._grouping = settings, seed, grouping
        self._max_samples = round(settings.max_seconds * SAMPLE_RATE)
        self._epochs: dict[int, _Epoch] = {}

    def chunk(self, epoch: int, position: int) -> tuple[list[Item], tuple[int, int]]:
        """Return the items at a position of an epoch and the cursor behind them."""
        order = self._epoch(epoch)
        if order.bounds is None:
            first, last, count = position, position + 1, len(order.rows_I)
        else:
            first, last, count = int(order.bounds[position]), int(order.bounds[position + 1]), len(order.bounds) - 1
        items = [self._item(order, number, epoch) for number in range(first, last)]
        return items, (epoch, position + 1) if position + 1 < count else (epoch + 1, 0)

    def num_chunks(self, epoch: int) -> int:
        """Return the number of positions of an epoch."""
        order = self._epoch(epoch)
        return len(order.rows_I) if order.bounds is None else len(order.bounds) - 1

    def _item(self, order: _Epoch, number: int, epoch: int) -> Item:
        row = int(order.rows_I[number])
        window = 0 if order.windows_I is None else int(order.windows_I[number])
        utterance = int(self._index.id_hashes[row])
        length = _num_samples(float(self._index.durations[row]))
        if length <= self._max_samples:
            return Item(row, 0, length, derive_seed(self._seed, "utterance", utterance, epoch, 0))
        seed = derive_seed(self._seed, "utterance", utterance, epoch, window)
        if self._settings.long == "crop":
            spare, first = length - self._max_samples, 0
        else:
            spare, first = length % self._max_samples, window * self._max_samples
        offset = derive_seed(self._seed, "offset", utterance, epoch) % (spare // START_STEP + 1) * START_STEP
        return Item(row, first + offset, self._max_samples, seed)

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:  # an update may look one epoch ahead and come back
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = self._plan_epoch(epoch)
        return self._epochs[epoch]

    def _plan_epoch(self, epoch: int) -> _Epoch:
        rows, windows = self._rows, None
        if self._settings.long == "windows":
            lengths = np.rint(self._index.durations[rows].astype(np.float64) * SAMPLE_RATE).astype(np.int64)
            counts = np.maximum(lengths // self._max_samples, 1)
            rows = np.repeat(rows, counts)
            firsts = np.repeat(np.cumsum(counts) - counts, counts)
            windows = (np.arange(len(rows)) - firsts).astype(np.int32)
        keys = _random_keys(len(rows), self._seed, "order", self._name, epoch)
        if self._grouping is not None:
            return self._plan_groups(rows, windows, keys, epoch)
        order = self._by_shard(rows, keys, epoch)
        return _Epoch(rows[order], None if windows is None else windows[order], None)

    def _by_shard(self, rows: NDArray[np.int32], keys: NDArray[np.uint64], epoch: int) -> NDArray[np.int64]:
        """Order by random key; where asked for, within a few shards (drawn at random) at a time."""
        if not self._settings.shuffle_shards or self._index.shards is None:
            return np.argsort(keys, kind="stable")
        shards = self._index.shards[rows]
        num_shards = int(shards.max()) + 1
        rank = np.empty(num_shards, dtype=np.int64)
        rank[np.argsort(_random_keys(num_shards, self._seed, "shards", self._name, epoch), kind="stable")] = np.arange(
            num_shards
        )
        return np.lexsort((keys, rank[shards] // self._settings.shuffle_shards))

    def _plan_groups(
        self, rows: NDArray[np.int32], windows: NDArray[np.int32] | None, keys: NDArray[np.uint64], epoch: int
    ) -> _Epoch:
        """Cut each group's utterances, in random order, into chunks of about equal seconds, and shuffle the chunks."""
        groups = (self._index.speakers if self._grouping == "speaker" else self._index.languages)[rows].astype(np.int64)
        if self._grouping == "speaker":  # unknown speakers are not one speaker: each utterance stands for itself
            groups = np.where(groups < 0, -1 - rows.astype(np.int64), groups)
        order = np.lexsort((keys, groups))
        seconds = np.minimum(self._index.durations[rows[order]].astype(np.float64), self._settings.max_seconds)
        bounds = _chunk_bounds(
            groups[order], seconds, min(self._settings.micro_batch_seconds, self._settings.seconds_per_update)
        )
        shuffled = np.argsort(_random_keys(len(bounds) - 1, self._seed, "chunks", self._name, epoch), kind="stable")
        sizes = np.diff(bounds)[shuffled]
        new_bounds = np.concatenate(([0], np.cumsum(sizes)))
        places = np.repeat(bounds[:-1][shuffled] - new_bounds[:-1], sizes) + np.arange(len(rows))
        order = order[places]
        return _Epoch(rows[order], None if windows is None else windows[order], new_bounds)


def _chunk_bounds(groups: NDArray[np.int64], seconds: NDArray[np.float64], capacity: float) -> NDArray[np.int64]:
    """Return where chunks begin: within a group, of about equal seconds, never above the capacity unless alone."""
    ends = np.cumsum(seconds)
    borders = np.flatnonzero(np.diff(groups)) + 1
    bounds = [0]
    for first, last in zip([0, *borders], [*borders, len(groups)], strict=True):
        before = ends[first - 1] if first else 0.0
        total = ends[last - 1] - before
        if last - first == 1 or total <= capacity:
            bounds.append(last)
            continue
        quota = total / max(math.ceil(total / capacity), 1)
        while first < last:
            before = ends[first - 1] if first else 0.0
            even = int(np.searchsorted(ends, before + quota - 1e-6)) + 1
            fits = int(np.searchsorted(ends, before + capacity + 1e-6, side="right"))
            first = min(max(min(even, fits), first + 1), last)
            bounds.append(first)
    return np.asarray(bounds, dtype=np.int64)


def _random_keys(count: int, *parts: int | str) -> NDArray[np.uint64]:
    # raw bits of a counter-based generator: numpy promises that they never change, which it does not of `permutation`
    keys: NDArray[np.uint64] = np.random.Philox(key=derive_seed(*parts)).random_raw(count)
    return keys


def _num_samples(seconds: float) -> int:
    return max(round(seconds * SAMPLE_RATE), 1)
