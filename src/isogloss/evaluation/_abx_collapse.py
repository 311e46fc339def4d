"""From cells to one figure: mean over contexts, then speakers, then phone pairs; and its interval."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from isogloss.evaluation._abx_cells import Cells
from isogloss.evaluation.bootstrap import MIN_CLUSTERS, Estimate, from_jackknife, from_replicates, resample_weights

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_CHUNK = 10_000_000  # numbers held at once
_DENSE = 8_000_000  # a table of this size is faster dense


def estimate(cells: Cells, *, resamples: int, level: float, seed: int) -> tuple[Estimate, Floats]:
    """Return the error and the replicates that its interval is made of.

    Speakers are resampled (of both sides across speakers, where a cell counts as often as both its speakers were drawn);
    where fewer than five speakers have cells, groups of utterances are left out in turn.
    """
    by_speaker_K, pair_K, speaker_K, speaker_x_K = _over_contexts(cells, cells.errors[:, None])
    value = float(_over_speakers(by_speaker_K, pair_K, np.ones_like(by_speaker_K))[0])
    present = np.union1d(speaker_K, speaker_x_K)
    if cells.leave_out_CG is not None:
        left_KG, pair_K, *_ = _over_contexts(cells, cells.leave_out_CG)
        replicates = _over_speakers(left_KG, pair_K, np.ones_like(left_KG))
        people = f"{len(present)} speaker{'s' if len(present) > 1 else ''}"
        caveat = f"only {people}: utterances were left out in turn, differences between speakers are not covered"
        return _jackknife(value, replicates, cells.num_utterances, level, caveat), replicates
    if len(present) < MIN_CLUSTERS:  # a single utterance
        return _jackknife(value, np.zeros(0), cells.num_utterances, level, ""), np.zeros(0)
    weights_RU = resample_weights(len(present), resamples, seed)
    # One column for each speaker, or each pair of speakers, that has cells.
    sides, column_K = np.unique(speaker_K * len(cells.speakers) + speaker_x_K, return_inverse=True)
    side, side_x = (np.searchsorted(present, part) for part in np.divmod(sides, len(cells.speakers)))
    weights_RQ = weights_RU[:, side]
    if (side != side_x).any():
        weights_RQ = weights_RQ * weights_RU[:, side_x]
    replicates = _resample(by_speaker_K[:, 0], pair_K, column_K, weights_RQ)
    return from_replicates(value, replicates, num_units=len(present), unit="speaker", level=level), replicates


def estimate_difference(a: Estimate, b: Estimate, replicates_a: Floats, replicates_b: Floats) -> Estimate:
    """Estimate a − b from replicates over the same resamples."""
    value, replicates = a.value - b.value, replicates_a - replicates_b
    if a.unit == "utterance":
        return _jackknife(value, replicates, a.num_units, a.level, a.caveat)
    return from_replicates(value, replicates, num_units=a.num_units, unit=a.unit, level=a.level, caveat=a.caveat)


def by_phone(cells: Cells) -> dict[str, float]:
    """Return the mean error of the phone pairs that hold each phone, on either side."""
    by_speaker_K, pair_K, *_ = _over_contexts(cells, cells.errors[:, None])
    pairs, inverse = np.unique(pair_K, return_inverse=True)
    error_P = np.bincount(inverse, by_speaker_K[:, 0]) / np.bincount(inverse)
    a, b = np.divmod(pairs, len(cells.phones))
    found = np.union1d(a, b).tolist()
    return {cells.phones[p]: float(error_P[(a == p) | (b == p)].mean()) for p in found}


def _jackknife(value: float, replicates: Floats, num_units: int, level: float, caveat: str) -> Estimate:
    return from_jackknife(value, replicates, num_units=num_units, unit="utterance", level=level, caveat=caveat)


def _over_contexts(cells: Cells, errors_CG: Floats) -> tuple[Floats, Ints, Ints, Ints]:
    """Return means over contexts (K×G), and of each the phone pair and the two speakers."""
    num_phones, num_speakers = len(cells.phones), len(cells.speakers)
    pair_C = cells.phone_a * num_phones + cells.phone_b
    code_C = (pair_C * num_speakers + cells.speaker) * num_speakers + cells.speaker_x
    codes, inverse = np.unique(code_C, return_inverse=True)
    mean_KG = _weighted_mean(errors_CG, inverse, len(codes), np.ones_like(errors_CG))
    rest, speaker_x_K = np.divmod(codes, num_speakers)
    pair_K, speaker_K = np.divmod(rest, num_speakers)
    return mean_KG, pair_K, speaker_K, speaker_x_K


def _over_speakers(errors_KG: Floats, pair_K: Ints, weights_KR: Floats) -> Floats:
    """Return the mean over phone pairs of the weighted means over speakers, one per column."""
    pairs, inverse = np.unique(pair_K, return_inverse=True)
    with np.errstate(invalid="ignore"):
        return np.asarray(_column_mean(_weighted_mean(errors_KG, inverse, len(pairs), weights_KR)))


def _resample(error_K: Floats, pair_K: Ints, column_K: Ints, weights_RQ: Floats) -> Floats:
    """Return, per resample, the mean over phone pairs of the means over speakers (or pairs of them) weighted by their counts."""
    from scipy.sparse import csr_matrix

    pairs, row_K = np.unique(pair_K, return_inverse=True)
    shape = (len(pairs), weights_RQ.shape[1])
    errors_PQ, present_PQ = (csr_matrix((v, (row_K, column_K)), shape=shape) for v in (error_K, np.ones(len(row_K))))
    if shape[0] * shape[1] <= _DENSE:
        errors_PQ, present_PQ = errors_PQ.toarray(), present_PQ.toarray()
    values = []
    rows = max(1, _CHUNK // max(shape))
    for begin in range(0, len(weights_RQ), rows):
        weights_QR = np.ascontiguousarray(weights_RQ[begin : begin + rows].T)
        with np.errstate(invalid="ignore", divide="ignore"):
            values.append(_column_mean((errors_PQ @ weights_QR) / (present_PQ @ weights_QR)))
    return np.concatenate(values)


def _column_mean(values_PR: Floats) -> Floats:
    is_there = np.isfinite(values_PR)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(is_there, values_PR, 0).sum(0) / is_there.sum(0))


def _weighted_mean(values_KG: Floats, group_K: Ints, num_groups: int, weights_KR: Floats) -> Floats:
    """Return weighted means per group, NaN where nothing has weight; values broadcast over the columns of the weights."""
    from scipy.sparse import csr_matrix

    member = csr_matrix((np.ones(len(group_K)), (group_K, np.arange(len(group_K)))), shape=(num_groups, len(group_K)))
    is_there = np.isfinite(values_KG)
    sums = member @ (np.where(is_there, values_KG, 0) * weights_KR)
    counts = member @ (is_there * weights_KR)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(sums / counts)
