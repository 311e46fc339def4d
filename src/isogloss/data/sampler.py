"""Plan updates for the whole job: which utterances, which windows of them, in which bins, with which seeds.

Everything is a function of (run seed, position): the order of an epoch, the language of a draw, the window of a long
utterance. So the state is a handful of cursors, and a planner that is given them goes on as the old one would have.

One stream per language (one for the whole corpus where languages are drawn as they come) runs through its utterances
without replacement, epoch after epoch. An update takes from the streams until it has `seconds_per_update`, then divides
what it took into bins: what an update holds does not depend on how many processes there are.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.lookup import nearest
from isogloss.core.rng import derive_seed
from isogloss.data.index import CorpusIndex
from isogloss.data.streams import SAMPLE_RATE, Grouping, Item, SamplingConfig, Stream

_WHOLE_CORPUS = "*"
_NO_LANGUAGE = "und"


@dataclass(frozen=True)
class Plan:
    """One update: its number (from 1), its bins of items, and the planner's state after it."""

    number: int
    bins: list[list[Item]]
    state: dict[str, Any]


class _Draw(NamedTuple):
    items: list[Item]
    stream: str
    cursor: tuple[int, int]  # epoch and position after the draw


class Planner:
    """Endless plans; `state` after update n makes a fresh planner go on with update n+1, whatever the number of processes."""

    def __init__(
        self,
        index: CorpusIndex,
        settings: SamplingConfig,
        *,
        seed: int,
        world_size: int = 1,
        grouping: Grouping | None = None,
        min_samples: int = 1,
    ) -> None:
        self._index, self._settings, self._seed, self._grouping = index, settings, seed, grouping
        self._multiple = math.lcm(world_size, settings.bins_multiple_of)
        shortest = max(settings.min_seconds, min_samples / SAMPLE_RATE)
        # half a sample of tolerance: durations are kept in 32 bits
        is_usable = index.durations >= shortest - 0.5 / SAMPLE_RATE
        if settings.languages is not None:
            is_usable = is_usable & np.isin(index.languages, _language_numbers(index, settings.languages))
        rows = np.flatnonzero(is_usable).astype(np.int32)
        if not len(rows):
            raise DataError(
                f"no utterance is as long as `min_seconds` = {shortest:g} s; the longest of {len(index)} has "
                f"{float(index.durations.max()):.2f} s; lower `data.min_seconds`"
            )
        self.num_utterances = len(rows)
        self._streams: dict[str, Stream] = {}
        self._thresholds: list[float] = []
        self.language_shares: dict[str, float] = {}  # of the seconds
        self._make_streams(rows)
        self._cursors = dict.fromkeys(self._streams, (0, 0))
        self._names = list(self._streams)
        self._draws = self._number = 0
        self._bucket_edges = _bucket_edges(index.durations, rows, settings)

    def _make_streams(self, rows: NDArray[np.int32]) -> None:
        settings = self._settings
        if settings.language_temperature == 1:
            self._streams[_WHOLE_CORPUS] = Stream(
                self._index, rows, _WHOLE_CORPUS, settings, self._seed, self._grouping
            )
            return
        languages = self._index.languages[rows]
        order = np.argsort(languages, kind="stable")
        numbers, firsts = np.unique(languages[order], return_index=True)
        weights = []
        for number, members in zip(numbers, np.split(rows[order], firsts[1:]), strict=True):
            name = self._index.language_names[number] if number >= 0 else _NO_LANGUAGE
            stream = Stream(self._index, members, name, settings, self._seed, self._grouping)
            self._streams[name] = stream
            durations = self._index.durations[members].astype(np.float64)
            share = float(durations.sum()) ** settings.language_temperature
            self.language_shares[name] = share
            if settings.long == "crop":
                drawn = float(np.minimum(durations, settings.max_seconds).sum())
            else:
                windows = np.floor(durations / settings.max_seconds)
                drawn = float(np.where(windows < 1, durations, windows * settings.max_seconds).sum())
            # a draw gives drawn / num_chunks seconds on average, so this many draws give the share
            weights.append(share * stream.num_chunks(0) / drawn)
        total = sum(self.language_shares.values())
        self.language_shares = {name: share / total for name, share in self.language_shares.items()}
        self._thresholds = list(np.cumsum(weights) / sum(weights))

    @property
    def state(self) -> dict[str, Any]:
        """The state after the last plan (JSON)."""
        return {
            "manifest": self._index.manifest,
            "seed": self._seed,
            "settings": {
                **self._settings.model_dump(include=set(SamplingConfig.model_fields)),
                "grouping": self._grouping,
            },
            "update": self._number,
            "draws": self._draws,
            "streams": {name: list(cursor) for name, cursor in self._cursors.items()},
        }

    def load_state(self, state: Mapping[str, Any], *, allow_data_change: bool = False) -> None:
        """Go on after the update that `state` was taken at; another corpus, seed or setting is a `DataError`.

        With `allow_data_change` the epochs and, as far as they exist, positions are kept; utterances of the running epoch may
        then come twice or not at all.
        """
        own = self.state
        try:
            cursors = {name: (int(epoch), int(position)) for name, (epoch, position) in state["streams"].items()}
            number, draws = int(state["update"]), int(state["draws"])
            changes = [key for key in ("manifest", "seed") if state[key] != own[key]]
            settings = state["settings"]
            changes += [
                f"{key} (was {settings.get(key)!r})"
                for key, value in own["settings"].items()
                if settings.get(key) != value
            ]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DataError("the state of the data loader is damaged; resume from an older checkpoint") from None
        if changes and not allow_data_change:
            raise DataError(
                f"the checkpoint was made with other data: {', '.join(changes)} differ; use the old corpus and settings, or pass "
                "--allow-data-change to go on with the new ones"
            )
        self._number, self._draws = number, draws
        for name, stream in self._streams.items():
            epoch, position = cursors.get(name, (0, 0))
            if position >= stream.num_chunks(epoch):
                epoch, position = epoch + 1, 0
            self._cursors[name] = (epoch, position)

    def next(self) -> Plan:
        """Plan the next update."""
        bins, draws = self._next_groups() if self._grouping else self._next_mixed()
        for draw in draws:
            self._cursors[draw.stream] = draw.cursor
        self._draws += len(draws)
        self._number += 1
        # bins that are worked on at the same time (by several processes) are about equally long
        bins.sort(key=lambda items: -sum(item.num_samples for item in items))
        return Plan(self._number, bins, self.state)

    def _next_mixed(self) -> tuple[list[list[Item]], list[_Draw]]:
        capacity = round(self._settings.micro_batch_seconds * SAMPLE_RATE)
        source = _Drawer(self)
        source.take_until(round(self._settings.seconds_per_update * SAMPLE_RATE))
        kept, count = self._fit(source, capacity)
        # what the update holds is settled; only into how many bins it goes depends on the number of processes
        count = _round_up(count, self._multiple)
        while True:
            source.take_at_least(count)
            draws = source.draws[: max(kept, count)]
            bins = self._divide([draw.items[0] for draw in draws], count)
            if _longest(bins) <= capacity:
                return bins, draws
            count += self._multiple

    def _fit(self, source: _Drawer, capacity: int) -> tuple[int, int]:
        """Return how many draws to keep, and in how many bins they fit.

        Where they just do not fit into the fewest bins, the last few are left to the next update.
        """
        items = [draw.items[0] for draw in source.draws]
        count = math.ceil(source.num_samples / capacity)
        for kept in range(len(items), max(len(items) - 4, count - 1), -1):
            if _longest(self._divide(items[:kept], count)) <= capacity:
                return kept, count
        while _longest(self._divide(items, count)) > capacity:
            count += 1
        return len(items), count

    def _next_groups(self) -> tuple[list[list[Item]], list[_Draw]]:
        source = _Drawer(self)
        source.take_about(round(self._settings.seconds_per_update * SAMPLE_RATE))
        count = max(round(len(source.draws) / self._multiple), 1) * self._multiple
        source.take_at_least(count)
        draws = source.draws[:count]
        return [draw.items for draw in draws], draws

    def _divide(self, items: list[Item], count: int) -> list[list[Item]]:
        if self._bucket_edges is None:
            return _divide_evenly(items, count)
        seconds = [item.num_samples / SAMPLE_RATE for item in items]
        buckets = np.searchsorted(self._bucket_edges, seconds, side="right")
        return _divide_in_order([items[i] for i in np.argsort(buckets, kind="stable")], count)

    def _pick(self, draw: int) -> str:
        if len(self._names) == 1:
            return self._names[0]
        uniform = derive_seed(self._seed, "language", draw) / 2**63
        return self._names[min(int(np.searchsorted(self._thresholds, uniform, side="right")), len(self._names) - 1)]


class _Drawer:
    """Takes from the streams without moving the planner's own cursors."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._cursors = dict(planner._cursors)
        self.draws: list[_Draw] = []
        self.num_samples = 0
        self._next: _Draw | None = None

    def take_until(self, num_samples: int) -> None:
        """Take while the sum stays within `num_samples`, at least once."""
        while not self.draws or self.num_samples + _total(self._peek().items) <= num_samples:
            self._take()

    def take_about(self, num_samples: int) -> None:
        """Take while that brings the sum nearer to `num_samples`, at least once."""
        while not self.draws or self.num_samples + _total(self._peek().items) / 2 <= num_samples:
            self._take()

    def take_at_least(self, count: int) -> None:
        """Take until there are `count` draws."""
        while len(self.draws) < count:
            self._take()

    def _peek(self) -> _Draw:
        if self._next is None:
            planner = self._planner
            name = planner._pick(planner._draws + len(self.draws))
            items, cursor = planner._streams[name].chunk(*self._cursors[name])
            self._next = _Draw(items, name, cursor)
        return self._next

    def _take(self) -> None:
        draw = self._peek()
        self._next = None
        self._cursors[draw.stream] = draw.cursor
        self.draws.append(draw)
        self.num_samples += _total(draw.items)


def _divide_evenly(items: Sequence[Item], count: int) -> list[list[Item]]:
    """Divide into `count` bins of about equal length: the longest first, each into the emptiest bin."""
    bins: list[list[int]] = [[] for _ in range(count)]
    heap = [(0, number) for number in range(count)]
    for position in sorted(range(len(items)), key=lambda position: -items[position].num_samples):
        filled, number = heapq.heappop(heap)
        bins[number].append(position)
        heapq.heappush(heap, (filled + items[position].num_samples, number))
    return [[items[position] for position in sorted(members)] for members in bins]


def _divide_in_order(items: Sequence[Item], count: int) -> list[list[Item]]:
    """Divide into `count` consecutive bins of about equal length, none of them empty."""
    ends = np.cumsum([item.num_samples for item in items])
    cuts = [0]
    for number in range(1, count):
        place = int(np.searchsorted(ends, ends[-1] * number / count))
        cuts.append(min(max(place, cuts[-1] + 1), len(items) - (count - number)))
    return [list(items[first:last]) for first, last in zip(cuts, [*cuts[1:], len(items)], strict=True)]


def _bucket_edges(
    durations: NDArray[np.float32], rows: NDArray[np.int32], settings: SamplingConfig
) -> NDArray[np.float64] | None:
    """Return the durations that divide the seconds of the corpus into equal buckets."""
    if settings.num_buckets == 1:
        return None
    seconds = np.sort(np.minimum(durations[rows].astype(np.float64), settings.max_seconds))
    ends = np.cumsum(seconds)
    shares = np.arange(1, settings.num_buckets) / settings.num_buckets
    edges: NDArray[np.float64] = seconds[np.minimum(np.searchsorted(ends, ends[-1] * shares), len(seconds) - 1)]
    return edges


def _language_numbers(index: CorpusIndex, names: Sequence[str]) -> list[int]:
    """Return the numbers of languages; one that the corpus does not have is a `ConfigError`."""
    for name in names:
        if name not in index.language_names:
            raise ConfigError(f"`data.languages`: the corpus has no `{name}`; {nearest(name, index.language_names)}")
    return [index.language_names.index(name) for name in names]


def _longest(bins: Sequence[Sequence[Item]]) -> int:
    return max(_total(items) for items in bins)


def _total(items: Sequence[Item]) -> int:
    return sum(item.num_samples for item in items)


def _round_up(count: int, multiple: int) -> int:
    return max(math.ceil(count / multiple), 1) * multiple
