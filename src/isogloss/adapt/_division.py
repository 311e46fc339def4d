"""Divide target audio in three: what is trained on, what chooses the update, and what the report is of.

The best of many measurements is partly luck of the audio that it was measured on, so a report on that audio flatters. Where a
language has too little held-out audio for two parts, it serves for both, and the division says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lhotse import MonoCut

from isogloss.core.errors import DataError
from isogloss.data.split import find_overlap, split_by_recording, split_by_speaker

Parts = dict[str, list[MonoCut]]
Split = Callable[..., Parts]
_THREE_PARTS = 6  # speakers of a language, from which on each part gets speakers of its own
_TWO_PARTS = 3  # fewer, and half of a language would be held out


@dataclass(frozen=True)
class Division:
    """The three parts; what keeps training apart from the rest, and the two held-out parts apart from each other.

    `in_both` are the languages whose held-out audio is in `choosing` and in `reporting`.
    """

    train: list[MonoCut]
    choosing: list[MonoCut]
    reporting: list[MonoCut]
    held_out_by: str
    reported_by: str
    in_both: tuple[str, ...]


@dataclass(frozen=True)
class _Way:
    """One way to divide a language: how training is kept apart, whether in three at once, and how many speakers it takes."""

    kind: str
    split: Split
    in_three: bool
    num_speakers: int


_WAYS = (
    _Way("speaker", split_by_speaker, True, _THREE_PARTS),
    _Way("speaker", split_by_speaker, False, _TWO_PARTS),
    _Way("recording", split_by_recording, True, 0),
    _Way("recording", split_by_recording, False, 0),
)
_BY_RECORDING = 2


def divide(cuts: Sequence[MonoCut], share: float, seed: int) -> Division:
    """Hold out `share` of the seconds of each language: by speaker where there are three or more, else by recording.

    No recording and no content is on two sides. Raises `DataError` for a language with a single recording.
    """
    by_language = _by_language(cuts)
    ways = {language: _way(own, share, seed) for language, own in by_language.items()}
    division = _divided(by_language, ways, share, seed)
    if find_overlap(division.train, [*division.choosing, *division.reporting]).shared.get("recording"):
        # Some recording has cuts of two languages that were divided in different ways.
        division = _divided({"": list(cuts)}, {"": _BY_RECORDING}, share, seed)
    return division


def _divided(
    by_language: Mapping[str, Sequence[MonoCut]], ways: Mapping[str, int], share: float, seed: int
) -> Division:
    parts: Parts = {"train": [], "choosing": [], "reporting": []}
    ways = dict(ways)
    held_out_by: list[str] = []
    reported_by: list[str] = []
    in_both: set[str] = set()
    for number, way in enumerate(_WAYS):
        # Languages that are divided in the same way are divided together: a speaker of two of them stays on one side.
        languages = [language for language in by_language if ways[language] == number]
        own = [cut for language in languages for cut in by_language[language]]
        if not own:
            continue
        found = _apart(way, own, share, seed)
        if found is None:
            ways |= dict.fromkeys(languages, number + 1)  # who speaks two languages may leave too few speakers for one
            continue
        held_out_by.append(way.kind)
        if way.in_three:
            reported_by.append(way.kind)
        else:
            heldout = found.pop("heldout")
            halves, undivided = _halve(heldout, seed)
            found |= halves
            in_both |= undivided
            reported_by += ["recording"] * (undivided < {language_of(cut) for cut in heldout})
        for name, part in found.items():
            parts[name] += part
    return Division(
        **parts, held_out_by=_named(held_out_by), reported_by=_named(reported_by), in_both=tuple(sorted(in_both))
    )


def _apart(way: _Way, cuts: Sequence[MonoCut], share: float, seed: int) -> Parts | None:
    """Divide cuts in a way; None where it cannot be, or leaves a part without one of the languages, and a weaker way is left."""
    try:
        found = way.split(cuts, _shares(share, way.in_three), seed=seed)
    except DataError:
        if way is _WAYS[-1]:
            raise
        return None
    languages = {language_of(cut) for cut in cuts}
    if way is not _WAYS[-1] and any({language_of(cut) for cut in part} != languages for part in found.values()):
        return None
    return found


def _halve(heldout: Sequence[MonoCut], seed: int) -> tuple[Parts, set[str]]:
    """Divide held-out audio by recording; return the parts, and the languages that cannot be divided and are in both."""
    shares = {"choosing": 0.5, "reporting": 0.5}
    try:
        return split_by_recording(heldout, shares, seed=seed), set()
    except DataError:
        pass
    parts: Parts = {"choosing": [], "reporting": []}
    undivided = set()
    for language, cuts in _by_language(heldout).items():
        try:
            found = split_by_recording(cuts, shares, seed=seed)
        except DataError:
            found = dict.fromkeys(shares, cuts)
            undivided.add(language)
        for name, part in found.items():
            parts[name] += part
    return parts, undivided


def _by_language(cuts: Sequence[MonoCut]) -> dict[str, list[MonoCut]]:
    found: dict[str, list[MonoCut]] = {}
    for cut in cuts:
        found.setdefault(language_of(cut), []).append(cut)
    return found


def _way(cuts: Sequence[MonoCut], share: float, seed: int) -> int:
    """Return the number of the first way that divides the cuts of one language."""
    speakers = {cut.supervisions[0].speaker if cut.supervisions else None for cut in cuts}
    num_speakers = 0 if None in speakers or "" in speakers else len(speakers)
    for number, way in enumerate(_WAYS[:-1]):
        if num_speakers >= way.num_speakers and _apart(way, cuts, share, seed) is not None:
            return number
    return len(_WAYS) - 1


def _shares(share: float, in_three: bool) -> dict[str, float]:
    if in_three:
        return {"train": 1 - share, "choosing": share / 2, "reporting": share / 2}
    return {"train": 1 - share, "heldout": share}


def _named(kinds: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(kinds))


def language_of(cut: MonoCut) -> str:
    """Return a cut's language, "" where it says none."""
    return (cut.supervisions[0].language if cut.supervisions else None) or ""
