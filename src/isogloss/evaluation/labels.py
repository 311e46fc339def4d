"""Phone labels of frames and phone sequences of utterances, from a cut's alignment or its IPA text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from isogloss.core.vocabulary import ipa_segments
from isogloss.data.phones import SILENCES, alignment_items, is_silence, phone_sequence

__all__ = [
    "SILENCES",
    "UNKNOWN",
    "UNLABELLED",
    "Inventory",
    "alignment_items",
    "alignment_kind",
    "frame_labels",
    "ipa_segments",
    "is_silence",
    "phone_sequence",
]

UNLABELLED = -1  # no phone at this time, or silence that is left out
UNKNOWN = -2  # a phone that the inventory lacks: always counted as an error


@dataclass(frozen=True)
class Inventory:
    """The phones of a probe in a fixed order."""

    phones: tuple[str, ...]

    def __len__(self) -> int:
        """Return C, the number of phones."""
        return len(self.phones)

    @cached_property
    def index(self) -> dict[str, int]:
        """Number of each phone."""
        return {phone: number for number, phone in enumerate(self.phones)}

    @classmethod
    def of(cls, sequences: Iterable[Sequence[str]]) -> Inventory:
        """Collect the phones of sequences, in the order of their names."""
        return cls(tuple(sorted(Counter(phone for sequence in sequences for phone in sequence))))

    def encode(self, phones: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the numbers of phones, `UNKNOWN` for one that the inventory lacks."""
        return np.array([self.index.get(phone, UNKNOWN) for phone in phones], dtype=np.int64)


def alignment_kind(cuts: Iterable[Any]) -> Literal["gold", "silver", "synthetic"]:
    """Return where the phone times of cuts come from: one silver or untold alignment makes all of them silver."""
    kinds = {(cut.custom or {}).get("alignment_kind") for cut in cuts}
    if kinds == {"gold"}:
        return "gold"
    return "synthetic" if kinds <= {"gold", "synthetic"} else "silver"


def frame_labels(
    cut: Any, centers_S: npt.NDArray[Any], inventory: Inventory, *, keep_silence: bool = False
) -> npt.NDArray[np.int64]:
    """Return the phone whose interval holds each frame's centre (S numbers, `UNLABELLED` or `UNKNOWN`)."""
    items = [item for item in alignment_items(cut) if item.duration > 0]
    labels_S = np.full(len(centers_S), UNLABELLED, dtype=np.int64)
    if not items:
        return labels_S
    starts = np.array([item.start for item in items])
    ends = np.array([item.start + item.duration for item in items])
    numbers = inventory.encode([item.symbol for item in items])
    if not keep_silence:
        numbers[[is_silence(item.symbol) for item in items]] = UNLABELLED
    # Times are decimal fractions: a microsecond decides ties that binary rounding would decide at random.
    times_S = centers_S + 1e-6
    at = np.searchsorted(starts, times_S, side="right") - 1
    inside = (at >= 0) & (times_S < ends[np.maximum(at, 0)])
    labels_S[inside] = numbers[at[inside]]
    return labels_S
