"""Calibration, rejection and confusions among relatives, against closed forms and slow sums."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from isogloss.core.errors import DataError
from isogloss.evaluation.calibration import (
    area_under_curve,
    calibration_counts,
    calibration_error,
    fit_temperature,
    log_loss_counts,
    log_normalize,
    rejection_threshold,
)
from isogloss.evaluation.identification import Calibration, Scored, identification_records
from isogloss.evaluation.metrics import at_all_trials
from isogloss.evaluation.relatedness import group_of


def scored(labels: list[str], said: list[str], *, confidence: float = 0.7, seconds: float = 3.0) -> Scored:
    classes = ("bs", "fr", "hr", "sr")
    rest = (1 - confidence) / (len(classes) - 1)
    scores_BC = np.log([[confidence if c == s else rest for c in classes] for s in said])
    return Scored(classes, labels, scores_BC, np.full(len(labels), seconds), [f"s{i % 6}" for i in range(len(labels))])


def test_calibration_error_in_closed_form() -> None:
    # ten at 0.9 of which seven are right, ten at 0.6 of which six are
    posteriors = np.array([[0.9, 0.1]] * 10 + [[0.6, 0.4]] * 10)
    labels = [0] * 7 + [1] * 3 + [0] * 6 + [1] * 4
    counts = calibration_counts(np.log(posteriors), labels)
    assert float(calibration_error(counts.sum(0))) == pytest.approx(0.5 * 0.2 + 0.5 * 0.0)
    # over- and underconfidence in one bin cancel, in two bins they do not
    one_bin = calibration_counts(np.log(posteriors), [1] * 10 + [0] * 10, num_bins=1)
    assert float(calibration_error(one_bin.sum(0))) == pytest.approx(abs(0.5 - 0.75))
    two = calibration_counts(np.log(posteriors), [1] * 10 + [0] * 10)
    assert float(calibration_error(two.sum(0))) == pytest.approx(0.5 * 0.9 + 0.5 * 0.4)


def test_log_loss_of_the_ignorant_is_the_logarithm_of_the_number_of_classes() -> None:
    counts = log_loss_counts(np.full((5, 4), -math.log(4)), [0, 1, 2, 3, 0])
    assert counts[:, 0].mean() == pytest.approx(math.log(4))


def test_temperature_is_found_again() -> None:
    random = np.random.default_rng(0)
    true_scores = log_normalize(random.normal(size=(20_000, 5)) * 2)
    labels = (np.exp(true_scores).cumsum(1) < random.uniform(size=(20_000, 1))).sum(1).clip(max=4)
    assert fit_temperature(true_scores, labels) == pytest.approx(1.0, abs=0.04)
    sharp = log_normalize(true_scores * 3)
    assert fit_temperature(sharp, labels) == pytest.approx(3.0, rel=0.04)
    # two classes, all answers at log-odds z, a share q right: T = z / logit(q)
    z, right = 4.0, 0.75
    scores = log_normalize(np.array([[z, 0.0]] * 100))
    assert fit_temperature(scores, [0] * 75 + [1] * 25) == pytest.approx(z / math.log(right / (1 - right)), rel=1e-3)


def test_area_under_the_curve_counts_pairs() -> None:
    random = np.random.default_rng(1)
    scores, is_target = random.integers(0, 6, 40).astype(float), random.uniform(size=40) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[is_target] for b in scores[~is_target]]
    assert at_all_trials(area_under_curve(scores, is_target), 40) == pytest.approx(np.mean(pairs))
    weights = random.integers(0, 3, 40)
    repeated, kinds = np.repeat(scores, weights), np.repeat(is_target, weights)
    twice = [(a > b) + 0.5 * (a == b) for a in repeated[kinds] for b in repeated[~kinds]]
    found = area_under_curve(scores, is_target)(weights[None].astype(float))
    assert float(found[0]) == pytest.approx(np.mean(twice))


def test_thresholds() -> None:
    assert rejection_threshold(np.arange(101.0)) == pytest.approx(5.0)
    known, unknown = [2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 2.5, 1.5]
    threshold = rejection_threshold(known + unknown, [True] * 4 + [False] * 4)
    assert 2.0 < threshold <= 2.5 or 2.5 < threshold < 3.0
    assert (np.array(known) < threshold).mean() + 1e-9 >= 0.25
    apart = rejection_threshold([5.0, 6.0, 1.0, 2.0], [True, True, False, False])
    assert 2.0 < apart < 5.0


def test_shares_of_errors_inside_clusters() -> None:
    labels = ["bs"] * 6 + ["fr"] * 4
    said = ["bs", "bs", "hr", "sr", "hr", "fr", "fr", "fr", "fr", "hr"]
    records = {
        r.metric: r
        for r in identification_records(scored(labels, said), system="s", task="t", dataset="d")
        if r.dataset == "d"
    }
    assert records["accuracy"].value == pytest.approx(0.5)
    assert records["macro_accuracy"].value == pytest.approx((2 / 6 + 3 / 4) / 2)
    assert records["accuracy_clusters"].value == pytest.approx(8 / 10)
    assert records["cluster_error_share"].value == pytest.approx(3 / 5)
    # four errors of bs have two relatives among three others, one of fr has none
    assert records["cluster_error_share"].meta["blind"] == pytest.approx(4 * 2 / (5 * 3))
    assert records["accuracy"].meta["confusions"][0] == ["bs", "hr", 2]
    assert "unknown_auroc" not in records
    assert records["ece"].value == pytest.approx(0.2)


def test_relatives() -> None:
    assert group_of("hr") == group_of("sr-Latn") == group_of("bs")
    assert group_of("ar-EG") == group_of("ar-MA") != group_of("fa")
    assert len({group_of(c) for c in ("id", "hi", "cs", "hr", "fr")}) == 5
    assert [group_of(a) == group_of(b) for a, b in (("id", "ms"), ("hi", "ur"), ("cs", "sk"))] == [True] * 3


def test_unknown_languages_test_the_rejection_and_nothing_else() -> None:
    known = scored(["bs", "fr", "hr"] * 4, ["bs", "fr", "bs"] * 4, confidence=0.9)
    unknown = scored(["de"] * 4, ["fr"] * 4, confidence=0.4)
    both = Scored(
        known.classes,
        known.labels + unknown.labels,
        np.concatenate([known.scores_BC, unknown.scores_BC]),
        np.concatenate([known.seconds_B, unknown.seconds_B + 4]),
        known.speakers + unknown.speakers,
    )
    calibration = Calibration.fit(both)
    records = {
        r.metric: r
        for r in identification_records(both, system="s", task="t", dataset="d", calibration=calibration)
        if r.dataset == "d"
    }
    assert records["accuracy"].value == pytest.approx(8 / 12)
    assert records["unknown_auroc"].value == 1.0
    assert records["unknown_eer"].value == 0.0
    assert records["false_rejection"].value == records["false_acceptance"].value == 0.0
    assert "accuracy_long" not in records  # only the unknown are long
    # the temperature makes ECE vanish: two thirds are right, all at the same posterior
    assert records["ece"].value == pytest.approx(0.9 - 2 / 3)
    assert records["log_loss_scaled"].value < records["log_loss"].value


def test_a_corpus_of_unknown_languages_only() -> None:
    unknown = scored(["de"] * 4, ["fr"] * 4, confidence=0.4)
    with pytest.raises(DataError, match="is a class of the model"):
        identification_records(unknown, system="s", task="t", dataset="d")
    calibration = Calibration(temperature=1.0, threshold=math.log(0.5), how="by hand")
    records = identification_records(unknown, system="s", task="t", dataset="d", calibration=calibration)
    assert [(record.metric, record.value) for record in records] == [("false_acceptance", 0.0)]


def test_the_gap_to_another_corpus_is_over_the_languages_that_both_test() -> None:
    from isogloss.evaluation.identification import domain_gap

    def corpus(labels: str, right: float) -> Scored:
        scores = np.full((len(labels), 3), -2.0)
        for row, label in enumerate(labels):
            hit = row % 10 < 10 * right
            scores[row, ("abc".index(label) + (0 if hit else 1)) % 3] = -0.1
        return Scored(tuple("abc"), list(labels), scores, np.full(len(labels), 4.0), [None] * len(labels))

    near, far = corpus("a" * 20 + "b" * 20, 0.9), corpus("a" * 20 + "b" * 20 + "c" * 40, 0.4)
    gap = domain_gap(near, far, system="s", task="lid", datasets=("near", "far"))
    assert gap is not None
    assert gap.value == pytest.approx(0.5)
    assert 0 < gap.low < 0.5 < gap.high
    # five speakers tell less than a hundred do, and the interval of their deviation is Student's
    five = [
        dataclasses.replace(own, speakers=[f"s{i // 8}" for i in range(len(own.labels))])
        for own in (near, far.rows(np.arange(80) < 40))
    ]
    few = domain_gap(*five, system="s", task="lid", datasets=("near", "far"))
    assert few is not None
    assert (few.unit, few.num_units) == ("speaker", 5)
    assert few.high - few.value > 2.3 * few.sd * math.sqrt(5 / 4)  # t has four to eight degrees: 2.31 to 2.78, not 1.96
    assert gap.meta["languages"] == ["a", "b"]
    assert domain_gap(near, corpus("c" * 10, 0.5), system="s", task="lid", datasets=("near", "far")) is None
