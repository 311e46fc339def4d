"""Mini-batch k-means on features that need not fit in memory, on CPU or GPU, on one process or many.

Nested mini-batches (arXiv 1602.02934): seeds from a small sample, Lloyd's iterations on a larger one that fits in memory, and a
pass over everything, block by block. Each seed is the best of several rows drawn as k-means++ draws them (Arthur and
Vassilvitskii 2007, section 7). While the sample is small and an iteration costs next to nothing, the centroids that are missed
least move, again and again, to where a seed helps most, which leaves the local minimum that the first seeds lead to. A plain
mini-batch pays for every small step of its centroids with rows. All random draws come from the seed.
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

_CHUNK_ROWS = 4096  # few enough to stay in a cache
_ROWS_PER_UNIT = 256  # of the sample in memory: its centroids lie within a hundredth of a spread of the whole's
_SEED_ROWS_PER_UNIT = (20, 20, 40, 40, 80)  # of the sample of each round of moves
_LEAST_SEED_ROWS = 4096
_MOVED = 0.2  # of the centroids, in the first round; ever fewer in the next
_TRIES = 16  # rows drawn for a seed
_COARSE = 0.05  # of the variance: clusters that leave less are too tight for bfloat16
_MAX_STEPS = 100  # on one sample
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
    restarts: int = 1,
    max_passes: int = 1,
    tolerance: float = 5e-3,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Clusters:
    """Fit `num_units` centroids to the rows of all blocks of all processes.

    Every process gives its own blocks and gets the same centroids; sums go through `core.dist`. Of `restarts` seedings the
    one with the least inertia on the first sample goes on. Iterations on the sample in memory end when the inertia falls by
    less than `tolerance`; so do passes over all rows, after at most `max_passes`. A unit without rows moves to a row drawn with
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
        sample_ND -= fit.mean_D
        first = _share(min(num_rows, max(_SEED_ROWS_PER_UNIT[-1] * num_units, _LEAST_SEED_ROWS)), ranks, wanted)
        # Every process works on the whole of the first sample, and so all do the same.
        seeding_ND = _gathered(sample_ND[: first[dist.rank()]], first)
        slow_in_half = dist.any_rank(not _is_fast_in_half(device), device)
        # Half precision where it is the faster one and tells which centroid is nearest.
        for fit.dtype in (torch.float32,) if slow_in_half else (torch.bfloat16, torch.float32):
            centroids_CD, share_left = fit.seeded(seeding_ND, restarts)
            if share_left > _COARSE:
                break
        centroids_CD, inertia = fit.lloyd(centroids_CD, sample_ND)
        del sample_ND, seeding_ND
        passes = 0
        while passes < max_passes and wanted < num_rows:
            passes += 1
            before = inertia
            centroids_CD, inertia, _ = fit.step(centroids_CD, _chunks(blocks, fit.mean_D), ranks[dist.rank()], "pass")
            if passes > 1 and before - inertia <= tolerance * before:
                break
        if math.isfinite(inertia):
            found_CD = (centroids_CD + fit.mean_D).cpu()
            return Clusters(found_CD, inertia, passes, fit.rows_assigned)
    raise DataError("some features are not finite; usually the encoder diverged: try an earlier checkpoint")


def _is_fast_in_half(device: torch.device) -> bool:
    """Whether products in bfloat16 are the faster ones; without instructions for them a processor takes 2.5 to 4 times as long."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported())


class _Fit:
    """One fit: everything is computed around the mean row, where half precision loses least."""

    def __init__(self, num_units: int, mean_D: Tensor, seed: int, tolerance: float, progress: Progress | None) -> None:
        self.num_units, self.mean_D, self.seed, self.tolerance = num_units, mean_D, seed, tolerance
        self.progress = progress
        self.dtype = torch.float32
        self.rows_assigned = 0
        self.steps = 0

    def seeded(self, sample_ND: Tensor, restarts: int) -> tuple[Tensor, float]:
        """Return the best of several seedings, C×D, and the share of the variance that it leaves."""
        sample = _Sample(sample_ND, self.dtype)
        best: _Fitted | None = None
        for restart in range(restarts):
            if self.progress is not None:
                self.progress("seeding", restart, restarts)
            found = _seeds(sample, self.num_units, generator("kmeans seeds", self.seed, restart))
            if best is None or found.inertia < best.inertia:
                best = found
        assert best is not None
        return best.centroids_CD, best.inertia / max(float(sample.norms_N.double().sum()), 1e-30)

    def lloyd(self, centroids_CD: Tensor, sample_ND: Tensor) -> tuple[Tensor, float]:
        """Iterate on rows in memory until the inertia hardly falls; return centroids and the inertia before the last update."""
        before, name = math.inf, f"{len(sample_ND):,} frames"
        for _ in range(_MAX_STEPS):
            centroids_CD, inertia, num_empty = self.step(
                centroids_CD, sample_ND.split(_CHUNK_ROWS), len(sample_ND), name
            )
            if not num_empty and inertia > (1 - self.tolerance) * before:
                break
            before = inertia
        return centroids_CD, inertia

    def step(
        self, centroids_CD: Tensor, chunks: Iterable[Tensor], num_rows: int, name: str
    ) -> tuple[Tensor, float, int]:
        """Assign all rows and move the centroids to their means; return them, the inertia before it, and the empty units."""
        device, width = centroids_CD.device, centroids_CD.shape[1]
        draws = generator("kmeans empty", self.seed, self.steps, dist.rank(), device=device)
        centred_CD, half_norms_C = _rounded(centroids_CD, self.dtype)
        sums_CD = torch.zeros(self.num_units, width, dtype=torch.float64, device=device)
        counts_C = torch.zeros(self.num_units, dtype=torch.float64, device=device)
        inertia = torch.zeros((), dtype=torch.float64, device=device)
        far = _Far(width, device)
        done = 0
        for values_RD in chunks:
            units_R, scores_R = _nearest(values_RD.to(self.dtype), centred_CD, half_norms_C)
            distances_R = (_squared_norms(values_RD) - 2 * scores_R).clamp(min=0.0)
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
        means_CD = (sums_CD / counts_C.clamp(min=1)[:, None]).float()
        empty = (counts_C == 0).nonzero()[:, 0]
        if len(empty):
            rows_ED = far.best(len(empty))
            # With fewer rows than empty units (all rows lie on centroids) the others stay where they are.
            means_CD[empty] = centroids_CD[empty]
            means_CD[empty[: len(rows_ED)]] = rows_ED
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
    best = _scores(values_RD, centroids_CD, half_norms_C).max(1)
    return best.indices, best.values


def _scores(values_RD: Tensor, centroids_CD: Tensor, half_norms_C: Tensor) -> Tensor:
    if values_RD.dtype == torch.float32:
        return multiply(values_RD, centroids_CD, -half_norms_C)
    return (values_RD @ centroids_CD.T).float().sub_(half_norms_C)


def _rounded(centroids_CD: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return centroids in the precision of the products, and half of the squared norms of just these."""
    rounded_CD = centroids_CD.to(dtype)
    return rounded_CD, rounded_CD.float().square().sum(1) / 2


def _squared_norms(values_ND: Tensor) -> Tensor:
    norms_N: Tensor = torch.linalg.vector_norm(values_ND, dim=1)
    return norms_N.square()


def _sum_by_unit(values_RD: Tensor, units_R: Tensor, num_units: int) -> Tensor:
    if values_RD.device.type == "cpu":
        return values_RD.new_zeros(num_units, values_RD.shape[1]).index_add_(0, units_R, values_RD)
    # Adding by index has no fixed order there; a product has.
    members_RC = torch.nn.functional.one_hot(units_R, num_units).to(values_RD.dtype)
    return members_RC.T @ values_RD


@dataclass(frozen=True)
class _Fitted:
    """Centroids; a sample's inertia under them (a sum); its rows' nearest and second nearest, and how much farther these are."""

    centroids_CD: Tensor
    inertia: float
    errors_N: Tensor
    units_N: Tensor
    seconds_N: Tensor
    losses_N: Tensor


class _Sample:
    """The first sample, small enough to be gone through many times."""

    def __init__(self, values_ND: Tensor, dtype: torch.dtype) -> None:
        self.values_ND = values_ND
        self.rounded_ND = values_ND.to(dtype)
        self.norms_N = _squared_norms(self.rounded_ND.float())

    def head(self, num_rows: int) -> _Sample:
        """Return its first rows."""
        return _Sample(self.values_ND[:num_rows], self.rounded_ND.dtype)

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
        rounded_CD, half_norms_C = _rounded(centroids_CD, self.rounded_ND.dtype)
        found = []
        for part in self.rounded_ND.split(_CHUNK_ROWS):
            scores_RC = _scores(part, rounded_CD, half_norms_C)
            best, units = scores_RC.max(1)
            second, seconds = scores_RC.scatter_(1, units[:, None], -math.inf).max(1)
            found.append((best, units, seconds, 2 * (best - second)))
        scores_N, units_N, seconds_N, losses_N = (torch.cat(column) for column in zip(*found, strict=True))
        errors_N = (self.norms_N - 2 * scores_N).clamp(min=0.0)
        return _Fitted(centroids_CD, float(errors_N.double().sum()), errors_N, units_N, seconds_N, losses_N)

    def seeds(self, nearest_N: Tensor, wanted: int, draws: torch.Generator) -> Tensor:
        """Draw rows one after the other, each the one of several that helps most, S×D; `nearest_N` are squared distances."""
        chosen = torch.zeros(wanted, dtype=torch.int64, device=nearest_N.device)
        for place in range(wanted):
            ends_N = nearest_N.double().cumsum(0)
            at_T = torch.rand(_TRIES, generator=draws, dtype=torch.float64).to(ends_N) * ends_N[-1]
            rows_T = torch.searchsorted(ends_N, at_T, right=True).clamp(max=len(ends_N) - 1)
            distances_TN = (self.rounded_ND[rows_T] @ self.rounded_ND.T).float().mul_(-2)
            distances_TN.add_(self.norms_N).add_(self.norms_N[rows_T][:, None]).clamp_(min=0.0)
            distances_TN = torch.minimum(distances_TN, nearest_N)
            best = distances_TN.sum(1).argmin()
            chosen[place] = rows_T[best]
            nearest_N = distances_TN[best].index_fill(0, rows_T[best], 0.0)
        return self.values_ND[chosen]


def _seeds(sample: _Sample, num_units: int, draws: torch.Generator) -> _Fitted:
    """Return seeds after rounds of moves, each on more rows and with fewer centroids that move."""
    centroids_CD: Tensor | None = None
    for done, per_unit in enumerate(_SEED_ROWS_PER_UNIT):
        part = sample.head(max(per_unit * num_units, _LEAST_SEED_ROWS))
        if centroids_CD is None:
            centroids_CD = part.seeds(part.norms_N, num_units, draws)
        fitted = part.settle(centroids_CD, 2)
        gone = _least_missed(fitted, int(_MOVED * num_units * (1 - done / len(_SEED_ROWS_PER_UNIT))))
        is_gone_C = torch.zeros(num_units, dtype=torch.bool, device=gone.device).index_fill(0, gone, True)
        nearest_N = fitted.errors_N + fitted.losses_N * is_gone_C[fitted.units_N]
        centroids_CD = fitted.centroids_CD.index_copy(0, gone, part.seeds(nearest_N, len(gone), draws))
    assert centroids_CD is not None
    return sample.settle(centroids_CD, 2)


def _least_missed(fitted: _Fitted, wanted: int) -> Tensor:
    """Return the centroids without which the inertia would rise least; one that stands in for one of them is none of them."""
    num_units = len(fitted.centroids_CD)
    losses_C = fitted.losses_N.new_zeros(num_units).index_add_(0, fitted.units_N, fitted.losses_N)
    pairs = torch.bincount(fitted.units_N * num_units + fitted.seconds_N, minlength=num_units * num_units)
    stand_in = pairs.view(num_units, num_units).argmax(1).tolist()
    gone: list[int] = []
    spared: set[int] = set()
    for unit in losses_C.argsort().tolist():
        if len(gone) < wanted and unit not in spared:
            gone.append(unit)
            spared.add(stand_in[unit])
    return torch.tensor(gone, dtype=torch.int64, device=losses_C.device)


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


def _chunks(blocks: Sequence[Block], mean_D: Tensor) -> Iterator[Tensor]:
    """Yield all rows around the mean, block by block, a few thousand at once."""
    for block in blocks:
        for start in range(0, len(block), _CHUNK_ROWS):
            part = block[start : start + _CHUNK_ROWS]
            values = part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
            yield values.to(mean_D.device).float() - mean_D


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
    table = mine_RD.new_zeros(sum(counts), mine_RD.shape[1])
    first = sum(counts[: dist.rank()])
    table[first : first + len(mine_RD)] = mine_RD
    return dist.sum_over_ranks(table)
