"""Reports by language: signs, groups, intervals, and figures that planted effects must show."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from isogloss.core.errors import DataError
from isogloss.evaluation.bootstrap import Estimate, two_sided_p
from isogloss.evaluation.language_reports import (
    LanguageCounts,
    change_of_estimate,
    changes,
    check_apart,
    difference,
    forgetting,
    gain_by_hours,
    helped_by_sharing,
    mean_change,
    mean_difference,
    transfer_and_interference,
)

NAMES = tuple("abcdefgh")


def system(rates: dict[str, float], seed: int = 0, utterances: int = 120) -> dict[str, LanguageCounts]:
    rng = np.random.default_rng(seed)
    result = {}
    for name, error in rates.items():
        tokens = rng.integers(10, 30, utterances)
        result[name] = LanguageCounts(np.stack([rng.binomial(tokens, error), tokens], 1).astype(float))
    return result


def rate(counts: LanguageCounts) -> float:
    return float(counts.counts_U2[:, 0].sum() / counts.counts_U2[:, 1].sum())


def test_gains_fall_with_hours_where_they_were_planted_so() -> None:
    before = system(dict.fromkeys(NAMES, 0.5))
    after = system({name: 0.2 + 0.04 * i for i, name in enumerate(NAMES)})
    hours = {name: float(2**i) for i, name in enumerate(NAMES)}
    found = gain_by_hours(changes(before, after, resamples=400), hours)
    assert found.correlation.value == pytest.approx(-1.0, abs=0.05)
    assert found.correlation.high < -0.5
    assert found.correlation.unit == "language"
    assert found.gains["a"].value == pytest.approx(rate(before["a"]) - rate(after["a"]))
    assert found.gains["a"].low > 0.2
    noise = gain_by_hours(changes(before, system(dict.fromkeys(NAMES, 0.5), seed=9), resamples=400), hours)
    assert noise.correlation.low < 0 < noise.correlation.high
    assert found.p_value < 0.02 < noise.p_value
    assert found.bins["0 to 10 h"][0] == ("a", "b", "c", "d")
    assert found.bins["0 to 10 h"][1].value == pytest.approx(np.mean([found.gains[n].value for n in "abcd"]))
    assert found.bins["100 to 1000 h"][0] == ("h",)


def test_transfer_and_interference_stay_apart() -> None:
    mono = system({"a": 0.6, "b": 0.6, "c": 0.3, "d": 0.3})
    multi = system({"a": 0.4, "b": 0.4, "c": 0.4, "d": 0.4}, seed=1)
    adapted = system({"a": 0.4, "b": 0.4, "c": 0.3, "d": 0.3}, seed=2)
    report = transfer_and_interference(
        mono, multi, adapted, {"a": True, "b": True, "c": False, "d": False}, resamples=400
    )
    assert report.transfer is not None
    assert report.interference is not None
    assert report.transfer.languages == ("a", "b")
    assert report.transfer.shared.low > 0.1
    assert not report.transfer.adapted.is_clear_of(0.0)
    assert report.interference.shared.high < -0.05
    assert report.interference.adapted.low > 0.05
    alone = transfer_and_interference(mono, multi, adapted, dict.fromkeys("abcd", True), resamples=100)
    assert alone.interference is None


def test_differences_are_paired_and_languages_count_the_same() -> None:
    first = system({"a": 0.5, "b": 0.2})
    assert difference(first["a"], first["a"]).sd == 0.0
    small = LanguageCounts(first["b"].counts_U2[:10])
    second = {"a": LanguageCounts(first["a"].counts_U2 * [0, 1]), "b": LanguageCounts(small.counts_U2 * [0, 1])}
    found = mean_difference({"a": first["a"], "b": small}, second, ["a", "b"], resamples=200)
    assert found.value == pytest.approx((rate(first["a"]) + rate(small)) / 2)
    assert found.low < found.value < found.high


def test_means_over_languages_resample_speakers_where_they_are_known() -> None:
    rng = np.random.default_rng(0)
    speakers = [f"s{i % 8}" for i in range(160)]
    bad = np.array([0.1 + 0.1 * (i % 8) for i in range(160)])  # how well a speaker is understood is the speaker's
    counts = {n: np.stack([rng.binomial(20, bad), np.full(160, 20)], 1).astype(float) for n in "ab"}
    zero = {n: LanguageCounts(own * [0, 1]) for n, own in counts.items()}
    known = {n: LanguageCounts(own, speakers) for n, own in counts.items()}
    unknown = {n: LanguageCounts(own) for n, own in counts.items()}
    wide, narrow = (mean_difference(own, zero, ["a", "b"], resamples=300) for own in (known, unknown))
    assert (wide.unit, wide.num_units, narrow.unit, narrow.num_units) == ("speaker", 16, "utterance", 320)
    assert wide.value == pytest.approx(narrow.value)
    assert wide.sd > 2 * narrow.sd
    alone = difference(known["a"], zero["a"])
    mean = mean_difference(known, zero, ["a"], resamples=2000)  # of one language: that language
    assert (mean.low, mean.high) == pytest.approx((alone.low, alone.high), abs=0.15 * (alone.high - alone.low))


def test_a_mean_of_languages_with_few_speakers_each_is_as_unsure_as_they_are() -> None:
    """Ten languages of five speakers are not fifty speakers: the interval is Welch's."""
    rng = np.random.default_rng(3)
    speakers = [f"s{i}" for i in range(5)]
    rates = {name: rng.normal(0.5, 0.1, 5) for name in "abcdefghij"}
    first = {name: LanguageCounts(np.stack([own, np.ones(5)], 1), speakers) for name, own in rates.items()}
    zero = {name: LanguageCounts(own.counts_U2 * [0, 1], speakers) for name, own in first.items()}
    found = mean_difference(first, zero, list(rates), resamples=20_000)
    variances = np.array([own.var(ddof=1) / 5 for own in rates.values()])
    degrees = variances.sum() ** 2 / (variances**2 / 4).sum()
    half = np.sqrt(variances.sum()) / 10 * stats.t.ppf(0.975, degrees)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.03)  # of fifty: smaller by 12 %
    small = {"a": first["a"], "b": LanguageCounts(np.array([[0.5, 1.0]]))}
    alone = mean_difference(
        small, {name: LanguageCounts(own.counts_U2 * [0, 1], own.speakers) for name, own in small.items()}, "ab"
    )
    assert "how sure the figures of 1 of 2 languages are" in alone.caveat
    assert np.isnan(alone.low)
    assert two_sided_p(alone) == 1.0
    assert alone.num_units == 6


def test_the_change_of_an_estimate_is_as_wide_as_few_units_make_it() -> None:
    estimate = Estimate(0.2, 0.1, 0.3, 0.05, "", 6, unit="speaker")
    change = change_of_estimate(estimate, "a", resamples=20_000)
    error = 0.05 * np.sqrt(6 / 5)
    assert change.draws_R.std() == pytest.approx(error, rel=0.02)  # 0.05 is less by 9 %
    mean = mean_change([change])
    low, high = 0.2 + error * stats.t.ppf([0.025, 0.975], 5)
    assert (mean.low, mean.high) == pytest.approx((low, high), abs=0.006)


def test_groups_are_made_of_the_same_utterances() -> None:
    counts = system({"a": 0.5})["a"].counts_U2
    first, second = (LanguageCounts(counts, ids=[f"{name}{i}" for i in range(120)]) for name in ("u", "v"))
    assert helped_by_sharing({"a": first}, {"a": first}) == {"a": False}
    with pytest.raises(DataError, match="`u0` is scored by one only"):
        helped_by_sharing({"a": first}, {"a": second})
    check_apart({"a": first}, {"a": second})
    with pytest.raises(DataError, match="`u0` is in the development set and in the test set"):
        check_apart({"a": first}, {"b": first})  # under another language, too


def test_gains_that_are_all_the_same_follow_nothing() -> None:
    same = system(dict.fromkeys("abcd", 0.5))
    with pytest.raises(DataError, match="all languages gained the same"):
        gain_by_hours(changes(same, same, resamples=50), {name: float(i) for i, name in enumerate("abcd")})


def test_forgetting_is_positive_where_errors_rose() -> None:
    before = system({"a": 0.3, "b": 0.3})
    after = {"adapted to a": system({"a": 0.2, "b": 0.5}, seed=3)}
    table = forgetting(before, after, resamples=300)
    assert table["adapted to a"]["b"].low > 0.1
    assert table["adapted to a"]["a"].high < 0.0


def test_systems_must_have_the_same_languages() -> None:
    whole, part = system(dict.fromkeys("abcd", 0.5)), system(dict.fromkeys("abc", 0.5))
    with pytest.raises(DataError, match="`d` is missing"):
        gain_by_hours(changes(whole, part), dict.fromkeys("abcd", 1.0))
    with pytest.raises(DataError, match="needs four"):
        gain_by_hours(changes(part, part), dict.fromkeys("abc", 1.0))
    with pytest.raises(DataError, match="cannot follow hours"):
        gain_by_hours(changes(whole, whole), dict.fromkeys("abcd", 1.0))
    named = {n: LanguageCounts(own.counts_U2, ids=[f"{n}{i}" for i in range(120)]) for n, own in whole.items()}
    other = {n: LanguageCounts(own.counts_U2, ids=[f"{n}{i + 1}" for i in range(120)]) for n, own in whole.items()}
    with pytest.raises(DataError, match="`a0` is scored by one only"):
        changes(named, other)
