from __future__ import annotations

from statistics import NormalDist

import jiwer
import numpy as np
import pytest

import reference_metrics as reference
from isogloss.core.errors import DataError
from isogloss.evaluation import metrics
from isogloss.evaluation.bootstrap import bootstrap, bootstrap_weighted

PHI = NormalDist().cdf


def random_pairs(seed: int, size: int) -> list[tuple[list[str], list[str]]]:
    rng = np.random.default_rng(seed)
    return [
        (list(rng.choice(list("abcd"), rng.integers(0, 9))), list(rng.choice(list("abcd"), rng.integers(0, 9))))
        for _ in range(size)
    ]


def test_edit_distance_equals_the_recursion_and_its_operations_add_up() -> None:
    for ref, hyp in random_pairs(0, 300):
        distance = reference.edit_distance(ref, hyp)
        assert metrics.edit_counts(ref, hyp) == distance
        hits, substitutions, deletions, insertions = metrics.edit_operations(ref, hyp)
        assert substitutions + deletions + insertions == distance
        assert hits + substitutions + deletions == len(ref)
        assert hits + substitutions + insertions == len(hyp)


@pytest.mark.parametrize(
    ("ref", "hyp", "rate"), [([1, 2, 3, 4], [1, 3, 3, 4], 0.25), ([1], [2, 3, 4], 3.0), ([1, 2], [], 1.0)]
)
def test_error_rates_of_the_published_fixtures(ref: list[int], hyp: list[int], rate: float) -> None:
    assert metrics.ratio(metrics.error_counts([ref], [hyp]).sum(0)) == rate


def test_word_and_character_error_rates_equal_jiwer() -> None:
    rng = np.random.default_rng(1)
    vocabulary = ["kyéma", "adí", "mósωngώsώ", "ngá", "pórá", "sá"]
    refs = [" ".join(rng.choice(vocabulary, rng.integers(1, 9))) for _ in range(60)]
    hyps = [" ".join(rng.choice(vocabulary, rng.integers(1, 9))) for _ in range(60)]
    wer = metrics.error_counts([metrics.words(r) for r in refs], [metrics.words(h) for h in hyps])
    cer = metrics.error_counts([metrics.characters(r) for r in refs], [metrics.characters(h) for h in hyps])
    assert metrics.ratio(wer.sum(0)) == pytest.approx(jiwer.wer(refs, hyps), abs=1e-12)
    assert metrics.ratio(cer.sum(0)) == pytest.approx(jiwer.cer(refs, hyps), abs=1e-12)
    per_utterance = metrics.ratio(metrics.per_utterance_counts(wer).sum(0))
    assert per_utterance == pytest.approx(np.mean([jiwer.wer(r, h) for r, h in zip(refs, hyps, strict=True)]))
    assert per_utterance != pytest.approx(metrics.ratio(wer.sum(0)))


def test_per_utterance_rate_leaves_out_empty_references() -> None:
    counts = metrics.error_counts([[], ["a", "b"]], [["a"], ["a"]])
    assert metrics.ratio(metrics.per_utterance_counts(counts).sum(0)) == 0.5
    assert metrics.ratio(counts.sum(0)) == 1.0


def test_composed_and_decomposed_accents_are_the_same_text() -> None:
    assert metrics.words("ngá  sá") == metrics.words("nga\u0301 sa\u0301 ")
    assert metrics.characters(" a \t b ") == ["a", " ", "b"]


def test_classification_metrics_equal_loops() -> None:
    rng = np.random.default_rng(2)
    refs, hyps = (rng.choice(["fr", "es", "ru", "xx"], 200, p=p) for p in ([0.5, 0.3, 0.2, 0], [0.4, 0.3, 0.25, 0.05]))
    refs, hyps = refs.tolist(), hyps.tolist()
    table, classes = metrics.confusion(refs, hyps)
    assert classes == ["es", "fr", "ru", "xx"]
    assert all(
        table[i, j] == sum((r, h) == (a, b) for r, h in zip(refs, hyps, strict=True))
        for i, a in enumerate(classes)
        for j, b in enumerate(classes)
    )
    accuracy = metrics.ratio(metrics.accuracy_counts(refs, hyps).sum(0))
    assert accuracy == pytest.approx(np.trace(table) / 200)
    assert metrics.macro_f1(metrics.f1_counts(refs, hyps).sum(0)) == pytest.approx(reference.macro_f1(refs, hyps))
    recalls = [table[i, i] / table[i].sum() for i in range(3)]
    assert metrics.macro_accuracy(metrics.recall_counts(refs, hyps).sum(0)) == pytest.approx(np.mean(recalls))
    estimate = bootstrap(metrics.f1_counts(refs, hyps), metrics.macro_f1, resamples=200)
    assert estimate.low < reference.macro_f1(refs, hyps) < estimate.high


def trials(seed: int, size: int, distance: float, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = np.arange(size) % 3 == 0
    scores = rng.normal(size=size) + distance * targets
    return (np.round(scores, 0) if ties else scores), targets


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_detection_metrics_equal_loops_over_thresholds(seed: int, ties: bool) -> None:
    scores, targets = trials(seed, 61, 1.5, ties=ties)
    eer = metrics.at_all_trials(metrics.equal_error_rate(scores, targets), 61)
    assert eer == pytest.approx(reference.equal_error_rate(scores.tolist(), targets.tolist()), abs=1e-12)
    for p in (0.01, 0.5, 0.9):
        dcf = metrics.at_all_trials(metrics.min_dcf(scores, targets, p_target=p), 61)
        assert dcf == pytest.approx(reference.min_dcf(scores.tolist(), targets.tolist(), p), abs=1e-12)


def test_weights_are_repetitions() -> None:
    scores, targets = trials(5, 40, 1.0)
    times = np.random.default_rng(0).integers(0, 4, 40)
    statistic = metrics.equal_error_rate(scores, targets)
    expected = reference.equal_error_rate(np.repeat(scores, times).tolist(), np.repeat(targets, times).tolist())
    assert statistic(times[None].astype(float))[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.0, 3.0])
def test_equal_error_rate_of_two_gaussians(distance: float) -> None:
    scores, targets = trials(7, 300_000, distance)
    # The rate of 100,000 targets has a standard error of at most 0.0016.
    eer = metrics.at_all_trials(metrics.equal_error_rate(scores, targets), 300_000)
    assert eer == pytest.approx(PHI(-distance / 2), abs=0.005)


def test_min_dcf_of_two_gaussians() -> None:
    scores, targets = trials(8, 300_000, 2.0)
    # Miss Φ(θ−2) and false alarm Φ(−θ) sum to the least at θ = 1: 2·Φ(−1).
    dcf = metrics.at_all_trials(metrics.min_dcf(scores, targets, p_target=0.5), 300_000)
    assert dcf == pytest.approx(2 * PHI(-1), abs=0.008)


def test_useless_scores_cost_one() -> None:
    targets = np.arange(30) % 2 == 0
    assert metrics.at_all_trials(metrics.min_dcf(np.zeros(30), targets), 30) == 1.0
    assert metrics.at_all_trials(metrics.equal_error_rate(np.zeros(30), targets), 30) == pytest.approx(0.5)


def test_equal_error_rate_has_an_interval_by_speaker() -> None:
    scores, targets = trials(9, 400, 1.5)
    statistic = metrics.equal_error_rate(scores, targets)
    speakers = [f"s{k // 20}" for k in range(400)]
    estimate = bootstrap_weighted(statistic, 400, clusters=speakers, resamples=300)
    assert estimate.num_units == 20
    assert estimate.low < estimate.value == metrics.at_all_trials(statistic, 400) < estimate.high


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_cavg_equals_the_loop_over_language_pairs(p: float) -> None:
    rng = np.random.default_rng(3)
    languages = rng.integers(0, 4, 90)
    llr = rng.normal(size=(90, 5)) + 2 * np.eye(5)[languages]  # the fifth language has no test utterance
    counts = metrics.cavg_counts(languages, llr, p_target=p)
    value = metrics.cavg(5, p_target=p)(counts.sum(0, keepdims=True))[0]
    assert value == pytest.approx(reference.cavg(languages.tolist(), llr, p), abs=1e-12)
    perfect = metrics.cavg_counts(languages, 10 * np.eye(5)[languages] - 5)
    assert metrics.cavg(5)(perfect.sum(0)) == 0
    nothing = metrics.cavg_counts(languages, np.full((90, 5), -1.0))
    assert metrics.cavg(5)(nothing.sum(0)) == 0.5


def test_detection_ratios_of_posteriors() -> None:
    posteriors = np.array([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]])
    with np.errstate(divide="ignore"):
        llr = metrics.detection_llr(np.log(posteriors))
    assert llr[0, 0] == pytest.approx(np.log(0.7 / 0.15))
    assert llr[0, 2] == pytest.approx(np.log(0.1 / 0.45))
    np.testing.assert_allclose(llr[1], 0, atol=1e-12)
    assert llr[2, 0] > 100


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(DataError, match="2 references but 1 hypotheses"):
        metrics.accuracy_counts(["a", "b"], ["a"])
    with pytest.raises(DataError, match="no items"):
        metrics.error_counts([], [])
    with pytest.raises(DataError, match="all trials are of one"):
        metrics.equal_error_rate([1.0, 2.0], [True, True])
    with pytest.raises(DataError, match="finite"):
        metrics.equal_error_rate([1.0, np.inf], [True, False])
