"""Phone labels of frames and phone sequences of utterances, from a cut's alignment or its IPA text."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from isogloss.core.errors import DataError

SILENCES = frozenset({"", "sil", "sp", "spn", "nsn", "pau", "_", "<eps>", "<sil>", "[silence]", "#"})
UNLABELLED = -1  # no phone at this time, or silence that is left out
UNKNOWN = -2  # a phone that the inventory lacks: always counted as an error

_TIES = frozenset("͜͡")
_PROSODY = frozenset("ˈˌ.|‖ˑ")  # stress, syllable and group marks: of the word, not of a segment


def is_silence(symbol: str) -> bool:
    """True for the usual names of silence, noise and empty labels."""
    return symbol.strip().lower() in SILENCES


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


def alignment_items(cut: Any, tier: str = "phone") -> list[Any]:
    """Return the alignment items (symbol, start, duration; seconds from the start of the cut) of a cut, in time order."""
    items = [item for supervision in cut.supervisions for item in (supervision.alignment or {}).get(tier, [])]
    return sorted(items, key=lambda item: item.start)


def alignment_kind(cuts: Iterable[Any]) -> Literal["gold", "silver", "synthetic"]:
    """Return where the phone times of cuts come from: one silver or untold alignment makes all of them silver."""
    kinds = {(cut.custom or {}).get("alignment_kind") for cut in cuts}
    if kinds == {"gold"}:
        return "gold"
    return "synthetic" if kinds <= {"gold", "synthetic"} else "silver"


def phone_sequence(cut: Any, *, keep_silence: bool = False) -> list[str]:
    """Return the phones of a cut: those of its alignment, else the segments of its text, which must be IPA then."""
    items = alignment_items(cut)
    if items:
        return [item.symbol for item in items if keep_silence or not is_silence(item.symbol)]
    text = " ".join(s.text for s in cut.supervisions if s.text)
    if not text:
        raise DataError(
            f"cut `{cut.id}` has neither a phone alignment nor a text; usually because the corpus is unlabelled; "
            "try a corpus with a CTM or TextGrid beside it"
        )
    return ipa_segments(text)


def ipa_segments(text: str) -> list[str]:
    """Split IPA into segments: a letter with its diacritics, length and ties; stress, boundaries and tone are left out."""
    segments: list[str] = []
    joins = False  # a tie: the next letter belongs to the last segment
    prefix = ""  # a modifier at the start of a word (ⁿd) belongs to the next letter
    is_start = True
    for char in unicodedata.normalize("NFD", text):
        category = unicodedata.category(char)
        if char in _TIES and segments:
            segments[-1] += char
            joins = True
        elif char in _PROSODY or category[0] in "ZCSPN":
            joins, is_start = False, is_start or category[0] in "ZP"
        elif category in ("Mn", "Lm") and is_start:
            prefix += char
        elif category in ("Mn", "Lm"):
            segments[-1] += char
        elif joins:
            segments[-1] += char
            joins = False
        else:
            segments.append(prefix + char)
            prefix, is_start = "", False
    return segments


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
