from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from isogloss.core.errors import DataError
from isogloss.evaluation import bootstrap as module
from isogloss.evaluation.bootstrap import (
    Estimate,
    bootstrap,
    bootstrap_weighted,
    from_jackknife,
    from_replicates,
    half_width,
    hierarchical,
    holm,
    paired_difference,
    ratio_of_sums,
    two_sided_p,
    widened,
)
from isogloss.evaluation.metrics import ratio


def clustered(rng: np.random.Generator, speakers: int, each: int, spread: float) -> tuple[np.ndarray, list[str]]:
    """Errors out of 10 of each utterance; speakers differ in their rate by `spread`."""
    rates = np.clip(rng.normal(0.3, spread, speakers), 0.02, 0.9)
    errors = rng.binomial(10, np.repeat(rates, each))
    return np.stack([errors, np.full(len(errors), 10)], 1), [f"s{k // each}" for k in range(len(errors))]


@pytest.mark.parametrize(("speakers", "least"), [(6, 0.88), (25, 0.9)])
def test_intervals_cover_the_truth_as_often_as_they_say(speakers: int, least: float) -> None:
    rng = np.random.default_rng(0)
    truth = 0.3  # clipping moves the mean by less than 0.001
    covered = covered_by_utterances = 0
    for _ in range(200):
        counts, names = clustered(rng, speakers, 15, 0.08)
        by_speaker = bootstrap(counts, ratio, clusters=names, resamples=400)
        by_utterance = bootstrap(counts, ratio, resamples=150)
        covered += by_speaker.low <= truth <= by_speaker.high
        covered_by_utterances += by_utterance.low <= truth <= by_utterance.high
    # 95 % of 200 has a standard error of 1.5 %; the percentile bootstrap of six clusters is a little short of 95 %.
    assert least <= covered / 200 <= 0.99
    assert covered_by_utterances / 200 < 0.85  # who ignores speakers is too sure


def test_many_units_agree_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(5, 2, 2000)
    estimate = ratio_of_sums(values, np.ones(2000))
    standard_error = values.std(ddof=1) / math.sqrt(2000)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.sd == pytest.approx(standard_error, rel=0.08)
    half = 1.96 * standard_error
    assert (estimate.low, estimate.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.2 * half)


def test_a_resample_is_a_sum_over_drawn_clusters() -> None:
    """Against a loop that draws clusters one by one."""
    counts, names = clustered(np.random.default_rng(2), 7, 3, 0.1)
    seen: list[np.ndarray] = []

    def statistic(sums: np.ndarray) -> np.ndarray:
        seen.append(sums)
        return ratio(sums)

    bootstrap(counts, statistic, clusters=names, resamples=50, seed=4)
    weights = module.resample_weights(7, 50, 4)
    assert (weights.sum(1) == 7).all()
    by_speaker = {name: counts[[n == name for n in names]].sum(0) for name in sorted(set(names))}
    for drawn, sums in zip(weights, np.concatenate(seen[1:]), strict=True):
        assert sums.tolist() == sum(w * s for w, s in zip(drawn, by_speaker.values(), strict=True)).tolist()


def test_the_same_seed_gives_the_same_interval_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, names = clustered(np.random.default_rng(3), 12, 5, 0.1)
    one = bootstrap(counts, ratio, clusters=names)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_CHUNK", 100)
        assert bootstrap(counts, ratio, clusters=names) == one
        weighted = bootstrap_weighted(lambda w: ratio(w @ counts), len(counts), clusters=names)
    assert (weighted.low, weighted.high, weighted.value) == pytest.approx((one.low, one.high, one.value), abs=1e-12)
    assert bootstrap(counts, ratio, clusters=names, seed=1) != one


def test_few_or_unknown_speakers_are_said_and_utterances_resampled() -> None:
    counts, names = clustered(np.random.default_rng(4), 3, 20, 0.1)
    few = bootstrap(counts, ratio, clusters=names)
    assert (few.unit, few.num_units) == ("utterance", 60)
    assert few.caveat == "only 3 speakers: utterances were resampled, differences between speakers are not covered"
    unknown = bootstrap(counts, ratio, clusters=[None, *names[1:]])
    assert "the speaker of 1 of 60 utterances is unknown" in unknown.caveat
    many, who = clustered(np.random.default_rng(4), 5, 20, 0.1)
    known = bootstrap(many, ratio, clusters=who)
    assert (known.unit, known.num_units, known.caveat) == ("speaker", 5, "")
    one = bootstrap(counts[:1], ratio)
    assert math.isnan(one.low)
    assert one.format() == f"{one.value:.3f} [no interval]"
    assert not one.is_clear_of(-1)


def test_paired_differences_are_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(5)
    a, names = clustered(rng, 10, 20, 0.15)
    b = a.copy()
    b[:, 0] = np.minimum(10, b[:, 0] + rng.binomial(1, 0.3, len(b)))
    difference = paired_difference(a, b, ratio, clusters=names)
    assert difference.value == pytest.approx(ratio(a.sum(0)) - ratio(b.sum(0)))
    alone = bootstrap(a, ratio, clusters=names)
    assert difference.high - difference.low < (alone.high - alone.low) / 3
    assert difference.is_clear_of(0)
    assert difference.high < 0
    swapped = paired_difference(b, a, ratio, clusters=names)
    assert (swapped.low, swapped.high) == pytest.approx((-difference.high, -difference.low))
    with pytest.raises(DataError, match="same items"):
        paired_difference(a, b[:-1], ratio)


def test_hierarchical_keeps_the_variance_of_shared_speakers() -> None:
    rng = np.random.default_rng(6)
    counts, names = clustered(rng, 8, 10, 0.15)
    same_models = np.broadcast_to(counts, (3, 2, *counts.shape))
    flat = bootstrap(counts, ratio, clusters=names)
    estimate = hierarchical(same_models, ratio, clusters=names)
    # Models that make equal errors add no variance, and take none away.
    assert (estimate.low, estimate.high) == pytest.approx((flat.low, flat.high), abs=1e-9)
    assert "3 draws, 2 seeds, 8 speakers" in estimate.method
    by_draw = same_models.astype(float).copy()
    by_draw[..., 0] += np.array([-2.0, 0.0, 2.0])[:, None, None]
    wider = hierarchical(by_draw, ratio, clusters=names)
    assert wider.value == pytest.approx(flat.value)
    # Variance of the mean of 3 draws from {−0.2, 0, 0.2}: 0.2²·(2/3)/3.
    assert wider.sd**2 == pytest.approx(flat.sd**2 + 0.2**2 * 2 / 9, rel=0.15)


def test_hierarchical_seeds_stay_in_their_draw() -> None:
    counts = np.zeros((2, 2, 6, 2))
    counts[..., 1] = 1
    counts[0, 0, :, 0] = 1.0  # draw 0: seeds 1 and 0; draw 1: both 0
    estimate = hierarchical(counts, ratio)
    assert estimate.value == 0.25
    # Mean of two drawn draws of the mean of two drawn seeds: variance by enumeration.
    draws = [[1.0, 0.0], [0.0, 0.0]]
    values = [
        np.mean([np.mean([draws[d][s] for s in seeds]) for d, seeds in zip(chosen, both, strict=True)])
        for chosen in np.ndindex(2, 2)
        for both in ((a, b) for a in np.ndindex(2, 2) for b in np.ndindex(2, 2))
    ]
    assert estimate.sd == pytest.approx(np.std(values), rel=0.06)


def test_holm_equals_its_definition() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.5]
    # Ordered 0.005·5, 0.01·4, 0.03·3, 0.04·2, 0.5·1, never falling.
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.5])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_p_values_of_few_units_are_those_of_students_t() -> None:
    estimate = Estimate(0.3, 0.1, 0.5, 0.1, "", 10)
    assert two_sided_p(estimate) == pytest.approx(2 * stats.t.sf(3 * math.sqrt(0.9), 9))
    assert two_sided_p(replace(estimate, num_units=100_000)) == pytest.approx(2 * stats.norm.sf(3), rel=1e-3)
    assert two_sided_p(replace(estimate, sd=math.nan, num_units=1)) == 1.0
    assert (two_sided_p(replace(estimate, sd=0.0)), two_sided_p(replace(estimate, value=0.0, sd=0.0))) == (2**-9, 1.0)
    # of a mean: the one-sample test on the same numbers
    values = np.random.default_rng(4).normal(0.5, size=7)
    of_mean = Estimate(float(values.mean()), 0, 1, float(values.std() / math.sqrt(7)), "", 7)
    assert two_sided_p(of_mean) == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)


def test_independent_estimates_are_put_together_as_welch_does() -> None:
    random = np.random.default_rng(5)
    left, right = random.normal(size=5), random.normal(scale=3, size=9)
    estimates = [Estimate(float(x.mean()), 0, 1, float(x.std() / math.sqrt(len(x))), "", len(x)) for x in (left, right)]
    interval = stats.ttest_ind(left, right, equal_var=False).confidence_interval(0.9)
    assert 2 * half_width(*estimates, level=0.9) == pytest.approx(interval.high - interval.low)
    assert math.isnan(half_width(estimates[0], replace(estimates[1], num_units=1, sd=math.nan)))


def test_widened_resamples_have_the_intervals_of_few_units() -> None:
    draws = np.random.default_rng(6).normal(3.0, 1.0, size=40_001)
    wide = widened(draws, 6)
    assert wide.std() == pytest.approx(math.sqrt(6 / 5) * draws.std())
    assert wide.mean() == pytest.approx(draws.mean())
    direct = from_replicates(3.0, draws, num_units=6, unit="speaker")
    found = from_replicates(3.0, wide, num_units=6, unit="speaker", degrees=5)
    assert (found.low, found.high) == pytest.approx((direct.low, direct.high), abs=0.1)
    assert np.isnan(widened(np.array([0.0, math.nan, 1.0]), 5)).tolist() == [False, True, False]


def test_jackknife_of_a_mean_is_the_standard_error() -> None:
    values = np.random.default_rng(8).normal(size=12)
    left_out = (values.sum() - values) / 11
    estimate = from_jackknife(float(values.mean()), left_out, num_units=12, unit="utterance")
    assert estimate.sd == pytest.approx(values.std(ddof=1) / math.sqrt(12))
    assert estimate.high - estimate.value == pytest.approx(stats.t.ppf(0.975, 11) * estimate.sd)


def test_format_has_two_digits_of_the_width() -> None:
    assert Estimate(0.1234, 0.1101, 0.1371, 0.01, "", 9).format(scale=100) == "12.3 [11.0, 13.7]"
    assert Estimate(0.1234, 0.1231, 0.1237, 0.01, "", 9).format(scale=100) == "12.340 [12.310, 12.370]"
    assert Estimate(0.028, 0.0, 0.196, 0.1, "", 9).format(scale=100) == "2.8 [0.0, 19.6]"
    assert Estimate(41.0, 20.0, 60.0, 9.0, "", 9).format() == "41 [20, 60]"


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(DataError, match="no items"):
        ratio_of_sums([], [])
    with pytest.raises(DataError, match="`clusters` must name the speaker of each of 2 items, but has 1"):
        ratio_of_sums([1, 2], [3, 4], clusters=["a"])
    with pytest.raises(DataError, match="`level`"):
        ratio_of_sums([1, 2], [3, 4], level=95)


def test_few_units_widen_the_percentiles_as_a_t_interval_would() -> None:
    counts = np.random.default_rng(9).normal(size=(6, 1))
    estimate = bootstrap(counts, lambda sums: sums[:, 0], seed=2)
    tail = stats.norm.cdf(stats.t.ppf(0.025, 5) * math.sqrt(6 / 5))  # 0.24 % instead of 2.5 %
    values = (module.resample_weights(6, 2000, 2) @ counts)[:, 0]
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(values, [tail, 1 - tail])))
    assert tail < 0.003


def test_recentred_replicates_have_the_value_as_their_mean() -> None:
    # The mean squared weight of an item is 1, but about 2 in a resample.
    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.asarray((weights**2).mean(1))

    plain = bootstrap_weighted(statistic, 40)
    moved = bootstrap_weighted(statistic, 40, recentre=True)
    assert plain.low > 1 == plain.value == moved.value
    assert moved.low < 1 < moved.high
    assert moved.high - moved.low == pytest.approx(plain.high - plain.low)
