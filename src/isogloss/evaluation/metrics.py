"""Error rates, accuracies, F1, EER, minDCF and Cavg, as counts per item wherever counts suffice.

A metric is a pair: a function that makes counts (items×columns) and a statistic of their sums, so that
`bootstrap(counts, statistic)` gives the figure with its interval and `statistic(counts.sum(0))` the figure alone.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from isogloss.core.errors import DataError
from isogloss.losses.edit_distance import edit_distance, edit_table

Array = npt.NDArray[np.float64]


class EditOperations(NamedTuple):
    """One cheapest way from a reference to a hypothesis."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int


def edit_counts(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """Return the least number of substitutions, deletions and insertions (Levenshtein distance)."""
    return edit_distance(reference, hypothesis)


def edit_operations(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> EditOperations:
    """Return the operations of one cheapest alignment; among several, substitutions are taken before insertions and deletions."""
    table = edit_table(reference, hypothesis)
    i, j = len(reference), len(hypothesis)
    hits = substitutions = deletions = insertions = 0
    while i or j:
        differs = int(not (i and j and reference[i - 1] == hypothesis[j - 1]))
        if i and j and table[i, j] == table[i - 1, j - 1] + differs:
            i, j = i - 1, j - 1
            hits, substitutions = hits + 1 - differs, substitutions + differs
        elif j and table[i, j] == table[i, j - 1] + 1:
            j, insertions = j - 1, insertions + 1
        else:
            i, deletions = i - 1, deletions + 1
    return EditOperations(hits, substitutions, deletions, insertions)


def words(text: str) -> list[str]:
    """Return the words of a text for WER: split at white space, composed Unicode (NFC), nothing else changed."""
    return unicodedata.normalize("NFC", text).split()


def characters(text: str) -> list[str]:
    """Return the characters for CER: code points of the composed text (NFC), runs of white space as one space."""
    return list(" ".join(words(text)))


def error_counts(references: Sequence[Sequence[Hashable]], hypotheses: Sequence[Sequence[Hashable]]) -> Array:
    """Return errors and reference lengths, B×2: `bootstrap(…, ratio)` is the corpus-level PER, WER or CER."""
    _check_equal(references, hypotheses)
    pairs = zip(references, hypotheses, strict=True)
    return np.array([(edit_counts(r, h), len(r)) for r, h in pairs], float).reshape(-1, 2)


def per_utterance_counts(counts_B2: Array) -> Array:
    """Turn `error_counts` into counts whose `ratio` is the mean of the utterances' own rates.

    That is how CPC_audio reports PER; utterances with an empty reference have no rate and are left out.
    """
    errors, lengths = counts_B2[:, 0], counts_B2[:, 1]
    has_rate = lengths > 0
    return np.stack([np.where(has_rate, errors / np.maximum(lengths, 1), 0), has_rate], axis=1)


def ratio(sums_R2: Array) -> Array:
    """Statistic: first column over second; NaN where the second is zero."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums_R2[..., 0] / sums_R2[..., 1])


def accuracy_counts(references: Sequence[Hashable], hypotheses: Sequence[Hashable]) -> Array:
    """Return hits and ones, B×2: their `ratio` is the accuracy."""
    _check_equal(references, hypotheses)
    hits = [float(r == h) for r, h in zip(references, hypotheses, strict=True)]
    return np.stack([np.array(hits), np.ones(len(hits))], axis=1)


def confusion(references: Sequence[Any], hypotheses: Sequence[Any]) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """Return C×C counts (rows: reference) and the classes in order."""
    _check_equal(references, hypotheses)
    classes, truth, guess = _encode(references, hypotheses)
    table = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(table, (truth, guess), 1)
    return table, classes


def f1_counts(references: Sequence[Any], hypotheses: Sequence[Any]) -> Array:
    """Return true positives, false positives and false negatives of each class side by side, B×3C."""
    _check_equal(references, hypotheses)
    classes, truth, guess = _encode(references, hypotheses)
    one_hot = np.eye(len(classes))
    is_true, is_guess = one_hot[truth], one_hot[guess]
    return np.concatenate([is_true * is_guess, is_guess - is_true * is_guess, is_true - is_true * is_guess], axis=1)


def macro_f1(sums: Array) -> Array:
    """Statistic of `f1_counts`: the mean of 2TP/(2TP + FP + FN) over classes that occur as reference or hypothesis."""
    hits, false_positives, false_negatives = np.split(sums, 3, axis=-1)
    total = 2 * hits + false_positives + false_negatives
    occurs = total > 0
    return np.asarray((2 * hits / np.where(occurs, total, 1)).sum(-1) / np.maximum(occurs.sum(-1), 1))


def recall_counts(references: Sequence[Any], hypotheses: Sequence[Any]) -> Array:
    """Return hits and references of each class side by side, B×2C, for `macro_accuracy`."""
    _check_equal(references, hypotheses)
    classes, truth, guess = _encode(references, hypotheses)
    is_true = np.eye(len(classes))[truth]
    return np.concatenate([is_true * (truth == guess)[:, None], is_true], axis=1)


def macro_accuracy(sums: Array) -> Array:
    """Statistic of `recall_counts`: the mean recall over classes that occur as reference."""
    hits, total = np.split(sums, 2, axis=-1)
    occurs = total > 0
    return np.asarray((hits / np.where(occurs, total, 1)).sum(-1) / np.maximum(occurs.sum(-1), 1))


def error_tradeoff(scores_I: Any, is_target_I: Any) -> Callable[[Array], tuple[Array, Array]]:
    """Return a function from weights of the trials (R×I) to miss and false-alarm rates (R×K+1) over all K thresholds.

    Entry k accepts the trials whose score exceeds the k lowest distinct scores.
    """
    scores_I = np.asarray(scores_I, float)
    is_target_I = np.asarray(is_target_I, bool)
    if scores_I.ndim != 1 or scores_I.shape != is_target_I.shape:
        raise DataError(f"scores and targets must be as many, but have shapes {scores_I.shape} and {is_target_I.shape}")
    if not np.isfinite(scores_I).all():
        raise DataError("scores must be finite; usually the logarithm of zero: clip the posteriors")
    if is_target_I.all() or not is_target_I.any():
        raise DataError("an error trade-off needs trials of both kinds, but all trials are of one")
    order = np.argsort(scores_I, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores_I[order]) > 0])
    is_target = is_target_I[order]

    def rates(weights_RI: Array) -> tuple[Array, Array]:
        weights = weights_RI[:, order]

        def below(part: Array) -> Array:
            total = np.cumsum(np.add.reduceat(part, starts, axis=1), axis=1)
            total = np.concatenate([np.zeros((len(part), 1)), total], axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.asarray(total / total[:, -1:])

        return below(weights * is_target), 1 - below(weights * ~is_target)

    return rates


def equal_error_rate(scores_I: Any, is_target_I: Any) -> Callable[[Array], Array]:
    """Return the statistic for `bootstrap_weighted`: where miss and false-alarm rate meet, interpolated linearly between thresholds.

    Two unit Gaussians at distance d give Φ(−d/2).
    """
    rates = error_tradeoff(scores_I, is_target_I)

    def statistic(weights_RI: Array) -> Array:
        miss, false_alarm = rates(weights_RI)
        gap = miss - false_alarm  # from −1 to 1, never falling
        after = np.argmax(gap >= 0, axis=1)[:, None]
        low, high = (np.take_along_axis(gap, k, axis=1) for k in (after - 1, after))
        start, end = (np.take_along_axis(miss, k, axis=1) for k in (after - 1, after))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(start + (end - start) * -low / (high - low))[:, 0]

    return statistic


def min_dcf(
    scores_I: Any, is_target_I: Any, *, p_target: float = 0.01, cost_miss: float = 1.0, cost_false_alarm: float = 1.0
) -> Callable[[Array], Array]:
    """Return the statistic for `bootstrap_weighted`: the least detection cost over thresholds.

    min_θ [C_miss·P·miss + C_fa·(1−P)·fa] / min(C_miss·P, C_fa·(1−P)) (NIST SRE).
    """
    if not 0 < p_target < 1:
        raise DataError(f"`p_target` must be between 0 and 1, but is {p_target}")
    rates = error_tradeoff(scores_I, is_target_I)
    on_miss, on_false_alarm = cost_miss * p_target, cost_false_alarm * (1 - p_target)

    def statistic(weights_RI: Array) -> Array:
        miss, false_alarm = rates(weights_RI)
        return np.asarray((on_miss * miss + on_false_alarm * false_alarm).min(axis=1) / min(on_miss, on_false_alarm))

    return statistic


def at_all_trials(statistic: Callable[[Array], Array], num_trials: int) -> float:
    """Return a weighted statistic with every trial counted once."""
    return float(statistic(np.ones((1, num_trials)))[0])


def detection_llr(log_posteriors_BC: Any) -> Array:
    """Return log-likelihood ratios of each language against the mean of the others, B×C, from log-posteriors under a flat prior."""
    values = np.asarray(log_posteriors_BC, float)
    top = values.max(axis=1, keepdims=True)
    likelihoods = np.exp(values - top)
    # Each sum without its own term, not total minus term: that would cancel when one language has all the mass.
    num_languages = values.shape[1]
    others = likelihoods @ (1 - np.eye(num_languages))
    smallest = np.finfo(float).tiny
    return np.asarray(values - top - np.log(np.maximum(others, smallest) / (num_languages - 1)))


def cavg_counts(languages_B: Any, llr_BC: Any, *, p_target: float = 0.5) -> Array:
    """Return, per utterance, which detectors accepted it by its language (C×C) and its language (C): B×(C²+C).

    `languages_B` are integers in 0…C−1. A detector accepts above the Bayes threshold ln((1−P)/P).
    """
    languages = np.asarray(languages_B, np.int64)
    llr = np.asarray(llr_BC, float)
    if llr.ndim != 2 or len(languages) != len(llr) or llr.shape[1] < 2:
        raise DataError(f"`llr_BC` must be {len(languages)} utterances × two or more languages, but is {llr.shape}")
    is_language = np.eye(llr.shape[1])[languages]
    accepted = (llr > math.log((1 - p_target) / p_target)).astype(float)
    by_pair = (is_language[:, :, None] * accepted[:, None, :]).reshape(len(llr), -1)
    return np.concatenate([by_pair, is_language], axis=1)


def cavg(num_languages: int, *, p_target: float = 0.5) -> Callable[[Array], Array]:
    """Return the statistic of `cavg_counts`: the NIST LRE average cost, all costs one.

    (1/C) Σ_t [P·miss(t) + Σ_{n≠t} (1−P)/(C−1) · fa(t, n)] over languages that have test utterances.
    """

    def statistic(sums: Array) -> Array:
        square = num_languages**2
        accepted = sums[..., :square].reshape(*sums.shape[:-1], num_languages, num_languages)
        total = sums[..., square:, None]
        occurs = total > 0
        rate = accepted / np.where(occurs, total, 1)  # of language (row) accepted by detector (column)
        hit = np.diagonal(rate, axis1=-2, axis2=-1)
        present = occurs[..., 0]
        num_others = np.maximum(present.sum(-1, keepdims=True) - 1, 1)
        false_alarm = ((rate * occurs).sum(-2) - hit * present) / num_others
        cost = p_target * (1 - hit) + (1 - p_target) * false_alarm
        return np.asarray((cost * present).sum(-1) / np.maximum(present.sum(-1), 1))

    return statistic


def _check_equal(references: Sequence[Any], hypotheses: Sequence[Any]) -> None:
    if len(references) != len(hypotheses):
        raise DataError(f"there are {len(references)} references but {len(hypotheses)} hypotheses")
    if not len(references):
        raise DataError("there is nothing to score: the test set has no items")


def _encode(
    references: Sequence[Any], hypotheses: Sequence[Any]
) -> tuple[list[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    classes = sorted(set(references) | set(hypotheses))
    place = {name: index for index, name in enumerate(classes)}
    truth, guess = (np.array([place[name] for name in names], np.int64) for names in (references, hypotheses))
    return classes, truth, guess
