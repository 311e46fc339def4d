"""Mini-batch k-means on features that need not fit in memory, on CPU or GPU, on one process or many.

Nested mini-batches (arXiv 1602.02934): k-means++ seeds on a small sample, Lloyd's iterations on it until they hardly help,
twice as many rows, and so on to a sample that fits in memory; then passes over everything, block by block. On the first
sample, where an iteration costs next to nothing, centroids also breathe (arXiv 2006.15666): some are added where the error
is largest and as many taken away where they are missed least, which leaves the local minimum that seeds lead to. A plain
mini-batch pays for every small step of its centroids. All random draws come from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isogloss.core import dist
from isogloss.core.errors import DataError
from isogloss.core.rng import generator
from isogloss.nn.product import multiply

Block = Tensor | NDArray[Any]  # rows × D, float16 or float32; may be a memory map
Progress = Callable[[str, int, int], None]  # (what is being done, rows done, rows in all; of this process)

_CHUNK_ROWS = 8192
_ROWS_PER_UNIT = 256  # of the sample in memory: its centroids lie within a hundredth of a spread of the whole's
_SEED_ROWS_PER_UNIT = 40
_COARSE = 0.05  # of the variance: clusters that leave less are too tight for bfloat16
_MAX_STEPS = 100  # on one sample
_BREATHS = 5  # breaths in and out that may fail, each with half as many centroids as the one before
_CANDIDATES = 64  # rows kept in a pass for units that will turn out empty


@dataclass(frozen=True)
class Clusters:
    """C centroids of width D (float32, on the CPU).

    `inertia` is the mean squared distance of the rows to their centroids in the last pass, before its update; `passes` counts
    the passes over all rows, and `rows_assigned` the assignments of one row after the seeding.
    """

    centroids_CD: Tensor
    inertia: float
    passes: int
    rows_assigned: int

    def assign(self, values_ND: Tensor) -> Tensor:
        """Return the nearest centroid of each row (int64, N)."""
        centroids_CD = self.centroids_CD.to(values_ND.device)
        half_norms_C = centroids_CD.square().sum(1) / 2
        parts = [_nearest(part.float(), centroids_CD, half_norms_C)[0] for part in values_ND.split(_CHUNK_ROWS)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=values_ND.device)


def fit_clusters(
    blocks: Sequence[Block],
    num_units: int,
    *,
    seed: int = 0,
    restarts: int = 3,
    max_passes: int = 3,
    tolerance: float = 5e-3,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Clusters:
    """Fit `num_units` centroids to the rows of all blocks of all processes.

    Every process gives its own blocks and gets the same centroids; sums go through `core.dist`. Of `restarts` seedings the
    one with the least inertia on the first sample goes on. Within a sample, iterations end when the inertia falls by less
    than `tolerance`; so do passes over all rows, after at most `max_passes`. A unit without rows moves to a row drawn with
    a chance proportional to its squared distance. Raises `DataError` for fewer rows than units or rows that are not finite.
    """
    device = torch.device(device)
    ranks = [int(rows) for rows in dist.gather_objects(sum(len(block) for block in blocks))]  # type: ignore[call-overload]
    num_rows = sum(ranks)
    if not 1 <= num_units <= num_rows:
        raise DataError(
            f"`num_units` must lie in 1…{num_rows}, the number of frames, but is {num_units}; try fewer units or more speech"
        )
    wanted = min(num_rows, max(_ROWS_PER_UNIT * num_units, 1 << 15))
    mine = wanted * ranks[dist.rank()] // num_rows
    sample_ND = _draw_rows(blocks, mine, generator("kmeans sample", seed, dist.rank())).to(device)
    fit = _Fit(num_units, _mean_row(sample_ND), seed, tolerance, progress)
    if not len(sample_ND):
        sample_ND = sample_ND.new_zeros(0, len(fit.mean_D))  # a process without blocks does not know the width
    if not dist.any_rank(not bool(torch.isfinite(sample_ND).all()), device):
        first = _share(min(num_rows, max(_SEED_ROWS_PER_UNIT * num_units, 4096)), ranks, wanted)
        for fit.dtype in (torch.bfloat16, torch.float32):
            centred_ND = fit.centred(sample_ND)
            # Every process works on the whole of the first sample, and so all do the same.
            centroids_CD, share_left = fit.seeded(_gathered(centred_ND[: first[dist.rank()]], first), restarts)
            if share_left > _COARSE:
                break
        rows = sum(first)
        while True:
            share = _share(rows, ranks, wanted)[dist.rank()]
            centroids_CD, inertia = fit.lloyd(centroids_CD, sample_ND[:share], centred_ND[:share])
            if rows >= wanted:
                break
            rows = min(2 * rows, wanted)
        del sample_ND, centred_ND
        passes = 0
        while passes < max_passes and wanted < num_rows:
            passes += 1
            before = inertia
            centroids_CD, inertia, _ = fit.step(centroids_CD, _chunks(blocks, device), ranks[dist.rank()], "pass")
            if passes > 1 and before - inertia <= tolerance * before:
                break
        if math.isfinite(inertia):
            found_CD = (centroids_CD + fit.mean_D).cpu()
            return Clusters(found_CD, inertia, passes, fit.rows_assigned)
    raise DataError("some features are not finite; usually the encoder diverged: try an earlier checkpoint")


class _Fit:
    """One fit: everything is computed around the mean row, where half precision loses least."""

    def __init__(self, num_units: int, mean_D: Tensor, seed: int, tolerance: float, progress: Progress | None) -> None:
        self.num_units, self.mean_D, self.seed, self.tolerance = num_units, mean_D, seed, tolerance
        self.progress = progress
        self.dtype = torch.bfloat16
        self.rows_assigned = 0
        self.steps = 0

    def centred(self, values_ND: Tensor) -> Tensor:
        """Return rows around the mean, in bfloat16 where that tells which centroid is nearest: it costs half."""
        centred_ND = torch.empty(values_ND.shape, dtype=self.dtype, device=values_ND.device)
        for start in range(0, len(values_ND), _CHUNK_ROWS):
            stop = start + _CHUNK_ROWS
            centred_ND[start:stop] = values_ND[start:stop] - self.mean_D
        return centred_ND

    def seeded(self, centred_ND: Tensor, restarts: int) -> tuple[Tensor, float]:
        """Return the best of several seedings, C×D, and the share of the variance that it leaves."""
        sample = _Sample(centred_ND)
        best: _Fitted | None = None
        for restart in range(restarts):
            if self.progress is not None:
                self.progress("seeding", restart, restarts)
            draws = generator("kmeans seeds", self.seed, restart)
            found = _breathe(sample, sample.settle(_plus_plus(sample, self.num_units, draws), 8), draws)
            if best is None or found.inertia < best.inertia:
                best = found
        assert best is not None
        return best.centroids_CD, best.inertia / max(float(sample.norms_N.double().sum()), 1e-30)

    def lloyd(self, centroids_CD: Tensor, values_ND: Tensor, centred_ND: Tensor) -> tuple[Tensor, float]:
        """Iterate on rows in memory until the inertia hardly falls; return centroids and the inertia before the last update."""
        before = math.inf
        for _ in range(_MAX_STEPS):
            parts = zip(values_ND.split(_CHUNK_ROWS), centred_ND.split(_CHUNK_ROWS), strict=True)
            name = f"{len(values_ND):,} frames"
            centroids_CD, inertia, num_empty = self.step(centroids_CD, parts, len(values_ND), name)
            if not num_empty and inertia > (1 - self.tolerance) * before:
                break
            before = inertia
        return centroids_CD, inertia

    def step(
        self, centroids_CD: Tensor, chunks: Iterable[tuple[Tensor, Tensor | None]], num_rows: int, name: str
    ) -> tuple[Tensor, float, int]:
        """Assign all rows and move the centroids to their means; return them, the inertia before it, and the empty units.

        A chunk is rows as they are and, where they are at hand, around the mean.
        """
        device, width = centroids_CD.device, centroids_CD.shape[1]
        draws = generator("kmeans empty", self.seed, self.steps, dist.rank(), device=device)
        centred_CD, half_norms_C = _rounded(centroids_CD, self.dtype)
        sums_CD = torch.zeros(self.num_units, width, dtype=torch.float64, device=device)
        counts_C = torch.zeros(self.num_units, dtype=torch.float64, device=device)
        inertia = torch.zeros((), dtype=torch.float64, device=device)
        far = _Far(width, device)
        done = 0
        for values_RD, centred_RD in chunks:
            if centred_RD is None:
                centred_RD = (values_RD - self.mean_D).to(self.dtype)
            units_R, scores_R = _nearest(centred_RD, centred_CD, half_norms_C)
            distances_R = (centred_RD.float().square().sum(1) - 2 * scores_R).clamp(min=0.0)
            sums_CD += _sum_by_unit(values_RD, units_R, self.num_units)
            counts_C += torch.bincount(units_R, minlength=self.num_units)
            inertia += distances_R.double().sum()
            far.offer(values_RD, distances_R, draws)
            done += len(values_RD)
            if self.progress is not None:
                self.progress(name, done, num_rows)
        totals = torch.cat([sums_CD.flatten(), counts_C, inertia[None]])
        totals = dist.sum_over_ranks(totals)
        sums_CD, counts_C = totals[: -self.num_units - 1].view_as(sums_CD), totals[-self.num_units - 1 : -1]
        means_CD = (sums_CD / counts_C.clamp(min=1)[:, None]).float() - self.mean_D
        empty = (counts_C == 0).nonzero()[:, 0]
        if len(empty):
            rows_ED = far.best(len(empty))
            # With fewer rows than empty units (all rows lie on centroids) the others stay where they are.
            means_CD[empty] = centroids_CD[empty]
            means_CD[empty[: len(rows_ED)]] = rows_ED - self.mean_D
        self.steps += 1
        self.rows_assigned += int(counts_C.sum())
        return means_CD, float(totals[-1] / counts_C.sum()), len(empty)


class _Far:
    """Rows of a pass, drawn with chances proportional to their squared distances, as homes for empty units."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.keys = torch.zeros(0, device=device)
        self.rows_ED = torch.zeros(0, width, device=device)

    def offer(self, values_RD: Tensor, distances_R: Tensor, draws: torch.Generator) -> None:
        """Take part in the draw: the largest of distance/Exp(1) are a weighted sample without replacement."""
        waits_R = torch.empty_like(distances_R).exponential_(generator=draws).clamp(min=1e-30)
        keys_R, rows_R = (distances_R / waits_R).topk(min(_CANDIDATES, len(distances_R)))
        keys = torch.cat([self.keys, keys_R])
        rows_ED = torch.cat([self.rows_ED, values_RD[rows_R].float()])
        kept = keys.topk(min(_CANDIDATES, len(keys))).indices
        self.keys, self.rows_ED = keys[kept], rows_ED[kept]

    def best(self, wanted: int) -> Tensor:
        """Return up to `wanted` rows, the best of all processes."""
        keys, rows_ED = self.keys, self.rows_ED
        if dist.is_distributed():
            table = torch.zeros(dist.world_size(), _CANDIDATES, 1 + rows_ED.shape[1], device=keys.device)
            table[dist.rank(), : len(keys), 0] = keys
            table[dist.rank(), : len(keys), 1:] = rows_ED
            table = dist.sum_over_ranks(table).flatten(0, 1)
            keys, rows_ED = table[:, 0], table[:, 1:]
        order = keys.topk(min(wanted, len(keys))).indices
        return rows_ED[order[keys[order] > 0]]


def _nearest(values_RD: Tensor, centroids_CD: Tensor, half_norms_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest centroid of each row and its score x·c − ‖c‖²/2, which is (‖x‖² − ‖x − c‖²)/2."""
    if values_RD.dtype == torch.float32:
        best = multiply(values_RD, centroids_CD, -half_norms_C).max(1)
    else:
        best = (values_RD @ centroids_CD.T).float().sub_(half_norms_C).max(1)
    return best.indices, best.values


def _rounded(centroids_CD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return centroids in the precision of the products, and half of the squared norms of just these."""
    rounded_CD = centroids_CD.to(dtype)
    return rounded_CD, rounded_CD.float().square().sum(1) / 2


def _sum_by_unit(values_RD: Tensor, units_R: Tensor, num_units: int) -> Tensor:
    if values_RD.device.type == "cpu":
        return values_RD.new_zeros(num_units, values_RD.shape[1]).index_add_(0, units_R, values_RD)
    # Adding by index has no fixed order there; a product has.
    members_RC = torch.nn.functional.one_hot(units_R, num_units).to(values_RD.dtype)
    return members_RC.T @ values_RD


@dataclass(frozen=True)
class _Fitted:
    """Centroids, and the sample's inertia (a sum), nearest centroids and scores under them."""

    centroids_CD: Tensor
    inertia: float
    units_N: Tensor
    scores_N: Tensor


class _Sample:
    """The first sample, small enough to be gone through a hundred times."""

    def __init__(self, centred_ND: Tensor) -> None:
        self.centred_ND = centred_ND
        self.values_ND = centred_ND.float()
        self.norms_N = self.values_ND.square().sum(1)

    def settle(self, centroids_CD: Tensor, steps: int) -> _Fitted:
        """Return what a few of Lloyd's iterations make of centroids."""
        fitted = self._assigned(centroids_CD)
        for _ in range(steps):
            sums_CD = _sum_by_unit(self.values_ND, fitted.units_N, len(centroids_CD))
            counts_C1 = torch.bincount(fitted.units_N, minlength=len(centroids_CD))[:, None]
            means_CD = torch.where(counts_C1 > 0, sums_CD / counts_C1.clamp(min=1), fitted.centroids_CD)
            fitted = self._assigned(means_CD)
        return fitted

    def _assigned(self, centroids_CD: Tensor) -> _Fitted:
        centred_CD, half_norms_C = _rounded(centroids_CD, self.centred_ND.dtype)
        found = [_nearest(part, centred_CD, half_norms_C) for part in self.centred_ND.split(_CHUNK_ROWS)]
        units_N, scores_N = torch.cat([units for units, _ in found]), torch.cat([scores for _, scores in found])
        return _Fitted(centroids_CD, float((self.norms_N - 2 * scores_N).double().sum()), units_N, scores_N)

    def distances(self, rows_T: Tensor) -> Tensor:
        """Return squared distances of all rows to some of them, T×N."""
        rows_T = rows_T.to(self.norms_N.device)
        products_TN = (self.centred_ND @ self.centred_ND[rows_T].T).T.float()
        distances_TN = (self.norms_N - 2 * products_TN + self.norms_N[rows_T][:, None]).clamp_(min=0.0)
        distances_TN[torch.arange(len(rows_T), device=rows_T.device), rows_T] = 0.0
        return distances_TN

    def seconds(self, fitted: _Fitted) -> tuple[Tensor, Tensor]:
        """Return each row's second nearest centroid, and how much farther it is (squared)."""
        centred_CD, half_norms_C = _rounded(fitted.centroids_CD, self.centred_ND.dtype)
        found = []
        for part, units in zip(self.centred_ND.split(_CHUNK_ROWS), fitted.units_N.split(_CHUNK_ROWS), strict=True):
            scores = (part @ centred_CD.T).float().sub_(half_norms_C).scatter_(1, units[:, None], float("-inf"))
            found.append(scores.max(1))
        seconds_N = torch.cat([best.indices for best in found])
        return seconds_N, 2 * (fitted.scores_N - torch.cat([best.values for best in found])).clamp(min=0.0)


def _plus_plus(sample: _Sample, num_units: int, draws: torch.Generator) -> Tensor:
    """Draw seeds one after the other with chances proportional to squared distances (Arthur and Vassilvitskii 2007), C×D."""
    num_rows = len(sample.norms_N)
    chosen = torch.randint(num_rows, (1,), generator=draws)
    nearest_N = sample.distances(chosen)[0]
    while len(chosen) < num_units:
        # A few rows at once, each drawn by the distances before them: a product with one row is all memory traffic.
        wanted = min(max(len(chosen) // 8, 1), num_units - len(chosen))
        ends_N = nearest_N.double().cumsum(0)
        at = torch.rand(wanted, generator=draws, dtype=torch.float64).to(ends_N) * ends_N[-1]
        rows_T = torch.searchsorted(ends_N, at, right=True).clamp(max=num_rows - 1)
        nearest_N = torch.minimum(sample.distances(rows_T).amin(0), nearest_N)
        chosen = torch.cat([chosen, rows_T.cpu()])
    return sample.values_ND[chosen.to(nearest_N.device)]


def _breathe(sample: _Sample, best: _Fitted, draws: torch.Generator) -> _Fitted:
    """Add centroids where the error is largest, take as many away where they are missed least, keep what is better."""
    num_units, width = best.centroids_CD.shape
    size, failures = max(num_units // 5, 1), 0
    while failures < _BREATHS and size:
        errors_N = sample.norms_N - 2 * best.scores_N
        errors_C = errors_N.new_zeros(num_units).index_add_(0, best.units_N, errors_N)
        counts_C = torch.bincount(best.units_N, minlength=num_units).clamp(min=1)
        worst_S = errors_C.topk(size).indices
        spread_S = (errors_C / counts_C)[worst_S].clamp(min=0.0).sqrt() / math.sqrt(width)
        noise_SD = torch.randn(size, width, generator=draws).to(spread_S)
        beside_SD = best.centroids_CD[worst_S] + 0.1 * spread_S[:, None] * noise_SD
        more = sample.settle(torch.cat([best.centroids_CD, beside_SD]), 2)
        fewer = sample.settle(more.centroids_CD[_most_missed(sample, more, num_units)], 2)
        if fewer.inertia < best.inertia * (1 - 1e-3):
            best = fewer
        else:
            failures, size = failures + 1, size // 2
    return best


def _most_missed(sample: _Sample, fitted: _Fitted, wanted: int) -> Tensor:
    """Return the centroids without which the inertia would rise most; one that stands in for one taken away stays."""
    num_units = len(fitted.centroids_CD)
    seconds_N, losses_N = sample.seconds(fitted)
    losses_C = losses_N.new_zeros(num_units).index_add_(0, fitted.units_N, losses_N)
    pairs = torch.bincount(fitted.units_N * num_units + seconds_N, minlength=num_units * num_units)
    stand_in = pairs.view(num_units, num_units).argmax(1).tolist()
    order = losses_C.argsort().tolist()
    gone: set[int] = set()
    spared: set[int] = set()
    for is_last_resort in (False, True):
        for unit in order:
            if len(gone) < num_units - wanted and (is_last_resort or unit not in spared):
                gone.add(unit)
                spared.add(stand_in[unit])
    return torch.tensor([unit for unit in range(num_units) if unit not in gone], device=losses_C.device)


def _draw_rows(blocks: Sequence[Block], wanted: int, draws: torch.Generator) -> Tensor:
    """Return rows of all blocks, drawn without replacement, in random order, float32."""
    sizes = [len(block) for block in blocks]
    total = sum(sizes)
    if wanted > total // 4:
        rows = torch.randperm(total, generator=draws)[:wanted]
    else:  # a permutation of all rows of a large corpus would not fit
        rows = torch.randint(total, (wanted + wanted // 2 + 64,), generator=draws).unique()
        rows = rows[torch.randperm(len(rows), generator=draws)[:wanted]]
    width = blocks[0].shape[1] if blocks else 0
    sample_ND = torch.empty(len(rows), width)
    ordered, places = rows.sort()
    ends = torch.tensor(sizes).cumsum(0)
    for block, end, size in zip(blocks, ends.tolist(), sizes, strict=True):
        first, last = torch.searchsorted(ordered, torch.tensor([end - size, end])).tolist()
        inside = (ordered[first:last] - (end - size)).numpy()
        values = block[torch.from_numpy(inside)] if isinstance(block, Tensor) else torch.from_numpy(block[inside])
        sample_ND[places[first:last]] = values.float().cpu()
    return sample_ND


def _chunks(blocks: Sequence[Block], device: torch.device) -> Iterator[tuple[Tensor, None]]:
    """Yield all rows, block by block, a few thousand at once."""
    for block in blocks:
        for start in range(0, len(block), _CHUNK_ROWS):
            part = block[start : start + _CHUNK_ROWS]
            values = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
            yield values.to(device).float(), None


def _mean_row(sample_ND: Tensor) -> Tensor:
    """Return the mean row of all processes' samples."""
    widths = [int(width) for width in dist.gather_objects(sample_ND.shape[1])]  # type: ignore[call-overload]
    sums_D = torch.zeros(max(widths) + 1, dtype=torch.float64, device=sample_ND.device)
    if len(sample_ND):
        sums_D[:-1] = sample_ND.double().sum(0)
        sums_D[-1] = len(sample_ND)
    sums_D = dist.sum_over_ranks(sums_D)
    return (sums_D[:-1] / sums_D[-1]).float()


def _share(rows: int, ranks: Sequence[int], wanted: int) -> list[int]:
    """Return how many of so many rows each process gives, in proportion to what it holds of the sample."""
    total = sum(ranks)
    return [max(rows * (wanted * own // total) // wanted, 0) for own in ranks]


def _gathered(mine_RD: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the rows of all processes, the same on each."""
    if not dist.is_distributed():
        return mine_RD
    table = mine_RD.new_zeros(sum(counts), mine_RD.shape[1], dtype=torch.float32)
    first = sum(counts[: dist.rank()])
    table[first : first + len(mine_RD)] = mine_RD.float()
    return dist.sum_over_ranks(table).to(mine_RD.dtype)
