"""Divide a corpus so that what is tested was never trained on: a second, independent source or voice of each language."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed
from isogloss.evaluation.labels import alignment_items
from isogloss.evaluation.lid import language_of
from isogloss.evaluation.probes import ProbeSplits, speaker_of

DEV_SHARE = 0.1
MIN_SECONDS = 0.6


@dataclass(frozen=True)
class Division:
    """Voices held out of everything that is trained (pretraining, probes, language models), and what remains.

    `foreign` are the languages whose held-out voices come from another corpus than all the others of the language: there a
    classifier cannot answer by the channel.
    """

    train: list[Any]
    test: list[Any]
    speakers: frozenset[str]
    foreign: frozenset[str]

    @property
    def held_out(self) -> Literal["source", "speaker"]:
        """What language identification can hold out: "source" where two languages or more have a foreign voice."""
        return "source" if len(self.foreign) > 1 else "speaker"


def divide(cuts: Iterable[Any]) -> Division:
    """Hold out one voice in five of every language that has two or more.

    A language's voices are ranked by how much of their speech has a text or an alignment, then by how much there is: the first
    stays, the second is held out, and so is every fifth after it, unless it has less than a tenth of the first one's speech.
    Raises `DataError` where no two languages have two voices.
    """
    cuts = list(cuts)
    voices: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for cut in cuts:
        voices[str(language_of(cut))][speaker_of(cut)].append(cut)
    held: dict[str, list[str]] = {}
    for language, own in sorted(voices.items()):
        ranked = sorted(own, key=lambda s: (-_seconds(own[s], told=True), -_seconds(own[s]), s))
        chosen = [name for name in ranked[1::5] if _seconds(own[name]) >= 0.1 * _seconds(own[ranked[0]])]
        if chosen:
            held[language] = chosen
    if len(held) < 2:
        raise DataError("two languages with two voices each are needed to test on held-out voices; add recordings")
    names = frozenset(name for chosen in held.values() for name in chosen)
    test = [cut for cut in cuts if speaker_of(cut) in names]
    train = [cut for cut in cuts if speaker_of(cut) not in names]
    known = {(language_of(cut), source_of(cut)) for cut in train}
    foreign = {
        language
        for language, chosen in held.items()
        if all((language, source_of(cut)) not in known for name in chosen for cut in voices[language][name])
    }
    return Division(train, test, names, frozenset(foreign))


@dataclass(frozen=True)
class PhoneCuts:
    """Told cuts of the languages in which a told voice is held out: of voices that were trained on, and of held-out ones."""

    train: list[Any]
    test: list[Any]


def phone_cuts(division: Division, max_seconds: float, seed: int) -> PhoneCuts:
    """Choose at most so many seconds of each part."""
    told = [cut for cut in division.test if is_told(cut)]
    languages = {language_of(cut) for cut in told}
    known = [cut for cut in division.train if is_told(cut) and language_of(cut) in languages]
    return PhoneCuts(sample(known, max_seconds, seed), sample(told, max_seconds, seed))


def probe_splits(cuts: PhoneCuts, seed: int) -> ProbeSplits:
    """Return the splits of the phone probe: one tenth of the training part is for choosing."""
    is_dev = [derive_seed(seed, "dev", cut.id) % 1000 < 1000 * DEV_SHARE for cut in cuts.train]
    return ProbeSplits(
        train=[cut for cut, dev in zip(cuts.train, is_dev, strict=True) if not dev],
        dev=[cut for cut, dev in zip(cuts.train, is_dev, strict=True) if dev],
        test=cuts.test,
    )


def language_cuts(division: Division, seconds_per_voice: float, seed: int) -> list[Any]:
    """Return cuts for language identification, as much of each voice: the languages with a foreign voice where there are two
    or more, else all that are tested.
    """
    languages = division.foreign if division.held_out == "source" else {language_of(cut) for cut in division.test}
    cuts = [cut for cut in [*division.train, *division.test] if language_of(cut) in languages]
    voices: dict[str, list[Any]] = defaultdict(list)
    for cut in cuts:
        if cut.duration >= MIN_SECONDS:
            voices[speaker_of(cut)].append(cut)
    return [cut for name in sorted(voices) for cut in sample(voices[name], seconds_per_voice, seed)]


def sample(cuts: Sequence[Any], max_seconds: float, seed: int) -> list[Any]:
    """Return cuts in a fixed random order until there are so many seconds, evenly of all languages, and of all voices in each."""
    voices: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for cut in sorted(cuts, key=lambda cut: derive_seed(seed, "sample", cut.id), reverse=True):
        voices[str(language_of(cut)), speaker_of(cut)].append(cut)
    of_language = dict.fromkeys((language for language, _ in voices), 0.0)
    of_voice = dict.fromkeys(voices, 0.0)
    chosen = []
    while voices and sum(of_language.values()) < max_seconds:
        key = min(voices, key=lambda key: (of_language[key[0]], of_voice[key], key))
        cut = voices[key].pop()
        chosen.append(cut)
        of_language[key[0]] += cut.duration
        of_voice[key] += cut.duration
        if not voices[key]:
            del voices[key]
    return chosen


def source_of(cut: Any) -> str:
    """Return where a cut comes from."""
    return str((cut.custom or {}).get("source", "unknown"))


def is_told(cut: Any) -> bool:
    """True if a cut has phone times, or a text from which they can be had."""
    return bool(alignment_items(cut)) or any(s.text for s in cut.supervisions)


def _seconds(cuts: Iterable[Any], *, told: bool = False) -> float:
    return float(sum(cut.duration for cut in cuts if not told or is_told(cut)))
