"""What an adaptation trains on, is judged by and reported on: target audio in three parts, and replayed source audio."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut
from lhotse.utils import fastcopy

from isogloss.adapt._division import Division, divide, language_of
from isogloss.adapt.guard import refuse_test_audio
from isogloss.core.errors import DataError
from isogloss.core.files import write_whole
from isogloss.core.languages import normalize_language
from isogloss.core.rng import derive_seed
from isogloss.data.inputs import open_corpus, write_corpus

_SETTINGS = ("adapt.heldout", "adapt.replay", "data.min_seconds", "training.seed")


@dataclass(frozen=True)
class Mixture:
    """Folders of the corpora of an adaptation, and the seconds of target and replayed source audio in `train`.

    `choosing` decides when to stop and which update is the model, `reporting` is what the figures are of; `in_both` are the
    languages that have too little held-out audio for two parts. `replayed` tells whose copy each replayed utterance is.
    """

    train: Path
    choosing: Path
    reporting: Path
    target_seconds: float
    source_seconds: float
    held_out_by: str  # "speaker", "recording", or both
    reported_by: str  # the same of the two held-out parts; "" where neither divides them
    in_both: tuple[str, ...]
    replayed: dict[str, str]


def prepare_mixture(
    folder: Path,
    target: str | Path,
    *,
    heldout: float,
    source: str | Path | None = None,
    replay: float = 0.0,
    tests: Sequence[str | Path] = (),
    languages: Sequence[str] | None = None,
    min_seconds: float = 0.0,
    seed: int = 0,
) -> Mixture:
    """Divide the target corpus (of `languages` alone, where they are given), mix in source audio, and write the parts.

    `heldout` is the share of the target audio that is not trained on (`adapt/_division.py`). `replay` is the share of the seconds of
    training that comes from `source`: its utterances are drawn at random, all of them again where they do not suffice. Recordings
    of `tests`, and held-out ones among the source audio, are refused. A folder that is there already is used as it is, if it was
    made of the same: otherwise `DataError`.
    """
    if replay and source is None:
        raise DataError("replay needs a source corpus; give one with `--replay-data DIR`")
    target_cuts = _usable(target, min_seconds, languages)
    source_cuts = _usable(source, min_seconds) if source is not None and replay else []
    for test in tests:
        refuse_test_audio([*target_cuts, *source_cuts], open_corpus(test), str(test))
    identity = _identity(target_cuts, source_cuts, heldout, replay, min_seconds, seed)
    division = divide(target_cuts, heldout, seed)
    if source_cuts:
        held_out = [*division.choosing, *division.reporting]
        refuse_test_audio(source_cuts, held_out, f"{target} (its held-out part)")
    seconds = _seconds(division.train)
    replayed = _draw(source_cuts, seconds * replay / (1 - replay), seed) if replay else []
    mixture = Mixture(
        folder / "train",
        folder / "choosing",
        folder / "reporting",
        seconds,
        _seconds([copy for copy, _ in replayed]),
        division.held_out_by,
        division.reported_by,
        division.in_both,
        {copy.id: cut.id for copy, cut in replayed},
    )
    mark = folder / "made_of.json"
    if mark.exists():
        changed = mixture_differences(json.loads(mark.read_text(encoding="utf-8")), identity)
        if changed:
            raise DataError(
                f"{folder} was made of other corpora or settings than are given now: {', '.join(changed)}; usually because an option or "
                "the corpus was changed after the run was begun; go on with the old ones, or start a new run in another folder"
            )
        return mixture
    _write(division, [copy for copy, _ in replayed], mixture)
    write_whole(mark, json.dumps(identity) + "\n")
    return mixture


def mixture_identity(
    target: str | Path,
    *,
    heldout: float,
    source: str | Path | None = None,
    replay: float = 0.0,
    languages: Sequence[str] | None = None,
    min_seconds: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what `prepare_mixture` keeps in `made_of.json`, without dividing or writing anything."""
    source_cuts = _usable(source, min_seconds) if source is not None and replay else []
    return _identity(_usable(target, min_seconds, languages), source_cuts, heldout, replay, min_seconds, seed)


def _identity(
    target: Sequence[MonoCut], source: Sequence[MonoCut], heldout: float, replay: float, min_seconds: float, seed: int
) -> dict[str, Any]:
    return {
        "parts": ["train", "choosing", "reporting"],
        "target": _digest(target),
        "source": _digest(source),
        "settings": [heldout, replay, min_seconds, seed],
    }


def mixture_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what differs between two mixtures' `made_of.json`, each by its option or setting and both values."""
    if old.get("parts") != new.get("parts") or len(old.get("settings", ())) != len(_SETTINGS):
        return ["the parts (by an older isogloss)"]
    changed = []
    for key, option in (("target", "`--data` or `data.languages`"), ("source", "`--replay-data`")):
        if old[key] != new[key]:
            was, now = (_told(tree[key]) for tree in (old, new))
            changed.append(f"the audio of {option} (" + (f"was {was}, is {now})" if was != now else f"other {was})"))
    pairs = zip(_SETTINGS, old["settings"], new["settings"], strict=True)
    return changed + [f"`{name}` (was {was!r}, is {now!r})" for name, was, now in pairs if was != now]


def _told(audio: Sequence[float | int]) -> str:
    return f"{audio[0]} utterances of {audio[1]:g} s" if audio[0] else "none"


def _write(division: Division, replayed: list[MonoCut], mixture: Mixture) -> None:
    write_corpus(CutSet.from_cuts([*division.train, *replayed]), mixture.train)
    write_corpus(CutSet.from_cuts(division.choosing), mixture.choosing)
    write_corpus(CutSet.from_cuts(division.reporting), mixture.reporting)


def _usable(corpus: str | Path, min_seconds: float, languages: Sequence[str] | None = None) -> list[MonoCut]:
    cuts = [cut for cut in open_corpus(corpus) if cut.duration >= min_seconds]
    if not cuts:
        raise DataError(f"{corpus}: no utterance is at least {min_seconds:g} s long; lower `data.min_seconds`")
    if languages is None:
        return cuts
    wanted = {normalize_language(name).tag for name in languages}
    found = {language_of(cut) for cut in cuts}
    if wanted - found:
        raise DataError(
            f"`data.languages` names {sorted(wanted - found)[0]}, which {corpus} does not have; it has {', '.join(sorted(found - {''}))}"
        )
    return [cut for cut in cuts if language_of(cut) in wanted]


def _draw(cuts: Sequence[MonoCut], seconds: float, seed: int) -> list[tuple[MonoCut, MonoCut]]:
    """Return (copy, cut) at random until there are so many seconds; each comes again, under another id, when all have come."""
    drawn: list[tuple[MonoCut, MonoCut]] = []
    total, turn = 0.0, 0
    while total < seconds:
        for cut in sorted(cuts, key=lambda cut: derive_seed(seed, "replay", turn, cut.id)):
            drawn.append((fastcopy(cut, id=f"replay{turn}-{cut.id}"), cut))
            total += cut.duration
            if total >= seconds:
                break
        turn += 1
    return drawn


def _digest(cuts: Sequence[MonoCut]) -> list[float | int]:
    digest = derive_seed(*sorted(f"{cut.id} {cut.start:.3f} {cut.duration:.3f}" for cut in cuts))
    return [len(cuts), round(_seconds(cuts), 3), digest]


def _seconds(cuts: Sequence[MonoCut]) -> float:
    return float(sum(cut.duration for cut in cuts))
