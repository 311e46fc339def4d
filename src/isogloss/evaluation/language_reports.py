"""What an adaptation did language by language: gains against hours heard, transfer apart from interference, forgetting.

All of them take counts per test utterance, (errors, reference tokens), of two or more systems on the same utterances in the
same order, so that every difference is paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed
from isogloss.evaluation.bootstrap import MIN_CLUSTERS, Estimate, from_replicates, paired_difference, resample_weights
from isogloss.evaluation.subnetworks import spearman

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LanguageCounts:
    """Errors and reference tokens of one system on one language, U×2, and the speaker of each utterance where known."""

    counts_U2: Array
    speakers: Sequence[str | None] | None = None


@dataclass(frozen=True)
class GainByHours:
    """Error rate before minus after of each language, and Spearman's correlation of gains with hours heard.

    Negative: languages little heard gain most. The interval resamples languages, and speakers (or utterances) within each.
    """

    gains: dict[str, Estimate]
    hours: dict[str, float]
    correlation: Estimate


def gain_by_hours(
    before: Mapping[str, LanguageCounts],
    after: Mapping[str, LanguageCounts],
    hours: Mapping[str, float],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> GainByHours:
    """Relate the gain of each language to the hours of it that pretraining heard (0 for a language that it never heard)."""
    languages = _same_languages(before, after, hours)
    if len(languages) < 4:
        raise DataError(f"a rank correlation over languages needs four of them, but there are {len(languages)}")
    options: dict[str, Any] = {"resamples": resamples, "level": level, "seed": seed}
    gains = {name: difference(before[name], after[name], **options) for name in languages}
    heard = np.array([hours[name] for name in languages])
    draws_LR = np.stack([_replicates(before[name], after[name], resamples, seed, name) for name in languages])
    chosen_RL = np.random.default_rng(derive_seed("languages", seed)).integers(
        len(languages), size=(resamples, len(languages))
    )
    values = np.array([spearman(draws_LR[chosen, r], heard[chosen]) for r, chosen in enumerate(chosen_RL)])
    value = spearman([gains[name].value for name in languages], heard)
    caveat = f"only {len(languages)} languages" if len(languages) < 10 else ""
    correlation = from_replicates(value, values, num_units=len(languages), unit="language", level=level, caveat=caveat)
    return GainByHours(gains, {name: float(hours[name]) for name in languages}, correlation)


@dataclass(frozen=True)
class GroupChange:
    """What sharing did to a group of languages and what the adaptation made of it; positive is better (error rates, before minus after).

    A method that succeeds keeps `shared` where it is positive (transfer) and undoes it where it is negative (interference).
    """

    languages: tuple[str, ...]
    shared: Estimate  # monolingual minus multilingual
    adapted: Estimate  # multilingual minus adapted


@dataclass(frozen=True)
class TransferReport:
    """Languages that sharing helps and languages that it costs, apart; either is None where no language is of that kind."""

    transfer: GroupChange | None
    interference: GroupChange | None


def transfer_and_interference(
    monolingual: Mapping[str, LanguageCounts],
    multilingual: Mapping[str, LanguageCounts],
    adapted: Mapping[str, LanguageCounts],
    helped: Mapping[str, bool],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> TransferReport:
    """Report both groups of languages by themselves; `helped` must come from other utterances than these (a development set).

    Groups that were made from the same figures would show a difference where there is only noise. Figures are means over
    languages: each counts the same.
    """
    languages = _same_languages(monolingual, multilingual, adapted, helped)
    options: dict[str, Any] = {"resamples": resamples, "level": level, "seed": seed}
    groups: list[GroupChange | None] = []
    for kind in (True, False):
        chosen = [name for name in languages if helped[name] is kind]
        groups.append(
            GroupChange(
                tuple(chosen),
                mean_difference(monolingual, multilingual, chosen, **options),
                mean_difference(multilingual, adapted, chosen, **options),
            )
            if chosen
            else None
        )
    return TransferReport(*groups)


def forgetting(
    before: Mapping[str, LanguageCounts],
    after: Mapping[str, Mapping[str, LanguageCounts]],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Estimate]]:
    """Return, for each adapted system (its key) and language, the error rate after minus before: positive is forgotten."""
    return {
        system: {
            name: difference(own[name], before[name], resamples=resamples, level=level, seed=seed)
            for name in _same_languages(before, own)
        }
        for system, own in after.items()
    }


def difference(first: LanguageCounts, second: LanguageCounts, **options: Any) -> Estimate:
    """Return the error rate of the first minus that of the second, paired, resampling speakers where they are known."""
    return paired_difference(first.counts_U2, second.counts_U2, _rate, clusters=first.speakers, **options)


def mean_difference(
    first: Mapping[str, LanguageCounts],
    second: Mapping[str, LanguageCounts],
    languages: Sequence[str],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Return the mean over these languages of first minus second; utterances (or speakers) of each language are resampled."""
    values = [
        float(_rate(first[n].counts_U2.sum(0)[None])[0] - _rate(second[n].counts_U2.sum(0)[None])[0]) for n in languages
    ]
    draws_R = np.mean([_replicates(first[n], second[n], resamples, seed, n) for n in languages], axis=0)
    units = [_units(first[n]) for n in languages]
    kinds = {kind for _, kind in units}
    caveats = ["these languages only: languages were not resampled"]
    if len(kinds) > 1:
        caveats.append("speakers were resampled where a language has enough known ones, else utterances")
    return from_replicates(
        float(np.mean(values)),
        draws_R,
        num_units=sum(len(np.unique(unit_U)) for unit_U, _ in units),
        unit=kinds.pop() if len(kinds) == 1 else "unit",
        level=level,
        caveat="; ".join(caveats),
    )


def _replicates(first: LanguageCounts, second: LanguageCounts, resamples: int, seed: int, name: str) -> Array:
    """Return R paired differences; every language has its own resamples of speakers, or of utterances."""
    unit_U, _ = _units(first)
    sums = []
    for own in (first, second):
        total = np.zeros((int(unit_U.max()) + 1, 2))
        np.add.at(total, unit_U, own.counts_U2)
        sums.append(total)
    weights_RU = resample_weights(len(sums[0]), resamples, derive_seed("language", name, seed))
    return _rate(weights_RU @ sums[0]) - _rate(weights_RU @ sums[1])


def _units(counts: LanguageCounts) -> tuple[npt.NDArray[np.int64], str]:
    """Return which unit of resampling each utterance belongs to: its speaker where all are known and enough, as `bootstrap` does."""
    speakers = counts.speakers
    if speakers is not None and None not in speakers:
        names, unit_U = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
        if len(names) >= MIN_CLUSTERS:
            return unit_U.reshape(-1), "speaker"
    return np.arange(len(counts.counts_U2)), "utterance"


def _rate(sums_R2: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums_R2[:, 0] / sums_R2[:, 1])


def _same_languages(*tables: Mapping[str, Any]) -> list[str]:
    names = list(tables[0])
    for table in tables[1:]:
        if set(table) != set(names):
            odd = sorted(set(table) ^ set(names))
            raise DataError(f"all systems must be scored on the same languages, but `{odd[0]}` is missing from one")
    if not names:
        raise DataError("there is no language to report on")
    return names
