"""k-means against exhaustive assignment, known clusters, evaluation's Lloyd, and itself in two processes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

import isogloss.targets.clusters as clusters_module
from isogloss.core import dist
from isogloss.core.errors import DataError
from isogloss.evaluation.units import kmeans
from isogloss.targets.clusters import Clusters, fit_clusters


def blobs(num_rows: int, num_blobs: int, width: int = 8, spread: float = 0.05, seed: int = 0) -> torch.Tensor:
    draws = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_blobs, width, generator=draws) + 30.0  # far from the origin, as layers' outputs are
    return centres[torch.randint(num_blobs, (num_rows,), generator=draws)] + spread * torch.randn(
        num_rows, width, generator=draws
    )


def mean_squared_distance(values_ND: torch.Tensor, clusters: Clusters) -> float:
    return float(torch.cdist(values_ND.double(), clusters.centroids_CD.double()).square().amin(1).mean())


def test_known_clusters_are_found_exactly() -> None:
    values_ND = blobs(3000, 20)
    clusters = fit_clusters([values_ND], 20, seed=1)
    assert mean_squared_distance(values_ND, clusters) == pytest.approx(8 * 0.05**2, rel=0.05)
    assert clusters.inertia == pytest.approx(8 * 0.05**2, rel=0.1)
    nearest_N = torch.cdist(values_ND.double(), clusters.centroids_CD.double()).argmin(1)
    assert torch.equal(clusters.assign(values_ND), nearest_N)


def test_no_worse_than_lloyd_on_everything() -> None:
    draws = torch.Generator().manual_seed(3)
    values_ND = torch.randn(6000, 12, generator=draws) @ torch.randn(12, 12, generator=draws)
    exact = kmeans(values_ND, 40, seed=0, iterations=50)
    ours = fit_clusters([values_ND], 40, seed=0)
    assert mean_squared_distance(values_ND, ours) < 1.01 * exact.inertia


def test_blocks_may_be_memory_maps_and_fall_apart_in_any_way(tmp_path: Path) -> None:
    values_ND = blobs(50_000, 30, width=4).half()
    np.save(tmp_path / "part.npy", values_ND[:17_000].numpy())
    mapped = np.load(tmp_path / "part.npy", mmap_mode="r")
    whole = fit_clusters([values_ND.float()], 8, seed=2, restarts=1)
    parts = fit_clusters([mapped, values_ND[17_000:17_000].numpy(), values_ND[17_000:]], 8, seed=2, restarts=1)
    assert whole.passes >= 1, "there are more rows than the sample holds"
    torch.testing.assert_close(parts.centroids_CD, whole.centroids_CD, rtol=1e-4, atol=1e-4)


def test_the_seed_decides_everything() -> None:
    values_ND = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0))
    first, again, other = (fit_clusters([values_ND], 16, seed=seed, restarts=1) for seed in (5, 5, 6))
    assert torch.equal(first.centroids_CD, again.centroids_CD)
    assert not torch.equal(first.centroids_CD, other.centroids_CD)


@pytest.mark.parametrize("has_half", [True, False])
def test_half_precision_is_for_processors_that_have_it(has_half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isogloss.targets.clusters._is_fast_in_half", lambda device: has_half)
    used = set()
    nearest = clusters_module._nearest

    def watched(values_RD: torch.Tensor, *centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        used.add(values_RD.dtype)
        return nearest(values_RD, *centroids)

    monkeypatch.setattr(clusters_module, "_nearest", watched)
    values_ND = torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    fit_clusters([values_ND], 6)
    assert used == {torch.bfloat16 if has_half else torch.float32}


@pytest.mark.parametrize("num_distinct", [1, 3])
def test_fewer_distinct_rows_than_units_leave_finite_centroids(num_distinct: int) -> None:
    values_ND = torch.arange(num_distinct).float()[torch.arange(90) % num_distinct, None].expand(90, 4)
    clusters = fit_clusters([values_ND], 5, restarts=1)
    assert torch.isfinite(clusters.centroids_CD).all()
    assert mean_squared_distance(values_ND, clusters) < 1e-4


def test_too_few_rows_and_rows_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="number of frames, but is 5"):
        fit_clusters([torch.zeros(4, 2)], 5)
    with pytest.raises(DataError, match="number of frames"):
        fit_clusters([], 5)
    values_ND = torch.randn(100, 3)
    values_ND[70, 1] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        fit_clusters([values_ND], 5, restarts=1)


def _fit_on_rank(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "0"}
    torch.set_num_threads(1)
    with dist.process_group(60.0):
        values_ND = blobs(3000, 20)
        mine = values_ND[:1000] if rank == 0 else values_ND[1000:]
        clusters = fit_clusters([mine], 20, seed=1, restarts=1)
        torch.save(clusters.centroids_CD, f"{folder}/{rank}.pt")


@pytest.mark.timeout(120)
def test_two_processes_with_unequal_shares_agree_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
    mp.spawn(_fit_on_rank, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(one, two)
    alone = fit_clusters([blobs(3000, 20)], 20, seed=1, restarts=1).centroids_CD
    # the same clusters, perhaps in another order
    assert float(torch.cdist(one.double(), alone.double()).amin(1).max()) < 0.02
