"""What the sub-networks of an encoder say: how they overlap, whether kin share more, and whom a lesion hurts."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed, generator
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import matrices, row_of
from isogloss.evaluation.bootstrap import Estimate, from_replicates, off_diagonal, over_pairs
from isogloss.nn.edits import WeightMask

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Overlap:
    """Intersection over union of what two languages leave out, L×L, and what independent random masks of these sizes would have.

    With a share ρ left out of every matrix the random expectation is ρ / (2 − ρ).
    """

    languages: tuple[str, ...]
    iou_LL: Array
    expected_LL: Array
    sparsity_L: Array

    def pairs(self) -> list[tuple[str, str, float, float]]:
        """Return (language, language, overlap, expectation) of every pair."""
        count = len(self.languages)
        return [
            (self.languages[i], self.languages[j], float(self.iou_LL[i, j]), float(self.expected_LL[i, j]))
            for i in range(count)
            for j in range(i + 1, count)
        ]


def mask_overlap(encoder: Encoder) -> Overlap:
    """Compare the masks of an encoder's languages; `DataError` where it has none."""
    found = masks_of(encoder)
    assert encoder.edits is not None
    count = len(encoder.edits.languages)
    both, either = np.zeros((count, count)), np.zeros((count, count))
    expected_both, expected_either = np.zeros((count, count)), np.zeros((count, count))
    left_out = np.zeros(count)
    total = 0
    for edit in found.values():
        size = edit.shape[0] * edit.shape[1]
        pruned = [~edit.mask(row).reshape(-1) for row in range(count)]
        shares = np.array([float(p.sum()) / size for p in pruned])
        total += size
        left_out += shares * size
        for i in range(count):
            for j in range(count):
                both[i, j] += int((pruned[i] & pruned[j]).sum())
                either[i, j] += int((pruned[i] | pruned[j]).sum())
        product = np.outer(shares, shares)
        expected_both += product * size
        expected_either += (shares[:, None] + shares[None, :] - product) * size
    return Overlap(
        encoder.edits.languages, _ratio(both, either), _ratio(expected_both, expected_either), left_out / total
    )


def mean_overlap(overlap: Overlap, *, level: float = 0.95) -> Estimate:
    """Return the mean overlap over pairs; the interval leaves out one language at a time, since pairs share them."""
    if len(overlap.languages) < 2:
        raise DataError("an overlap needs two languages, but the encoder has masks for one")
    return over_pairs(overlap.iou_LL, off_diagonal, level=level)


@dataclass(frozen=True)
class Relatedness:
    """Spearman's correlation between overlap and relatedness over pairs of languages.

    `correlation` has an interval over resampled languages (pairs share languages, so pairs are not independent); `p_value`
    is that of a Mantel test: how many relabellings of the languages reach as much (one-sided).
    """

    correlation: Estimate
    p_value: float
    num_permutations: int


def relatedness(
    overlap_LL: Array, relatedness_LL: Array, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Relatedness:
    """Correlate two symmetric L×L matrices off the diagonal; at least four languages and two degrees of relatedness are needed."""
    count = len(overlap_LL)
    if count < 4 or overlap_LL.shape != relatedness_LL.shape:
        raise DataError(
            f"relatedness needs two L×L matrices of at least four languages, but they are {overlap_LL.shape} and {relatedness_LL.shape}"
        )
    rows, columns = np.triu_indices(count, 1)
    value = spearman(overlap_LL[rows, columns], relatedness_LL[rows, columns])
    if np.ptp(relatedness_LL[rows, columns]) == 0:
        raise DataError("all pairs of languages are equally related; add languages of another family or branch")
    if math.isnan(value):
        raise DataError("all pairs of languages overlap alike; usually because they have one mask for all")
    rng = np.random.default_rng(derive_seed("relatedness", seed))
    values = []
    for _ in range(resamples):
        drawn = rng.integers(count, size=count)
        # A pair of a language with itself is no pair.
        keep = drawn[rows] != drawn[columns]
        left, right = drawn[rows][keep], drawn[columns][keep]
        values.append(spearman(overlap_LL[left, right], relatedness_LL[left, right]))
    reached = 0
    for _ in range(resamples):
        order = rng.permutation(count)
        shuffled = overlap_LL[np.ix_(order, order)]
        reached += spearman(shuffled[rows, columns], relatedness_LL[rows, columns]) >= value - 1e-12
    estimate = _interval(value, np.array(values), count, "language", level)
    return Relatedness(estimate, (reached + 1) / (resamples + 1), resamples)


def own_weights(encoder: Encoder, language: str) -> dict[str, torch.Tensor]:
    """Return which weights of each matrix this language alone uses; `DataError` where it is the only one."""
    row = row_of(encoder, language)
    found = masks_of(encoder)
    assert encoder.edits is not None
    others = [other for other in range(len(encoder.edits.languages)) if other != row]
    if not others:
        raise DataError(f"a lesion takes what only one language uses, but `{language}` is the only one")
    own = {}
    for name in matrices(encoder):
        unique = found[name].mask(row)
        for other in others:
            unique = unique & ~found[name].mask(other)
        own[name] = unique
    return own


def as_many(lesion: Mapping[str, torch.Tensor], language: str, seed: int) -> dict[str, torch.Tensor]:
    """Return as many other weights of each matrix, at random: a lesion of the same size that belongs to nobody."""
    return {name: _random_like(own, generator(seed, "lesion", language, name)) for name, own in lesion.items()}


def lesioned(encoder: Encoder, language: str, *, at_random: int | None = None) -> Encoder:
    """Return the dense encoder without `own_weights` of a language, or without `as_many` at random (a seed)."""
    lesion = own_weights(encoder, language)
    return without(encoder, lesion if at_random is None else as_many(lesion, language, at_random))


@torch.no_grad()
def without(encoder: Encoder, lesion: Mapping[str, torch.Tensor]) -> Encoder:
    """Return the dense encoder, in eval mode, without these weights of its masked matrices."""
    masks_of(encoder)
    dense = copy.deepcopy(encoder)
    for name, matrix in matrices(dense).items():
        matrix.weight = nn.Parameter(matrix.weight.detach().masked_fill(lesion[name], 0.0))
        matrix.edit = None
    dense.edits = None
    return dense.eval()


def masks_of(encoder: Encoder) -> dict[str, WeightMask]:
    """Return the masks of an encoder's matrices; `DataError` where it has none."""
    found = {name: matrix.edit for name, matrix in matrices(encoder).items() if isinstance(matrix.edit, WeightMask)}
    if not found:
        raise DataError("this encoder has no masks; make some with `isogloss adapt --method subnetwork`")
    return found


def kinship(classifications: Mapping[str, Sequence[str]], languages: Sequence[str]) -> Array:
    """Return how many levels of classification (family, branch, …, from the top) two languages share, L×L.

    A language that a table leaves at an upper level shares no more than that with any other.
    """
    shared = np.zeros((len(languages), len(languages)))
    for i, first in enumerate(languages):
        for j, second in enumerate(languages):
            depth = 0
            for a, b in zip(classifications[first], classifications[second], strict=False):
                if a != b:
                    break
                depth += 1
            shared[i, j] = depth
    return shared


def spearman(left: Any, right: Any) -> float:
    """Return Spearman's rank correlation, ties at their mean rank; NaN where one side is constant."""
    from scipy.stats import rankdata

    a, b = rankdata(left), rankdata(right)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def _random_like(lesion: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    # On the CPU, where the generator lives.
    order = (
        torch.rand(lesion.shape, generator=random).masked_fill(lesion.cpu(), -1.0).reshape(-1).argsort(descending=True)
    )
    chosen = torch.zeros(lesion.numel(), dtype=torch.bool)
    chosen[order[: int(lesion.sum())]] = True
    return chosen.view(lesion.shape).to(lesion.device)


def _ratio(numerator: Array, denominator: Array) -> Array:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _interval(value: float, values: Array, num_units: int, unit: str, level: float) -> Estimate:
    caveat = f"only {num_units} {unit}s" if num_units < 10 else ""
    return from_replicates(value, values, num_units=num_units, unit=unit, level=level, caveat=caveat)
