"""From planned items to a batch: decode, normalise the whole utterance, crop, pack. Runs in the loader's workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lhotse import MonoCut
from torch import Tensor
from torch.utils.data import Dataset

from isogloss.core.errors import DataError
from isogloss.core.types import Packed, SpeechBatch
from isogloss.data.audio import read_audio
from isogloss.data.folders import folder_of_cut
from isogloss.data.index import CorpusIndex
from isogloss.data.phones import aligned_phones
from isogloss.data.streams import SAMPLE_RATE, Item
from isogloss.data.units import UnitTable

LENGTH_TOLERANCE_SECONDS = 0.1  # lossy formats decode to a few hundred samples more or less than they declare
_SUBSTITUTES = 20


@dataclass(frozen=True)
class BinTask:
    """One bin of one update, on its way to a worker; the last one of an update carries the planner's state after it."""

    number: int
    items: list[Item]
    is_last: bool
    state: dict[str, Any]


@dataclass
class LoadedBin:
    """What a worker makes of a `BinTask`: the batch, and the utterances that could not be used with the reason.

    `batch` is None, and `failure` says why, where nothing could be made of the bin: an exception would come out of the worker
    wrapped in its traceback.
    """

    task: BinTask
    batch: SpeechBatch | None
    rejected: list[tuple[str, str]]
    failure: str = ""

    def pin_memory(self) -> LoadedBin:
        """Copy the batch to page-locked memory (called by torch's loader)."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


@dataclass
class _Utterance:
    waveform_T: Tensor
    cut: MonoCut
    is_whole: bool
    seed: int
    units: Tensor | None = None


@dataclass
class SpeechDataset(Dataset[LoadedBin]):
    """Decodes bins of items; indexed by a `BinTask`, not by a number.

    `prepare` (usually `encoder.prepare`) sees the whole utterance before it is cropped, since layer-norm models expect each
    utterance at zero mean and unit variance. An utterance longer than `whole_seconds` is not read whole: `prepare` then sees
    the `whole_seconds` seconds with the window in their middle.
    """

    index: CorpusIndex
    prepare: Callable[[Tensor], Tensor] | None = None
    whole_seconds: float = 60.0
    translation: str | None = None
    units: UnitTable | None = None
    num_frames: Callable[[int], int] | None = None
    read: Callable[..., Any] = field(default=read_audio)

    def __getitem__(self, task: BinTask) -> LoadedBin:
        """Decode one bin; unusable utterances are left out and named, never silently."""
        utterances, rejected = [], []
        for item in task.items:
            try:
                utterances.append(self.load(item))
            except (DataError, OSError) as error:
                rejected.append((self.index.cut_id(item.row), str(error)))
        if not utterances:
            try:
                utterances.append(self._substitute(task.items[0]))
            except DataError as error:
                return LoadedBin(task, None, rejected, str(error))
        return LoadedBin(task, self._pack(utterances), rejected)

    def load(self, item: Item) -> _Utterance:
        """Decode one item; a recording that is not what the manifest says is a `DataError`."""
        cut = self.index.cut(item.row)
        length = round(cut.duration * SAMPLE_RATE)
        first, last = 0, length
        if cut.duration > self.whole_seconds:
            first, last = self._read_window(item, length)
        samples = self.read(
            cut, sample_rate=SAMPLE_RATE, start=first / SAMPLE_RATE, duration=(last - first) / SAMPLE_RATE
        )
        waveform_T = torch.from_numpy(samples)
        self._check(waveform_T, cut, last - first)
        if self.prepare is not None:
            waveform_T = self.prepare(waveform_T)
        # the manifest may be a few samples off: a window that would end behind the last sample begins earlier
        num_samples = min(item.num_samples, len(waveform_T))
        start = min(item.start - first, len(waveform_T) - num_samples)
        loaded = _Utterance(
            waveform_T[start : start + num_samples].clone(), cut, is_whole=num_samples >= length - 320, seed=item.seed
        )
        if self.units is not None and self.num_frames is not None:
            loaded.units = self.units.crop(cut.id, first + start, self.num_frames(num_samples))
        return loaded

    def _read_window(self, item: Item, length: int) -> tuple[int, int]:
        if self.prepare is None:
            return item.start, min(item.start + item.num_samples, length)
        size = max(round(self.whole_seconds * SAMPLE_RATE), item.num_samples)
        first = min(max(item.start + item.num_samples // 2 - size // 2, 0), max(length - size, 0))
        return first, min(first + size, length)

    def _check(self, waveform_T: Tensor, cut: MonoCut, num_samples: int) -> None:
        if waveform_T.dim() != 1 or waveform_T.dtype != torch.float32:
            raise DataError(
                f"{cut.id}: must decode to mono float32, but is {tuple(waveform_T.shape)} {waveform_T.dtype}"
            )
        if abs(len(waveform_T) - num_samples) > LENGTH_TOLERANCE_SECONDS * SAMPLE_RATE or not len(waveform_T):
            raise DataError(
                f"{cut.id}: the manifest says {num_samples / SAMPLE_RATE:.2f} s, but {len(waveform_T) / SAMPLE_RATE:.2f} s were "
                "decoded; the recording was changed or cut short after the corpus was made"
            )
        if not bool(torch.isfinite(waveform_T).all()):
            raise DataError(f"{cut.id}: has samples that are not finite")

    def _substitute(self, item: Item) -> _Utterance:
        """Return the next usable utterance of the corpus in place of a bin of which nothing could be used.

        Every process needs something to compute in every micro-batch; this rare case keeps the others from waiting.
        """
        reason = ""
        for step in range(1, min(_SUBSTITUTES, len(self.index) - 1) + 1):
            row = (item.row + step) % len(self.index)
            length = round(float(self.index.durations[row]) * SAMPLE_RATE)
            if length < min(item.num_samples, SAMPLE_RATE):
                continue
            try:
                return self.load(Item(row, 0, min(length, item.num_samples), item.seed))
            except (DataError, OSError) as error:
                reason = str(error)
        raise DataError(
            f"none of {_SUBSTITUTES} recordings in a row can be used ({reason or 'too short'}); is the storage there? "
            "`isogloss corpus audit` names every bad file"
        )

    def _pack(self, utterances: list[_Utterance]) -> SpeechBatch:
        spoken = [u.cut.supervisions[0] if u.cut.supervisions else None for u in utterances]
        # the text of an utterance is not the text of a window of it
        texts = [s.text if s is not None and u.is_whole else None for s, u in zip(spoken, utterances, strict=True)]
        translations: list[str | None] | None = None
        if self.translation is not None:
            translations = [
                ((u.cut.custom or {}).get("translations") or {}).get(self.translation) if u.is_whole else None
                for u in utterances
            ]
        labels = [u.units for u in utterances if u.units is not None]
        return SpeechBatch(
            audio=Packed.from_list([u.waveform_T for u in utterances]),
            ids=[u.cut.id for u in utterances],
            languages=[s.language if s is not None else None for s in spoken],
            seeds_B=torch.tensor([u.seed for u in utterances], dtype=torch.int64),
            sample_rate=SAMPLE_RATE,
            speakers=[s.speaker if s is not None else None for s in spoken],
            text=texts,
            phones=[aligned_phones(u.cut) if u.is_whole else None for u in utterances],
            translation=translations,
            units=Packed.from_list(labels) if labels else None,
            folders=[folder_of_cut(u.cut) for u in utterances],
        )
