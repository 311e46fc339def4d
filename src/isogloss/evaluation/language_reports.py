"""What an adaptation did language by language: gains against hours heard, transfer apart from interference, forgetting.

Counts per test utterance, (errors, reference tokens), of two or more systems on the same utterances in the same order make every
difference a paired one. What is known of a language by an estimate alone (a record of an earlier run) is a `Change` too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed
from isogloss.evaluation.bootstrap import (
    MIN_CLUSTERS,
    Estimate,
    from_replicates,
    paired_difference,
    resample_weights,
    spread,
    widened,
)
from isogloss.evaluation.subnetworks import spearman
from isogloss.evaluation.tables import Labels

Array = npt.NDArray[np.float64]
# Hours of a language that pretraining heard, from … to below; what is "under-represented" is one of the first
HOUR_BINS = ((0.0, 0.0), (0.0, 10.0), (10.0, 100.0), (100.0, 1000.0), (1000.0, float("inf")))


@dataclass(frozen=True)
class LanguageCounts:
    """Errors and reference tokens of one system on one language, U×2, with the speaker and the id of each utterance where known.

    `labels` tells where the references come from ("" where nobody says), `synthetic_speech` that some of the speech is no one's.
    """

    counts_U2: Array
    speakers: Sequence[str | None] | None = None
    ids: Sequence[str] | None = None
    labels: Labels = ""
    synthetic_speech: bool = False


@dataclass(frozen=True)
class Change:
    """How much better one system is than another on a language (positive is better), and R resamples, `widened`."""

    estimate: Estimate
    draws_R: Array


def changes(
    before: Mapping[str, LanguageCounts],
    after: Mapping[str, LanguageCounts],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Change]:
    """Return the error rate before minus after of each language, paired; speakers are resampled where they are known."""
    found = {}
    for name in _same_languages(before, after):
        estimate = difference(before[name], after[name], resamples=resamples, level=level, seed=seed)
        draws_R = _replicates(before[name], after[name], resamples, seed, name)
        found[name] = Change(estimate, widened(draws_R, estimate.num_units))
    return found


def change_of_estimate(estimate: Estimate, name: str, *, resamples: int = 2000, seed: int = 0) -> Change:
    """Return the change of a language of which the estimate alone is known: resamples are normal about it, as `widened` (`spread`).

    `DataError` where it has no standard deviation.
    """
    error, _ = spread(estimate)
    if not np.isfinite(error):
        raise DataError(f"the change of `{name}` has no standard deviation, so nothing tells how sure it is")
    random = np.random.default_rng(derive_seed("change", name, seed))
    return Change(estimate, random.normal(estimate.value, error, resamples))


@dataclass(frozen=True)
class GainByHours:
    """The gain of each language, and Spearman's correlation of gains with hours heard.

    Negative: languages little heard gain most. The interval resamples languages, and what each language's gain rests on within;
    `p_value` is that of a permutation test, two-sided. `bins` has the mean gain of the languages with hours in each of `HOUR_BINS`.
    """

    gains: dict[str, Estimate]
    hours: dict[str, float]
    correlation: Estimate
    p_value: float
    bins: dict[str, tuple[tuple[str, ...], Estimate]]


def gain_by_hours(
    gains: Mapping[str, Change],
    hours: Mapping[str, float],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> GainByHours:
    """Relate the gain of each language to the hours of it that pretraining heard (0 for a language that it never heard)."""
    languages = _same_languages(gains, hours)
    if len(languages) < 4:
        raise DataError(f"a rank correlation over languages needs four of them, but there are {len(languages)}")
    heard = np.array([hours[name] for name in languages])
    if np.ptp(heard) == 0:
        raise DataError(f"every language was heard for {heard[0]:g} hours, so gains cannot follow hours")
    draws_LR = np.stack([gains[name].draws_R for name in languages])
    resamples = draws_LR.shape[1]
    random = np.random.default_rng(derive_seed("languages", seed))
    chosen_RL = random.integers(len(languages), size=(resamples, len(languages)))
    values = np.array([spearman(draws_LR[chosen, r], heard[chosen]) for r, chosen in enumerate(chosen_RL)])
    means = np.array([gains[name].estimate.value for name in languages])
    value = spearman(means, heard)
    if np.isnan(value):
        raise DataError(
            "all languages gained the same, so their gains cannot follow hours; usually two systems are one"
        )
    caveat = f"only {len(languages)} languages" if len(languages) < 10 else ""
    correlation = from_replicates(value, values, num_units=len(languages), unit="language", level=level, caveat=caveat)
    reached = sum(abs(spearman(means, random.permutation(heard))) >= abs(value) - 1e-12 for _ in range(resamples))
    bins = {}
    for low, high in HOUR_BINS:
        own = tuple(n for n in languages if (hours[n] == 0 if high == 0 else low <= hours[n] < high and hours[n] > 0))
        if own:
            name = "never heard" if high == 0 else f"{low:g} h and more" if np.isinf(high) else f"{low:g} to {high:g} h"
            bins[name] = (own, mean_change([gains[n] for n in own], level=level))
    return GainByHours(
        {name: gains[name].estimate for name in languages},
        {name: float(hours[name]) for name in languages},
        correlation,
        (reached + 1) / (resamples + 1),
        bins,
    )


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


def helped_by_sharing(
    monolingual: Mapping[str, LanguageCounts], multilingual: Mapping[str, LanguageCounts]
) -> dict[str, bool]:
    """Return for each language whether the multilingual model errs less: on a development set, for `transfer_and_interference`.

    `DataError` where the two were not scored on the same utterances.
    """
    helped = {}
    for name in _same_languages(monolingual, multilingual):
        _check_paired(monolingual[name], multilingual[name])
        helped[name] = error_rate(multilingual[name]) < error_rate(monolingual[name])
    return helped


def check_apart(dev: Mapping[str, LanguageCounts], test: Mapping[str, LanguageCounts]) -> None:
    """Raise a `DataError` where an utterance of the development set is tested too, in whatever language."""
    both = set(_ids(dev.values())) & set(_ids(test.values()))
    if both:
        raise DataError(
            f"`{min(both)}` is in the development set and in the test set: groups that are made from the figures they explain "
            "would show noise; give other utterances"
        )


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
    _check_paired(first, second)
    return paired_difference(first.counts_U2, second.counts_U2, _rate, clusters=first.speakers, **options)


def error_rate(counts: LanguageCounts) -> float:
    """Return errors over reference tokens."""
    return float(_rate(counts.counts_U2.sum(0)[None])[0])


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
    return mean_change(
        list(
            changes(
                {name: first[name] for name in languages},
                {name: second[name] for name in languages},
                resamples=resamples,
                level=level,
                seed=seed,
            ).values()
        ),
        level=level,
    )


def mean_change(own: Sequence[Change], *, level: float = 0.95) -> Estimate:
    """Return the mean of changes, of these languages only: each language was resampled by itself, languages were not.

    The interval has the degrees of freedom that `spread` gives the sum; there is none where a language has one unit only.
    """
    estimates = [change.estimate for change in own]
    is_sure = all(estimate.num_units > 1 for estimate in estimates)
    kinds = {estimate.unit for estimate in estimates}
    caveats = ["these languages only: languages were not resampled", *caveats_within(estimates)]
    mean = from_replicates(
        float(np.mean([estimate.value for estimate in estimates])),
        np.mean([change.draws_R for change in own], axis=0),
        num_units=sum(estimate.num_units for estimate in estimates),
        unit=kinds.pop() if len(kinds) == 1 else "unit",
        level=level,
        caveat="; ".join(caveats),
        degrees=spread(*estimates)[1] if is_sure else None,
    )
    return mean if is_sure else replace(mean, low=math.nan, high=math.nan, sd=math.nan, method="none")


def caveats_within(estimates: Sequence[Estimate]) -> list[str]:
    """Return what the intervals of languages leave out that are put together: differences between speakers, mixed units."""
    caveats = []
    narrow = sum("not covered" in estimate.caveat or "unknown" in estimate.caveat for estimate in estimates)
    if narrow:
        caveats.append(f"differences between speakers are not covered in {narrow} of {len(estimates)} languages")
    alone = sum(estimate.num_units < 2 for estimate in estimates)
    if alone:
        caveats.append(
            f"nothing tells how sure the figures of {alone} of {len(estimates)} languages are: one unit each"
        )
    if len({estimate.unit for estimate in estimates}) > 1:
        caveats.append("speakers were resampled where a language has enough known ones, else utterances")
    return caveats


def _replicates(first: LanguageCounts, second: LanguageCounts, resamples: int, seed: int, name: str) -> Array:
    """Return R paired differences; every language has its own resamples of speakers, or of utterances."""
    unit_U = _units(first)
    sums = []
    for own in (first, second):
        total = np.zeros((int(unit_U.max()) + 1, 2))
        np.add.at(total, unit_U, own.counts_U2)
        sums.append(total)
    weights_RU = resample_weights(len(sums[0]), resamples, derive_seed("language", name, seed))
    return _rate(weights_RU @ sums[0]) - _rate(weights_RU @ sums[1])


def _units(counts: LanguageCounts) -> npt.NDArray[np.int64]:
    """Return which unit of resampling each utterance belongs to: its speaker where all are known and enough, as `bootstrap` does."""
    speakers = counts.speakers
    if speakers is not None and None not in speakers:
        names, unit_U = np.unique(np.asarray(speakers, dtype=str), return_inverse=True)
        if len(names) >= MIN_CLUSTERS:
            return unit_U.reshape(-1)
    return np.arange(len(counts.counts_U2))


def _rate(sums_R2: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums_R2[:, 0] / sums_R2[:, 1])


def _ids(counts: Iterable[LanguageCounts]) -> list[str]:
    return [name for own in counts for name in own.ids or ()]


def _check_paired(first: LanguageCounts, second: LanguageCounts) -> None:
    if first.ids is None or second.ids is None or list(first.ids) == list(second.ids):
        return
    odd = sorted(set(first.ids) ^ set(second.ids))
    raise DataError(
        f"two systems are compared on the same utterances in the same order, but `{odd[0]}` is scored by one only"
        if odd
        else "two systems are compared on the same utterances in the same order, but the order differs"
    )


def _same_languages(*tables: Mapping[str, Any]) -> list[str]:
    names = list(tables[0])
    for table in tables[1:]:
        if set(table) != set(names):
            odd = sorted(set(table) ^ set(names))
            raise DataError(f"all systems must be scored on the same languages, but `{odd[0]}` is missing from one")
    if not names:
        raise DataError("there is no language to report on")
    return names
