from __future__ import annotations

import math

import numpy as np
import pytest

from isogloss.core.errors import DataError
from isogloss.evaluation.units import contingency_statistics, kmeans, unit_quality


def slow_statistics(units: list[int], phones: list[int]) -> tuple[float, float, float]:
    """PNMI and purities by counting pairs, as sums of p·log(p / (p·p))."""
    n = len(units)
    chance = lambda test: sum(1 for pair in zip(units, phones, strict=True) if test(*pair)) / n  # noqa: E731
    information, entropy, phone_purity, cluster_purity = 0.0, 0.0, 0.0, 0.0
    for p in set(phones):
        alone = chance(lambda _, q, p=p: q == p)
        entropy -= alone * math.log(alone)
        for u in set(units):
            both = chance(lambda v, q, p=p, u=u: (v, q) == (u, p))
            if both:
                information += both * math.log(both / (alone * chance(lambda v, _, u=u: v == u)))
    for u in set(units):
        phone_purity += max(chance(lambda v, q, p=p, u=u: (v, q) == (u, p)) for p in set(phones))
    for p in set(phones):
        cluster_purity += max(chance(lambda v, q, p=p, u=u: (v, q) == (u, p)) for u in set(units))
    return information / entropy, phone_purity, cluster_purity


def corpus(seed: int, noise: float, utterances: int = 40, length: int = 60) -> tuple[list, list]:
    rng = np.random.default_rng(seed)
    phones = [rng.integers(0, 5, length) for _ in range(utterances)]
    units = [
        np.where(rng.random(length) < noise, rng.integers(0, 10, length), 2 * p + rng.integers(0, 2, length))
        for p in phones
    ]
    return units, phones


@pytest.mark.parametrize("noise", [0.0, 0.4, 1.0])
def test_unit_quality_equals_the_slow_reference(noise: float) -> None:
    units, phones = corpus(0, noise, utterances=6)
    phones[2][5:20] = -1  # silence
    phones[3][0] = -2  # unknown
    kept = [(int(u), int(p)) for a, b in zip(units, phones, strict=True) for u, p in zip(a, b, strict=True) if p >= 0]
    expected = slow_statistics([u for u, _ in kept], [p for _, p in kept])
    result = unit_quality(units, phones, resamples=50)
    assert result.num_frames == len(kept) == 6 * 60 - 16
    got = (result.pnmi.value, result.phone_purity.value, result.cluster_purity.value)
    assert got == pytest.approx(expected, abs=1e-12)
    if noise == 0:
        assert got[:2] == pytest.approx((1.0, 1.0))


def test_closed_forms() -> None:
    assert contingency_statistics(np.eye(4)) == pytest.approx((1, 1, 1))
    assert contingency_statistics(np.ones((4, 3))) == pytest.approx((0, 1 / 4, 1 / 3))
    # A symmetric channel of two phones with error 0.1: I = ln 2 − H(0.1).
    channel = -0.1 * math.log(0.1) - 0.9 * math.log(0.9)
    expected = 1 - channel / math.log(2)
    assert contingency_statistics([[0.9, 0.1], [0.1, 0.9]]) == pytest.approx((expected, 0.9, 0.9))


def test_intervals_hold_the_value_and_know_speakers() -> None:
    units, phones = corpus(1, 0.6)
    result = unit_quality(units, phones, resamples=200)
    assert result.pnmi.low < result.pnmi.value < result.pnmi.high
    assert (result.pnmi.unit, result.pnmi.num_units) == ("utterance", 40)
    by_speaker = unit_quality(units, phones, speakers=[f"s{k % 8}" for k in range(40)], resamples=200)
    assert (by_speaker.pnmi.unit, by_speaker.pnmi.num_units) == ("speaker", 8)
    # New corpora of the same kind scatter as the interval says: its sd within a third of theirs.
    fresh = [contingency_statistics_of(*corpus(seed, 0.6)) for seed in range(100, 160)]
    assert result.pnmi.sd == pytest.approx(np.std(fresh), rel=0.35)


def contingency_statistics_of(units: list, phones: list) -> float:
    table = np.zeros((5, 10))
    np.add.at(table, (np.concatenate(phones), np.concatenate(units)), 1)
    return contingency_statistics(table)[0]


def test_kmeans_steps_are_lloyds() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(size=(300, 4)).astype(np.float32)
    start = kmeans(values, 6, iterations=0)
    one, two = kmeans(values, 6, iterations=1), kmeans(values, 6, iterations=2)
    centroids = start.centroids_CD.numpy()
    assert all((values == c).all(1).any() for c in centroids)  # seeded on frames
    for book in (one, two):
        nearest = np.argmin(((values[:, None] - centroids) ** 2).sum(2), 1)
        centroids = np.stack([values[nearest == c].mean(0) for c in range(6)])
        np.testing.assert_allclose(book.centroids_CD.numpy(), centroids, atol=1e-5)
        nearest = np.argmin(((values[:, None] - centroids) ** 2).sum(2), 1)
        np.testing.assert_array_equal(book.assign(values), nearest)
        assert book.inertia == pytest.approx(((values - centroids[nearest]) ** 2).sum(1).mean(), rel=1e-5)
    assert start.inertia > one.inertia > two.inertia


def test_kmeans_finds_planted_clusters_whatever_the_seed() -> None:
    rng = np.random.default_rng(3)
    means = rng.normal(size=(8, 16)) * 10
    truth = rng.integers(0, 8, 2000)
    values = (means[truth] + rng.normal(size=(2000, 16))).astype(np.float32)
    for seed in range(3):
        book = kmeans(values, 8, seed=seed, restarts=3)
        assert contingency(book.assign(values), truth) == pytest.approx(1.0)
        assert book.inertia == pytest.approx(16, rel=0.05)  # 16 unit variances
    again = kmeans(values, 8, seed=0, restarts=3)
    assert (again.centroids_CD == kmeans(values, 8, seed=0, restarts=3).centroids_CD).all()


def contingency(units: np.ndarray, phones: np.ndarray) -> float:
    table = np.zeros((8, 8))
    np.add.at(table, (phones, units), 1)
    return contingency_statistics(table)[0]


def test_kmeans_with_fewer_distinct_frames_than_units() -> None:
    values = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    book = kmeans(values, 5)
    assert book.inertia == 0
    assert len(set(book.assign(values).tolist())) == 3


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(DataError, match="`num_units` must be in 1…3"):
        kmeans(np.eye(3), 4)
    with pytest.raises(DataError, match="finite"):
        kmeans(np.full((4, 2), np.nan), 2)
    with pytest.raises(DataError, match="no frame has both"):
        unit_quality([[1, 2]], [[-1, -1]])
    with pytest.raises(ValueError, match="another rate"):
        unit_quality([[1] * 10], [[1] * 20])
