"""Updates, ready to compute: the planner runs here, in the main process; workers decode what it planned."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from isogloss.core import dist
from isogloss.core.errors import ConfigError, DataError
from isogloss.core.threads import usable_cores
from isogloss.core.types import SpeechBatch
from isogloss.data.dataset import BinTask, LoadedBin, SpeechDataset
from isogloss.data.index import CorpusIndex
from isogloss.data.sampler import Planner
from isogloss.data.streams import SAMPLE_RATE, Grouping, SamplingConfig
from isogloss.data.units import UnitTable


class DataConfig(SamplingConfig):
    """Which corpus, how it is sampled (`SamplingConfig`), and who decodes it.

    `path` is a cuts file, a prepared corpus or a Shar folder. `max_rejected` is the share of the corpus that may turn out
    unusable during the run before it stops. `translation` is the language whose translations the batches carry.
    `whole_seconds`: longer utterances are normalised over a window of that length. `timeout_seconds` is how long a bin may
    take to arrive before the run stops; `prefetch` is how many bins each worker prepares ahead. With `spawn` the workers
    start afresh instead of as copies of this process. `group_by` says what the utterances of a micro-batch have in common:
    "auto" leaves it to the objective; state it where several objectives are to see the same data in the same order. `units`
    is the folder of a table that `isogloss label` wrote, for objectives that predict units.
    """

    path: str
    num_workers: int = Field(2, ge=0)
    prefetch: int = Field(4, ge=1)
    timeout_seconds: float = Field(300.0, gt=0)
    start_method: Literal["fork", "spawn"] = "fork"
    max_rejected: float = Field(0.01, ge=0, le=1)
    whole_seconds: float = Field(60.0, gt=0)
    translation: str | None = None
    units: str | None = None
    group_by: Literal["auto", "none", "speaker", "language"] = "auto"

    @property
    def workers(self) -> int:
        """How many processes decode: `num_workers`, at most one for each CPU that this process may use."""
        return min(self.num_workers, usable_cores())

    def warnings(self) -> list[str]:
        """Return what this machine changes of the settings."""
        if self.workers == self.num_workers:
            return []
        return [
            f"`data.num_workers` is {self.num_workers}, more than the CPUs that can be used ({self.workers}); so many decode"
        ]

    def grouping(self, wanted: Grouping | None) -> Grouping | None:
        """Return the grouping to use where the objective wants this one."""
        if self.group_by == "auto":
            return wanted
        return None if self.group_by == "none" else self.group_by


@dataclass(frozen=True)
class Update:
    """One update, as far as this process computes it.

    `number` counts from 1; `state` (JSON) is the loader's state after it; `rejected` names the utterances of this update that
    could not be used, with the reason; `wait_seconds` is how long the caller waited for it.
    """

    number: int
    micro_batches: list[SpeechBatch]
    state: dict[str, Any]
    rejected: list[tuple[str, str]] = field(default_factory=list)
    wait_seconds: float = 0.0


class SpeechLoader:
    """An endless stream of updates that goes on bit-identically from the `state` of any of them.

    `prepare` brings one whole utterance to what the encoder expects (pass None where it leaves the waveform alone: long
    recordings are then read in windows only); `num_frames` says how many frames so many samples give, and utterances without
    a frame are left out. `grouping` makes each micro-batch hold one speaker or one language.

    `wait_seconds` adds up the time that the caller waited; `rejected` maps the id of each utterance that could not be used
    to the reason. Errors: `DataError` for a dead or stalled worker, too many unusable recordings, a state of other data.
    """

    def __init__(
        self,
        index: CorpusIndex,
        settings: DataConfig,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        prepare: Callable[[Tensor], Tensor] | None = None,
        num_frames: Callable[[int], int] | None = None,
        grouping: Grouping | None = None,
        units: UnitTable | None = None,
        allow_data_change: bool = False,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"`rank` must be in 0 … {world_size - 1}, but is {rank}")
        self._settings, self._rank, self._world_size = settings, rank, world_size
        self._allow_data_change = allow_data_change
        self.units = units
        self._dataset = SpeechDataset(
            index,
            prepare,
            settings.whole_seconds,
            settings.translation,
            units,
            num_frames if units is not None else None,
        )
        min_samples = 1 if num_frames is None else _shortest(num_frames)
        self._make_planner: Callable[[], Planner] = lambda: Planner(
            index, settings, seed=seed, world_size=world_size, grouping=grouping, min_samples=min_samples
        )
        planner = self._make_planner()
        self.num_utterances = planner.num_utterances
        self.language_shares = planner.language_shares
        self.state: dict[str, Any] = planner.state
        self.wait_seconds = 0.0
        self.rejected: dict[str, str] = {}
        _check_ranks_agree(self.state, world_size)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on after the update that `state` came with; another corpus, seed or setting is a `DataError`."""
        planner = self._make_planner()
        planner.load_state(state, allow_data_change=self._allow_data_change)
        self.state = planner.state

    def num_updates(self, seconds: float) -> int:
        """Return how many updates, from the first one on, hold about so many seconds of audio: the nearest number, at least one."""
        planner, count, done = self._make_planner(), 0, 0.0
        while True:
            held = sum(item.num_samples for items in planner.next().bins for item in items) / SAMPLE_RATE
            if count and done + held / 2 > seconds:
                return count
            count, done = count + 1, done + held

    def __iter__(self) -> Iterator[Update]:
        """Yield updates from `state` on, for ever."""
        planner = self._make_planner()
        planner.load_state(self.state)
        bins = iter(self._torch_loader(planner))
        batches: list[SpeechBatch] = []
        rejected: list[tuple[str, str]] = []
        waited = 0.0
        while True:
            begin = time.perf_counter()
            loaded = self._receive(bins)
            waited += time.perf_counter() - begin
            rejected += loaded.rejected
            self._quarantine(loaded.rejected)
            if loaded.batch is None:
                raise DataError(loaded.failure)
            batches.append(loaded.batch)
            if loaded.task.is_last:
                self.wait_seconds += waited
                self.state = loaded.task.state
                yield Update(loaded.task.number, batches, self.state, rejected, waited)
                batches, rejected, waited = [], [], 0.0

    def _torch_loader(self, planner: Planner) -> DataLoader[LoadedBin]:
        settings = self._settings
        has_workers = settings.workers > 0
        return DataLoader(
            self._dataset,
            sampler=_Tasks(planner, self._rank, self._world_size),
            batch_size=None,
            num_workers=settings.workers,
            prefetch_factor=settings.prefetch if has_workers else None,
            timeout=settings.timeout_seconds if has_workers else 0,
            multiprocessing_context=settings.start_method if has_workers else None,
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
            # torch draws a seed for its workers; from its global generator that would disturb the run's
            generator=torch.Generator().manual_seed(0),
        )

    def _receive(self, bins: Iterator[LoadedBin]) -> LoadedBin:
        try:
            return next(bins)
        except RuntimeError as error:
            message = str(error)
            if "timed out" in message:
                raise DataError(
                    f"no data for {self._settings.timeout_seconds:g} s; usually because the storage hangs or a recording is very "
                    "long; see `data.timeout_seconds`"
                ) from None
            if "DataLoader worker" in message and ("exited unexpectedly" in message or "killed by signal" in message):
                raise DataError(
                    f"a loader worker died: {message.splitlines()[0]} Usually because memory ran out; try fewer "
                    "`data.num_workers` or a smaller `data.prefetch`"
                ) from None
            raise

    def _quarantine(self, rejected: list[tuple[str, str]]) -> None:
        self.rejected.update(rejected)
        allowed = max(int(self._settings.max_rejected * self.num_utterances), 1 if self._settings.max_rejected else 0)
        if len(self.rejected) > allowed:
            name, reason = rejected[-1]
            raise DataError(
                f"{len(self.rejected)} of {self.num_utterances} recordings cannot be used, more than `max_rejected` = "
                f"{self._settings.max_rejected:g} allows, the last one {name}: {reason}; `isogloss corpus audit` names them all"
            )


class _Tasks:
    """The planner as a sampler of torch's loader: the bins of this process, one after the other."""

    def __init__(self, planner: Planner, rank: int, world_size: int) -> None:
        self._planner, self._rank, self._world_size = planner, rank, world_size

    def __iter__(self) -> Iterator[BinTask]:
        while True:
            plan = self._planner.next()
            bins = plan.bins[self._rank :: self._world_size]
            for number, items in enumerate(bins, 1):
                is_last = number == len(bins)
                yield BinTask(plan.number, items, is_last, plan.state if is_last else {})


def _start_worker(worker: int) -> None:
    """Keep a worker to one thread, and leave the signals that a scheduler sends to a whole process group to the main process.

    It will want this worker's batches to finish its update. Ctrl-C and SIGUSR1 are ignored; of SIGTERM the first, since a
    worker that hangs must still be ended.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def _shortest(num_frames: Callable[[int], int]) -> int:
    """Return the smallest number of samples that gives a frame."""
    low, high = 0, 1 << 24
    while high - low > 1:
        middle = (low + high) // 2
        if num_frames(middle) > 0:
            high = middle
        else:
            low = middle
    return high


def _check_ranks_agree(state: dict[str, Any], world_size: int) -> None:
    """Refuse to start where processes would plan different updates: some data would then come twice and some never."""
    if not dist.is_distributed() or dist.world_size() != world_size:
        return
    states = dist.gather_objects(state)
    for other, theirs in enumerate(states):
        if theirs != states[0]:
            raise DataError(
                f"process {other} has another seed, corpus or data setting than process 0; all must be the same: the planner "
                "divides the data between them itself"
            )
