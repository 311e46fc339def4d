"""Splits for probes: what is tested has another speaker, another source, or at least another recording than what is trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed
from isogloss.data.split import check_disjoint
from isogloss.evaluation.lid import language_of, source_family
from isogloss.evaluation.probes import ProbeSplits, speaker_of

HowToSplit = Literal["auto", "given", "speaker", "source", "recording"]
_TEST_SHARE, _DEV_SHARE = 0.2, 0.1


def split_for_probe(
    cuts: Sequence[Any], how: HowToSplit = "auto", *, max_seconds: float = float("inf"), seed: int = 0
) -> tuple[ProbeSplits, str]:
    """Return train, dev and test, and a sentence that says how they were made.

    "given" follows `custom["split"]` (train, dev, test). "speaker" holds out speakers of every language that has two; "source"
    holds out the source (package, site) that tests the most speech of languages which training keeps; "recording" holds out
    recordings only. "auto" takes the first of given, speaker and recording that the corpus allows. The development split
    is made of training recordings where there are too few speakers for one of its own. Train has at most `max_seconds`,
    dev and test a quarter of it each, sampled.
    """
    if how == "auto":
        how = _what_is_possible(cuts)
    if how == "given":
        parts = {name: [c for c in cuts if _given(c) == name] for name in ("train", "dev", "test")}
        told = "the corpus's own split"
    elif how == "speaker":
        parts = _hold_out(cuts, speaker_of, seed)
        told = "test speakers are not in training"
    elif how == "source":
        parts = _hold_out_source(cuts)
        told = f"tested on {' and '.join(sorted({source_family(c) for c in parts['test']}))}, which is not in training"
    else:
        parts = _hold_out(cuts, lambda cut: str(cut.recording_id), seed)
        told = "test recordings are not in training; their speakers may be"
    if not parts["dev"]:
        parts["train"], parts["dev"] = _cut_off(parts["train"], _DEV_SHARE, seed)
    sizes = {"train": max_seconds, "dev": max_seconds / 4, "test": max_seconds / 4}
    train, dev, test = (limit_seconds(parts[name], sizes[name], seed) for name in ("train", "dev", "test"))
    check_disjoint(train, test, by_speaker=how in ("speaker", "source"))
    return ProbeSplits(train, dev, test), told


def limit_seconds(cuts: Sequence[Any], max_seconds: float, seed: int = 0) -> list[Any]:
    """Return a sample of at most `max_seconds` seconds (at least one cut), in the order given."""
    if sum(cut.duration for cut in cuts) <= max_seconds:
        return list(cuts)
    kept: set[str] = set()
    total = 0.0
    for cut in sorted(cuts, key=lambda cut: derive_seed(seed, "probe sample", cut.id)):
        if kept and total + cut.duration > max_seconds:
            continue
        kept.add(cut.id)
        total += cut.duration
    return [cut for cut in cuts if cut.id in kept]


def _given(cut: Any) -> str | None:
    name = (cut.custom or {}).get("split")
    return {"valid": "dev", "validation": "dev", "eval": "test"}.get(str(name), str(name)) if name else None


def _what_is_possible(cuts: Sequence[Any]) -> HowToSplit:
    if {"train", "test"} <= {_given(cut) for cut in cuts}:
        return "given"
    speakers: dict[str, set[str]] = {}
    for cut in cuts:
        if any(s.speaker for s in cut.supervisions):
            speakers.setdefault(language_of(cut) or "und", set()).add(speaker_of(cut))
    return "speaker" if any(len(names) > 1 for names in speakers.values()) else "recording"


def _hold_out(cuts: Sequence[Any], unit_of: Callable[[Any], str], seed: int) -> dict[str, list[Any]]:
    """Deal the units of each language: the smaller ones to test and dev until their shares are filled."""
    parts: dict[str, list[Any]] = {"train": [], "dev": [], "test": []}
    seconds: dict[str, dict[str, float]] = {}
    for cut in cuts:
        units = seconds.setdefault(language_of(cut) or "und", {})
        units[unit_of(cut)] = units.get(unit_of(cut), 0.0) + cut.duration
    place: dict[str, str] = {}
    for language in sorted(seconds):
        units = {unit: amount for unit, amount in seconds[language].items() if unit not in place}
        order = sorted(units, key=lambda unit: derive_seed(seed, "probe split", unit))
        largest = max(order, key=lambda unit: units[unit], default=None)
        total = sum(seconds[language].values())
        filled = {"test": 0.0, "dev": 0.0}
        for unit in order:
            place[unit] = "train"
            if unit == largest:
                continue
            if filled["test"] == 0 or filled["test"] + units[unit] <= _TEST_SHARE * total:
                place[unit] = "test"
            elif filled["dev"] + units[unit] <= _DEV_SHARE * total:
                place[unit] = "dev"
            if place[unit] != "train":
                filled[place[unit]] += units[unit]
    for cut in cuts:
        parts[place[unit_of(cut)]].append(cut)
    if not parts["test"]:
        raise DataError(
            "there is nothing to hold out: every language has one speaker; try `--split source` or `--split recording`"
        )
    return parts


def _hold_out_source(cuts: Sequence[Any]) -> dict[str, list[Any]]:
    families = {cut.id: source_family(cut) for cut in cuts}
    best: tuple[float, list[Any], list[Any]] = (0.0, [], [])
    for family in sorted(set(families.values())):
        train = [cut for cut in cuts if families[cut.id] != family]
        known = {language_of(cut) for cut in train}
        test = [cut for cut in cuts if families[cut.id] == family and language_of(cut) in known]
        # The languages that are not tested would only fill the training budget.
        tested = {language_of(cut) for cut in test}
        train = [cut for cut in train if language_of(cut) in tested]
        amount = min(sum(cut.duration for cut in test), sum(cut.duration for cut in train))
        if amount > best[0]:
            best = (amount, train, test)
    if not best[2]:
        raise DataError("no language has labels from two sources, so none can be held out; try `--split speaker`")
    return {"train": best[1], "dev": [], "test": best[2]}


def _cut_off(cuts: Sequence[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """Take about a share of the recordings (not of cuts: two cuts of a recording stay together)."""
    recordings = sorted({str(cut.recording_id) for cut in cuts}, key=lambda name: derive_seed(seed, "probe dev", name))
    chosen = set(recordings[: max(1, round(share * len(recordings)))])
    return (
        [cut for cut in cuts if str(cut.recording_id) not in chosen],
        [cut for cut in cuts if str(cut.recording_id) in chosen],
    )
