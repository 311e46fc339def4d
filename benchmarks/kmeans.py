"""k-means against scikit-learn's MiniBatchKMeans, at HuBERT's settings and at scikit-learn's own: times and inertia, in pairs.

    python benchmarks/kmeans.py [--pairs 3] [--data CORPUS] [--output benchmarks/results/kmeans.md]

Rows are 12 stacked frames of 64 log-mel energies (768 numbers) of the recordings of a corpus; without one, draws of a mixture of
2000 Gaussians whose weights and axes fall off slowly. Each pair fits both on the same array, one right after the other, in turn first.
Inertia is the mean squared distance of every row to its nearest centroid, computed for both in the same way, in float32.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn
import torch
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from isogloss.targets.clusters import fit_clusters

# fairseq's examples/hubert/simple_kmeans, as published for HuBERT, but for `compute_labels`, which nobody needs there.
HUBERT = {"batch_size": 10_000, "max_iter": 100, "max_no_improvement": 100, "n_init": 20, "reassignment_ratio": 0.0}
THEIRS = {"HuBERT's settings": HUBERT | {"tol": 0.0, "compute_labels": False}, "scikit-learn's defaults": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--units", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--settings", nargs="+", choices=list(THEIRS), default=list(THEIRS))
    parser.add_argument("--data", type=Path, help="a corpus in any accepted form")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    values_ND = speech(args.data, args.rows) if args.data else mixture(args.rows)
    lines = [
        "| against | wall seconds: ours | theirs | theirs / ours: median (smallest – largest) | CPU seconds: ours | theirs "
        "| theirs / ours: median (smallest – largest) | inertia: ours | theirs | ours / theirs |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in args.settings:
        rows = []
        for pair in range(args.pairs):
            fits: dict[str, Callable[[], Tensor]] = {
                "ours": lambda pair=pair: fit_clusters([values_ND], args.units, seed=pair).centroids_CD,
                "theirs": lambda pair=pair, name=name: scikit(values_ND, args.units, pair, args.threads, THEIRS[name]),
            }
            found = {key: timed(fits[key]) for key in (("ours", "theirs") if pair % 2 else ("theirs", "ours"))}
            row = [*found["ours"][:2], *found["theirs"][:2]]
            row += [inertia(values_ND, found["ours"][2]), inertia(values_ND, found["theirs"][2])]
            rows.append(row)
            print(name, pair, " ".join(f"{value:.3f}" for value in row), flush=True)
        wall, cpu = [r[2] / r[0] for r in rows], [r[3] / r[1] for r in rows]
        m = [statistics.median(column) for column in zip(*rows, strict=True)]
        ratio = statistics.median(r[4] / r[5] for r in rows)
        lines.append(
            f"| {name} | {m[0]:.1f} | {m[2]:.1f} | {spread(wall)} | {m[1]:.1f} | {m[3]:.1f} | {spread(cpu)} "
            f"| {m[4]:.4f} | {m[5]:.4f} | {ratio:.4f} |"
        )
    table = "\n".join(lines)
    print(table)
    if args.output:
        what = "12 stacked frames of 64 log-mel energies of real speech" if args.data else "a mixture of 2000 Gaussians"
        data = " --data CORPUS" if args.data else ""
        args.output.write_text(
            "# k-means: times as fast as scikit-learn's MiniBatchKMeans\n\n"
            f"`python benchmarks/kmeans.py --pairs {args.pairs}{data}` on {machine()}; {args.threads} thread(s) on both "
            f"sides, other work on the machine (CPU time counts only this process). {args.rows:,} × {values_ND.shape[1]} "
            f"float32 ({what}), {args.units} units, {args.pairs} interleaved pairs; ours with "
            f"its defaults (one seeding, one pass over everything).\n\n{table}\n",
            encoding="utf-8",
        )


def scikit(values_ND: Tensor, num_units: int, seed: int, threads: int, settings: dict) -> Tensor:
    with threadpool_limits(threads):
        fitted = MiniBatchKMeans(num_units, random_state=seed, **settings).fit(values_ND.numpy())
    return torch.from_numpy(fitted.cluster_centers_).float()


def timed(fit: Callable[[], Tensor]) -> tuple[float, float, Tensor]:
    wall, cpu = time.perf_counter(), time.process_time()
    centroids_CD = fit()
    return time.perf_counter() - wall, time.process_time() - cpu, centroids_CD


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} – {max(ratios):.1f})"


def inertia(values_ND: Tensor, centroids_CD: Tensor) -> float:
    total, norms_C = 0.0, centroids_CD.square().sum(1)
    for part in values_ND.split(1 << 14):
        nearest = (norms_C - 2 * part @ centroids_CD.T).argmin(1)
        total += float((part - centroids_CD[nearest]).square().sum(1).double().sum())
    return total / len(values_ND)


def mixture(num_rows: int, width: int = 768) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    scale_D = 1 / torch.sqrt(1 + torch.arange(width) / 20.0)
    centres_MD = torch.randn(2000, width, generator=draws) * scale_D
    weights_M = 1 / (torch.arange(2000) + 20.0)
    turn_DD = torch.linalg.qr(torch.randn(width, width, generator=draws))[0]
    parts_N = torch.multinomial(weights_M, num_rows, replacement=True, generator=draws)
    values_ND = torch.empty(num_rows, width)
    for part, values in zip(parts_N.split(50_000), values_ND.split(50_000), strict=True):
        values.copy_((centres_MD[part] + 0.8 * scale_D * torch.randn(len(part), width, generator=draws)) @ turn_DD)
    return values_ND


def speech(corpus: Path, num_rows: int) -> Tensor:
    from isogloss.data.audio import read_audio
    from isogloss.data.inputs import open_corpus
    from isogloss.nn.filterbank import log_mel

    values_ND, done = torch.empty(num_rows, 12 * 64), 0
    for cut in open_corpus(corpus):
        frames = log_mel(torch.from_numpy(read_audio(cut)), 64)
        if len(frames) >= 12:
            stacked = frames.unfold(0, 12, 1).transpose(1, 2).flatten(1)[: num_rows - done]
            values_ND[done : done + len(stacked)] = stacked
            done += len(stacked)
        if done == num_rows:
            return values_ND
    raise SystemExit(f"{corpus} has {done:,} frames, {num_rows:,} are wanted; give more speech or fewer --rows")


def machine() -> str:
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    versions = f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, numpy {np.__version__}"
    return f"{model} ({torch.backends.cpu.get_cpu_capability()}), {versions}"


if __name__ == "__main__":
    main()
