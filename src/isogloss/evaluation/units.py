"""Discrete units: k-means on frames, and how well units and phones tell each other (PNMI, purities)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isogloss.core.errors import DataError
from isogloss.core.lengths import trim_to_shortest
from isogloss.core.rng import generator
from isogloss.evaluation.bootstrap import Estimate, bootstrap_weighted

Floats = npt.NDArray[np.float64]

_CHUNK_ROWS = 1 << 14


@dataclass(frozen=True)
class Codebook:
    """C centroids of width D; `inertia` is the mean squared distance of the frames that they were fitted to."""

    centroids_CD: Tensor
    inertia: float
    iterations: int

    def assign(self, values_ND: Any) -> npt.NDArray[np.int64]:
        """Return the nearest centroid of each frame (N)."""
        values_ND = _as_frames(values_ND)
        return _assign(values_ND, self.centroids_CD)[0].numpy()


def kmeans(
    values_ND: Any, num_units: int, *, seed: int = 0, iterations: int = 100, tolerance: float = 1e-4, restarts: int = 1
) -> Codebook:
    """Fit C centroids to N frames: k-means++ seeding, Lloyd's iterations until the inertia falls by less than `tolerance`.

    A centroid that loses all its frames moves to the frame that is farthest from its own. Of several `restarts` the one with
    the least inertia is kept. Raises `DataError` for fewer frames than units or frames that are not finite.
    """
    values_ND = _as_frames(values_ND)
    if not 1 <= num_units <= len(values_ND):
        raise DataError(f"`num_units` must be in 1…{len(values_ND)}, the number of frames, but is {num_units}")
    if restarts < 1:
        raise DataError(f"`restarts` must be at least 1, but is {restarts}")
    books = [
        _lloyd(values_ND, _plus_plus(values_ND, num_units, generator("kmeans", seed, r)), iterations, tolerance)
        for r in range(restarts)
    ]
    return min(books, key=lambda book: book.inertia)


def _as_frames(values_ND: Any) -> Tensor:
    values = torch.as_tensor(np.asarray(values_ND)).float()
    if values.dim() != 2:
        raise DataError(f"frames must be N×D, but have the shape {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise DataError("frames must be finite; usually the encoder diverged")
    return values


def _assign(values_ND: Tensor, centroids_CD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centroid of each frame and the squared distance to it."""
    half_norms_C = centroids_CD.square().sum(1) / 2
    units, distances = [], []
    for part in values_ND.split(_CHUNK_ROWS):
        # ‖x − c‖²/2 up to ‖x‖²/2, which no choice depends on.
        best = torch.addmm(half_norms_C, part, centroids_CD.T, alpha=-1).min(dim=1).indices
        units.append(best)
        # The product cancels where a frame lies on its centroid; the distance itself is taken directly.
        distances.append((part - centroids_CD[best]).square().sum(1))
    return torch.cat(units), torch.cat(distances)


def _plus_plus(values_ND: Tensor, num_units: int, draws: torch.Generator) -> Tensor:
    """Draw centroids one after the other, each frame with a chance proportional to its squared distance (Arthur 2007)."""
    chosen = [int(torch.randint(len(values_ND), (1,), generator=draws))]
    nearest_N = (values_ND - values_ND[chosen[0]]).square().sum(1)
    for _ in range(1, num_units):
        total = nearest_N.double().cumsum(0)
        if total[-1] > 0:
            at = torch.rand(1, generator=draws, dtype=torch.float64) * total[-1]
            index = min(int(torch.searchsorted(total, at, right=True)), len(values_ND) - 1)
        else:  # fewer distinct frames than units
            index = int(torch.randint(len(values_ND), (1,), generator=draws))
        chosen.append(index)
        nearest_N = torch.minimum(nearest_N, (values_ND - values_ND[index]).square().sum(1))
    return values_ND[chosen].clone()


def _lloyd(values_ND: Tensor, centroids_CD: Tensor, iterations: int, tolerance: float) -> Codebook:
    units_N, distances_N = _assign(values_ND, centroids_CD)
    inertia = float(distances_N.double().mean())
    done = 0
    for step in range(1, iterations + 1):
        done = step
        counts_C = torch.bincount(units_N, minlength=len(centroids_CD))
        sums_CD = torch.zeros(centroids_CD.shape, dtype=torch.float64).index_add_(0, units_N, values_ND.double())
        centroids_CD = (sums_CD / counts_C.clamp(min=1)[:, None]).float()
        empty = (counts_C == 0).nonzero()[:, 0]
        if len(empty):
            centroids_CD[empty] = values_ND[distances_N.topk(len(empty)).indices]
        units_N, distances_N = _assign(values_ND, centroids_CD)
        before, inertia = inertia, float(distances_N.double().mean())
        if before - inertia <= tolerance * before and not len(empty):
            break
    return Codebook(centroids_CD, inertia, done)


@dataclass(frozen=True)
class UnitQuality:
    """PNMI and purities with their intervals, over `num_frames` labelled frames.

    `pnmi` is I(phone; unit) / H(phone); `phone_purity` the chance of the phone by the unit's commonest one;
    `cluster_purity` the chance of the unit by the phone's commonest one (HuBERT, arXiv 2106.07447, §IV-D).
    """

    pnmi: Estimate
    phone_purity: Estimate
    cluster_purity: Estimate
    num_frames: int
    num_units: int
    num_phones: int


def unit_quality(
    units: Sequence[Any],
    phones: Sequence[Any],
    *,
    speakers: Sequence[str | None] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> UnitQuality:
    """Compare units with phones, one array of integers per utterance and frame; frames with a negative phone are left out.

    Two arrays of an utterance may differ by two frames. A resample repeats utterances, so its mutual information is higher
    than that of as many new ones: replicates are moved so that their mean is the figure itself.
    """
    from scipy.sparse import csr_matrix

    if len(units) != len(phones):
        raise DataError(f"there are {len(units)} utterances of units but {len(phones)} of phones")
    rows, unit_parts, phone_parts = [], [], []
    lengths = trim_to_shortest([len(u) for u in units], [len(p) for p in phones])
    for index, (unit, phone, length) in enumerate(zip(units, phones, lengths, strict=True)):
        unit_S, phone_S = np.asarray(unit)[:length], np.asarray(phone)[:length]
        is_labelled = phone_S >= 0
        unit_parts.append(unit_S[is_labelled])
        phone_parts.append(phone_S[is_labelled])
        rows.append(np.full(int(is_labelled.sum()), index))
    row_N = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    if not len(row_N):
        raise DataError("no frame has both a unit and a phone; usually because the cuts have no alignment")
    unit_names, unit_N = np.unique(np.concatenate(unit_parts), return_inverse=True)
    phone_names, phone_N = np.unique(np.concatenate(phone_parts), return_inverse=True)
    shape = (len(phone_names), len(unit_names))
    cell_N = phone_N * shape[1] + unit_N
    counts = csr_matrix((np.ones(len(row_N)), (row_N, cell_N)), shape=(len(units), shape[0] * shape[1])).T.tocsr()

    def estimate(index: int) -> Estimate:
        def statistic(weights_RB: Floats) -> Floats:
            # Few resamples at a time: their contingency tables are dense.
            size = max(1, 4_000_000 // (shape[0] * shape[1]))
            parts = [weights_RB[k : k + size] for k in range(0, len(weights_RB), size)]
            return np.concatenate([_statistics((counts @ part.T).T.reshape(-1, *shape))[index] for part in parts])

        return bootstrap_weighted(
            statistic, len(units), clusters=speakers, resamples=resamples, level=level, seed=seed, recentre=True
        )

    return UnitQuality(estimate(0), estimate(1), estimate(2), len(row_N), shape[1], shape[0])


def contingency_statistics(counts_PC: Any) -> tuple[float, float, float]:
    """Return PNMI, phone purity and cluster purity of a table of counts, phones × units."""
    pnmi, phone_purity, cluster_purity = _statistics(np.asarray(counts_PC, float)[None])
    return float(pnmi[0]), float(phone_purity[0]), float(cluster_purity[0])


def _statistics(counts_RPC: Floats) -> tuple[Floats, Floats, Floats]:
    total_R = counts_RPC.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        joint = counts_RPC / total_R[:, None, None]
        entropy_phone = _entropy(joint.sum(2))
        information = entropy_phone + _entropy(joint.sum(1)) - _entropy(joint.reshape(len(joint), -1))
        pnmi = np.where(entropy_phone > 0, information / entropy_phone, np.nan)
    return pnmi, joint.max(1).sum(1), joint.max(2).sum(1)


def _entropy(chances: Floats) -> Floats:
    return np.asarray(-(chances * np.log(np.where(chances > 0, chances, 1.0))).sum(1))
