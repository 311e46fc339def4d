"""What an adaptation trains on and what it is judged by: target audio without its held-out part, and replayed source audio."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lhotse import CutSet, MonoCut
from lhotse.utils import fastcopy

from isogloss.adapt.guard import refuse_test_audio
from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed
from isogloss.data.inputs import open_corpus, write_corpus
from isogloss.data.split import split_by_recording, split_by_speaker


@dataclass(frozen=True)
class Mixture:
    """Folders of the corpora of an adaptation, and the seconds of target and replayed source audio in `train`."""

    train: Path
    heldout: Path
    target_seconds: float
    source_seconds: float
    divided_by: str  # "speaker" or "recording"


def prepare_mixture(
    folder: Path,
    target: str | Path,
    *,
    heldout: float,
    source: str | Path | None = None,
    replay: float = 0.0,
    tests: Sequence[str | Path] = (),
    min_seconds: float = 0.0,
    seed: int = 0,
) -> Mixture:
    """Divide the target corpus by speaker (by recording where speakers are unknown or too few), mix in source audio, and write both parts.

    `replay` is the share of the seconds of training that comes from `source`: its utterances are drawn at random, all of them
    again where they do not suffice. Recordings of `tests`, and held-out ones among the source audio, are refused. A folder
    that is there already is used as it is, if it was made of the same: otherwise `DataError`.
    """
    if replay and source is None:
        raise DataError("replay needs a source corpus; give one with `--replay-data DIR`")
    target_cuts = _usable(target, min_seconds)
    source_cuts = _usable(source, min_seconds) if source is not None and replay else []
    for test in tests:
        refuse_test_audio([*target_cuts, *source_cuts], open_corpus(test), str(test))
    identity = {
        "target": _identity(target_cuts),
        "source": _identity(source_cuts),
        "settings": [heldout, replay, min_seconds, seed],
    }
    parts, divided_by = _divide(target_cuts, heldout, seed)
    if source_cuts:
        refuse_test_audio(source_cuts, parts["heldout"], f"{target} (its held-out part)")
    seconds = _seconds(parts["train"])
    wanted = seconds * replay / (1 - replay)
    replayed = _draw(source_cuts, wanted, seed) if replay else []
    mixture = Mixture(folder / "train", folder / "heldout", seconds, _seconds(replayed), divided_by)
    mark = folder / "made_of.json"
    if mark.exists():
        if json.loads(mark.read_text(encoding="utf-8")) != identity:
            raise DataError(
                f"{folder} was made of other corpora or settings than are given now; usually because the corpus was changed after the "
                "run was begun; start a new run in another folder"
            )
        return mixture
    write_corpus(CutSet.from_cuts([*parts["train"], *replayed]), mixture.train)
    write_corpus(CutSet.from_cuts(parts["heldout"]), mixture.heldout)
    mark.write_text(json.dumps(identity) + "\n", encoding="utf-8")
    return mixture


def _usable(corpus: str | Path, min_seconds: float) -> list[MonoCut]:
    cuts = [cut for cut in open_corpus(corpus) if cut.duration >= min_seconds]
    if not cuts:
        raise DataError(f"{corpus}: no utterance is at least {min_seconds:g} s long; lower `data.min_seconds`")
    return cuts


def _divide(cuts: Sequence[MonoCut], share: float, seed: int) -> tuple[dict[str, list[MonoCut]], str]:
    shares = {"train": 1 - share, "heldout": share}
    speakers: dict[str, set[str]] = {}
    for cut in cuts:
        name = cut.supervisions[0].speaker if cut.supervisions else None
        language = (cut.supervisions[0].language if cut.supervisions else None) or ""
        speakers.setdefault(language, set()).add(name or "")
    # One speaker of a language cannot be on both sides; then that language is divided by recording.
    by_speaker = {name for name, found in speakers.items() if len(found) >= 3 and "" not in found}
    parts: dict[str, list[MonoCut]] = {"train": [], "heldout": []}
    for is_by_speaker, split in ((True, split_by_speaker), (False, split_by_recording)):
        own = [cut for cut in cuts if (_language(cut) in by_speaker) is is_by_speaker]
        if own:
            for name, part in split(own, shares, seed=seed).items():
                parts[name] += part
    if not parts["train"] or not parts["heldout"]:
        raise DataError(
            "the target corpus cannot be divided into training and held-out audio; usually because it has one recording; segment it "
            "first with `isogloss corpus segment`"
        )
    kinds = ["speaker"] * bool(by_speaker) + ["recording"] * (len(by_speaker) < len(speakers))
    return parts, " and ".join(kinds)


def _draw(cuts: Sequence[MonoCut], seconds: float, seed: int) -> list[MonoCut]:
    """Return cuts at random until there are so many seconds; each comes again, under another id, when all have come."""
    drawn: list[MonoCut] = []
    total, turn = 0.0, 0
    while total < seconds:
        for cut in sorted(cuts, key=lambda cut: derive_seed(seed, "replay", turn, cut.id)):
            drawn.append(fastcopy(cut, id=f"replay{turn}-{cut.id}"))
            total += cut.duration
            if total >= seconds:
                break
        turn += 1
    return drawn


def _identity(cuts: Sequence[MonoCut]) -> list[float | int]:
    digest = derive_seed(*sorted(f"{cut.id} {cut.start:.3f} {cut.duration:.3f}" for cut in cuts))
    return [len(cuts), round(_seconds(cuts), 3), digest]


def _language(cut: MonoCut) -> str:
    return (cut.supervisions[0].language if cut.supervisions else None) or ""


def _seconds(cuts: Sequence[MonoCut]) -> float:
    return float(sum(cut.duration for cut in cuts))
