"""Whether posteriors mean what they say, and whether they tell what they do not know.

Expected calibration error and temperature scaling: arXiv 1706.04599, §2 and §4.2. Rejection of unknown classes by the greatest
posterior: arXiv 1610.02136.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from isogloss.core.errors import DataError
from isogloss.evaluation.metrics import error_tradeoff

Array = npt.NDArray[np.float64]
NUM_BINS = 15


def log_normalize(scores_BC: Any) -> Array:
    """Return log-posteriors of scores, rows that add up to one."""
    scores_BC = np.asarray(scores_BC, float)
    shifted = scores_BC - scores_BC.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def log_loss_counts(log_posteriors_BC: Any, labels_B: Any) -> Array:
    """Return −ln p(label) in nats and ones, B×2: their `ratio` is the log-loss."""
    log_posteriors, labels = _check(log_posteriors_BC, labels_B)
    losses_B = -log_posteriors[np.arange(len(labels)), labels]
    return np.stack([losses_B, np.ones_like(losses_B)], axis=1)


def calibration_counts(log_posteriors_BC: Any, labels_B: Any, num_bins: int = NUM_BINS) -> Array:
    """Return for each utterance, in the bin of its greatest posterior: hit, posterior, one; B×(3·bins), for `calibration_error`.

    Bins are of equal width and closed above: ((m−1)/M, m/M].
    """
    log_posteriors, labels = _check(log_posteriors_BC, labels_B)
    confidence_B = np.exp(log_posteriors.max(axis=1))
    bin_B = np.clip(np.ceil(confidence_B * num_bins - 1e-12).astype(int) - 1, 0, num_bins - 1)
    in_bin = np.eye(num_bins)[bin_B]
    hits_B = (log_posteriors.argmax(axis=1) == labels).astype(float)
    return np.concatenate([in_bin * hits_B[:, None], in_bin * confidence_B[:, None], in_bin], axis=1)


def calibration_error(sums: Array) -> Array:
    """Statistic of `calibration_counts`: Σ_m n_m/n |accuracy(m) − confidence(m)| (arXiv 1706.04599, eq. 3)."""
    hits, confidence, number = np.split(sums, 3, axis=-1)
    return np.asarray(np.abs(hits - confidence).sum(-1) / np.maximum(number.sum(-1), 1))


def fit_temperature(log_posteriors_BC: Any, labels_B: Any) -> float:
    """Return the T of softmax(score / T) with the least log-loss, between 1/50 and 50 (arXiv 1706.04599, §4.2).

    It changes no decision. Fit it on speech that is neither trained on nor tested.
    """
    from scipy.optimize import minimize_scalar

    log_posteriors, labels = _check(log_posteriors_BC, labels_B)

    def loss(log_temperature: float) -> float:
        return float(log_loss_counts(log_normalize(log_posteriors / np.exp(log_temperature)), labels)[:, 0].mean())

    bound = float(np.log(50.0))
    return float(np.exp(minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))


def area_under_curve(scores_I: Any, is_target_I: Any) -> Callable[[Array], Array]:
    """Return the statistic for `bootstrap_weighted`: the chance that a target scores above a non-target, ties counting half."""
    rates = error_tradeoff(scores_I, is_target_I)

    def statistic(weights_RI: Array) -> Array:
        miss, false_alarm = rates(weights_RI)
        steps = false_alarm[:, :-1] - false_alarm[:, 1:]
        return np.asarray((steps * (1 - (miss[:, :-1] + miss[:, 1:]) / 2)).sum(axis=1))

    return statistic


def rejection_threshold(scores_I: Any, is_known_I: Any | None = None, *, false_rejection: float = 0.05) -> float:
    """Return the score below which an utterance is taken to be of no known class.

    Where the development set has both kinds, misses and false acceptances are as equal as can be; with known classes only,
    the share `false_rejection` of them is below.
    """
    scores_I = np.asarray(scores_I, float)
    if not len(scores_I):
        raise DataError("a threshold needs utterances, but the development set has none")
    known_I = np.ones(len(scores_I), bool) if is_known_I is None else np.asarray(is_known_I, bool)
    if known_I.all():
        return float(np.quantile(scores_I, false_rejection))
    miss, false_alarm = error_tradeoff(scores_I, known_I)(np.ones((1, len(scores_I))))
    levels = np.unique(scores_I)
    # entry k accepts what exceeds the k lowest; the middle of the gap is not sensitive to rounding
    edges = np.concatenate([[levels[0] - 1], (levels[1:] + levels[:-1]) / 2, [levels[-1] + 1]])
    return float(edges[int(np.abs(miss[0] - false_alarm[0]).argmin())])


def _check(log_posteriors_BC: Any, labels_B: Any) -> tuple[Array, npt.NDArray[np.int64]]:
    values, labels = np.asarray(log_posteriors_BC, float), np.asarray(labels_B, np.int64)
    if values.ndim != 2 or len(values) != len(labels) or not len(labels):
        raise DataError(
            f"log-posteriors must be {len(labels)} (one or more) utterances × classes, but are {values.shape}"
        )
    return values, labels
