"""Divide a corpus so that nothing of the test is known from training: speakers, sources, recordings and contents stay on one side.

Every division is a function of the cuts and the seed, not of their order: adding a language does not move the others.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lhotse import MonoCut

from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed
from isogloss.data.audio import AudioError, source_of_cut

_SHOWN = 5


@dataclass(frozen=True)
class Overlap:
    """What two sides share: values of each kind (speaker, recording, content, id, and text where it was asked for)."""

    shared: Mapping[str, list[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.shared.values())

    def __str__(self) -> str:
        parts = [
            f"{len(values)} {kind}{'s' * (len(values) > 1)} ({', '.join(values[:_SHOWN])}{', …' * (len(values) > _SHOWN)})"
            for kind, values in self.shared.items()
            if values
        ]
        return "; ".join(parts) or "nothing"


def find_overlap(train: Iterable[MonoCut], test: Iterable[MonoCut], *, texts: bool = False) -> Overlap:
    """Return what two sides share; `texts` compares transcripts too (letter case and spaces aside)."""
    ours, theirs = _traits(train, texts), _traits(test, texts)
    return Overlap({kind: sorted(ours[kind] & theirs[kind]) for kind in ours})


def check_disjoint(
    train: Iterable[MonoCut], test: Iterable[MonoCut], *, by_speaker: bool = True, texts: bool = False
) -> None:
    """Raise a `DataError` that names speakers, recordings, contents (`custom["sha256"]`) or ids on both sides.

    `by_speaker=False` is for corpora with one speaker, where a division can only be by recording.
    """
    overlap = find_overlap(train, test, texts=texts)
    shared = {kind: values for kind, values in overlap.shared.items() if by_speaker or kind != "speaker"}
    if any(shared.values()):
        raise DataError(
            f"training and test must share nothing, but share {Overlap(shared)}; usually because the same corpus was divided twice; "
            "divide it once with `isogloss corpus split`"
        )


def split_by_speaker(
    cuts: Iterable[MonoCut], shares: Mapping[str, float], *, seed: int = 0
) -> dict[str, list[MonoCut]]:
    """Divide cuts so that each part has about its share of the seconds of every language, and no speaker is in two parts.

    Speakers that share a recording or a content stay together. A cut without a speaker, or fewer speakers than parts, is a
    `DataError`.
    """
    cuts = list(cuts)
    silent = [cut.id for cut in cuts if _speaker(cut) is None]
    if silent:
        raise DataError(
            f"{len(silent)} of {len(cuts)} cuts have no speaker (first: {silent[0]}), so speakers cannot be kept apart; "
            "divide by source or by recording, or add a `speaker` column"
        )
    return _divide(cuts, shares, seed, "speaker", _speaker_key)


def split_by_recording(
    cuts: Iterable[MonoCut], shares: Mapping[str, float], *, seed: int = 0
) -> dict[str, list[MonoCut]]:
    """Divide cuts at random, keeping those of one recording or content together; speakers may be in several parts."""
    return _divide(list(cuts), shares, seed, "recording", lambda cut: f"recording {_recording(cut)}")


def split_by_source(
    cuts: Iterable[MonoCut], test_sources: Sequence[str], *, only_shared_languages: bool = False
) -> dict[str, list[MonoCut]]:
    """Hold out whole sources: `train` and `test`.

    With `only_shared_languages`, languages that one side lacks are left out, as language identification across sources
    needs. An unknown source, or an empty side, is a `DataError`.
    """
    cuts = list(cuts)
    known = sorted({_source(cut) for cut in cuts})
    if unknown := sorted(set(test_sources) - set(known)):
        raise DataError(f"there is no source {unknown[0]!r}; known are {', '.join(known)}")
    parts: dict[str, list[MonoCut]] = {"train": [], "test": []}
    for cut in cuts:
        parts["test" if _source(cut) in test_sources else "train"].append(cut)
    if only_shared_languages:
        shared = {_language(cut) for cut in parts["train"]} & {_language(cut) for cut in parts["test"]}
        parts = {name: [cut for cut in part if _language(cut) in shared] for name, part in parts.items()}
    for name, part in parts.items():
        if not part:
            raise DataError(f"the {name} side is empty; sources are {', '.join(known)}")
    check_disjoint(parts["train"], parts["test"])
    return parts


def draw_few_shots(
    cuts: Iterable[MonoCut],
    shots: Sequence[int],
    *,
    seed: int = 0,
    by: Callable[[MonoCut], str | None] | None = None,
) -> dict[int, list[MonoCut]]:
    """Draw k cuts per class for each k in `shots` (the class is the language, or what `by` says): nested, many speakers first.

    The draw for 5 is a part of the draw for 10. Speakers take turns, so k cuts come from as many speakers as there are. A
    class with fewer cuts than the largest k is a `DataError`.
    """
    wanted = sorted(set(shots))
    if not wanted or wanted[0] < 1:
        raise DataError(f"`shots` must be whole numbers of at least 1, but is {list(shots)}")
    classes: dict[str, list[MonoCut]] = {}
    for cut in cuts:
        name = _language(cut) if by is None else by(cut)
        if name is not None:
            classes.setdefault(name, []).append(cut)
    draws: dict[int, list[MonoCut]] = {k: [] for k in wanted}
    for name in sorted(classes):
        members = classes[name]
        if len(members) < wanted[-1]:
            raise DataError(f"{name} has {len(members)} cuts, but {wanted[-1]} were asked for; ask for fewer")
        order = _in_turns(members, seed)
        for k in wanted:
            draws[k] += order[:k]
    return draws


def _divide(
    cuts: list[MonoCut], shares: Mapping[str, float], seed: int, unit: str, key: Callable[[MonoCut], str]
) -> dict[str, list[MonoCut]]:
    if len(shares) < 2 or any(not 0 < share < 1 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise DataError(f"the shares of a split must be between 0 and 1 and add up to 1, but are {dict(shares)}")
    groups = _linked_groups(cuts, key)
    by_language: dict[str, list[list[MonoCut]]] = {}
    for group in groups:
        seconds: collections.Counter[str] = collections.Counter()
        for cut in group:
            seconds[_language(cut) or "und"] += round(cut.duration * 1000)
        by_language.setdefault(max(sorted(seconds), key=lambda tag: seconds[tag]), []).append(group)
    parts: dict[str, list[MonoCut]] = {name: [] for name in shares}
    for language in sorted(by_language):
        _deal(by_language[language], language, shares, seed, unit, parts)
    order = {cut.id: number for number, cut in enumerate(cuts)}
    for part in parts.values():
        part.sort(key=lambda cut: order[cut.id])
    names = list(parts)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            check_disjoint(parts[first], parts[second], by_speaker=unit == "speaker")
    return parts


def _deal(
    groups: list[list[MonoCut]],
    language: str,
    shares: Mapping[str, float],
    seed: int,
    unit: str,
    parts: dict[str, list[MonoCut]],
) -> None:
    """Give each group to the part that lacks most of its share; the largest groups of a random order come first."""
    if len(groups) < len(shares):
        raise DataError(
            f"{language} has {len(groups)} {unit}{'s' * (len(groups) != 1)} that can be kept apart, too few for the {len(shares)} parts "
            f"{', '.join(shares)}; divide by {'recording' if unit == 'speaker' else 'fewer parts'}, or add data"
        )
    seconds = [sum(cut.duration for cut in group) for group in groups]
    total = sum(seconds)
    names = [min(cut.id for cut in group) for group in groups]
    order = sorted(range(len(groups)), key=lambda i: derive_seed(seed, "split", language, names[i]))
    # a stable sort: groups of about equal size keep their random order
    order.sort(key=lambda i: -round(seconds[i] / total * 20))
    filled = dict.fromkeys(shares, 0.0)
    counts = dict.fromkeys(shares, 0)
    for position, i in enumerate(order):
        empty = [name for name in shares if not counts[name]]
        # the last groups go where there is nothing yet
        choice = empty if len(order) - position <= len(empty) else list(shares)
        name = max(choice, key=lambda part: (shares[part] - filled[part] / total) / shares[part] ** 0.5)
        parts[name] += groups[i]
        filled[name] += seconds[i]
        counts[name] += 1


def _linked_groups(cuts: Sequence[MonoCut], key: Callable[[MonoCut], str]) -> list[list[MonoCut]]:
    """Put together what shares a key, a recording or a content, directly or through others."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for cut in cuts:
        first = root(key(cut))
        for other in (f"recording {_recording(cut)}", f"content {_content(cut)}" if _content(cut) else None):
            if other is not None:
                parent[root(other)] = first
    groups: dict[str, list[MonoCut]] = {}
    for cut in cuts:
        groups.setdefault(root(key(cut)), []).append(cut)
    return list(groups.values())


def _in_turns(cuts: Sequence[MonoCut], seed: int) -> list[MonoCut]:
    shuffled = sorted(cuts, key=lambda cut: derive_seed(seed, "shot", cut.id))
    turns: collections.Counter[str] = collections.Counter()
    placed = []
    for cut in shuffled:
        speaker = _speaker(cut) or f"cut {cut.id}"
        placed.append((turns[speaker], derive_seed(seed, "turn", turns[speaker], speaker), cut))
        turns[speaker] += 1
    placed.sort(key=lambda item: item[:2])
    return [cut for _, _, cut in placed]


def _traits(cuts: Iterable[MonoCut], texts: bool) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"speaker": set(), "recording": set(), "content": set(), "id": set()}
    if texts:
        found["text"] = set()
    for cut in cuts:
        found["id"].add(cut.id)
        found["recording"].add(_recording(cut))
        if (speaker := _speaker(cut)) is not None:
            found["speaker"].add(speaker)
        if (content := _content(cut)) is not None:
            found["content"].add(content)
        if texts and cut.supervisions and cut.supervisions[0].text:
            found["text"].add(" ".join(cut.supervisions[0].text.casefold().split()))
    return found


def _speaker(cut: MonoCut) -> str | None:
    """Return a speaker's name with the source, since `001` of one corpus is not `001` of another."""
    speaker = cut.supervisions[0].speaker if cut.supervisions else None
    return f"{_source(cut)}/{speaker}" if speaker else None


def _speaker_key(cut: MonoCut) -> str:
    return f"speaker {_speaker(cut)}"


def _language(cut: MonoCut) -> str | None:
    return cut.supervisions[0].language if cut.supervisions else None


def _source(cut: MonoCut) -> str:
    return str((cut.custom or {}).get("source", ""))


def _content(cut: MonoCut) -> str | None:
    return (cut.custom or {}).get("sha256")


def _recording(cut: MonoCut) -> str:
    try:
        source, _ = source_of_cut(cut)
    except AudioError:
        source = b""
    return f"{_source(cut)}/{cut.recording.id}" if isinstance(source, bytes) else str(source)
