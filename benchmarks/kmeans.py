"""k-means against scikit-learn's MiniBatchKMeans, at HuBERT's settings and at scikit-learn's own: times at equal inertia, in pairs.

    python benchmarks/kmeans.py [--pairs 3] [--data CORPUS or ROWS.npy] [--record FILE.jsonl] [--output FILE.md]

Rows are 12 stacked frames of 64 log-mel energies (768 numbers) of the recordings of a corpus, or a matrix that NumPy saved; without
one, draws of a mixture of 2000 Gaussians whose weights and axes fall off slowly. Each pair fits both on the same array, one right
after the other, in turn first, with another seed. Inertia is the mean squared distance of every row to its nearest centroid,
computed for both in the same way, in float32. Where ours ends above theirs, it is fitted again with more effort (`EFFORTS`) until
it does not. Pairs that FILE.jsonl holds are not measured again.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


# Ours with its defaults, then with ever more seedings and passes.
EFFORTS: list[dict[str, int]] = [
    {},
    {"max_passes": 3},
    {"restarts": 4, "max_passes": 3},
    {"restarts": 12, "max_passes": 3},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--units", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--settings", nargs="+", choices=list(THEIRS), default=list(THEIRS))
    parser.add_argument("--data", type=Path, help="a corpus in any accepted form, or a .npy file of rows")
    parser.add_argument("--record", type=Path, help="where pairs are kept as they are measured")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    values_ND: Tensor | None = None
    named = f"{args.rows:,} × {args.units}, {args.data.name if args.data else 'mixture'}, {args.threads} thread(s)"
    done = (
        [json.loads(line) for line in args.record.read_text().splitlines()]
        if args.record and args.record.exists()
        else []
    )
    pairs = []
    for settings in args.settings:
        for seed in range(args.pairs):
            found = [p for p in done if (p["data"], p["settings"], p["seed"]) == (named, settings, seed)]
            if not found:
                values_ND = rows(args.data, args.rows) if values_ND is None else values_ND
                found = [{"data": named, "settings": settings, "seed": seed, **pair(values_ND, args, settings, seed)}]
                print(json.dumps(found[0]), flush=True)
                if args.record:
                    with args.record.open("a", encoding="utf-8") as stream:
                        stream.write(json.dumps(found[0]) + "\n")
            pairs.append(found[0])
    text = table(pairs)
    print(text)
    if args.output:
        what = "the given rows" if args.data else "a mixture of 2000 Gaussians"
        args.output.write_text(
            "# k-means: times as fast as scikit-learn's MiniBatchKMeans\n\n"
            f"`python benchmarks/kmeans.py --pairs {args.pairs}{' --data …' if args.data else ''}` on {machine()}; {args.threads} "
            f"thread(s) on both sides. {args.rows:,} rows ({what}), {args.units} units.\n\n{text}\n",
            encoding="utf-8",
        )


def pair(values_ND: Tensor, args: argparse.Namespace, settings: str, seed: int) -> dict[str, Any]:
    """Fit both, the even seeds theirs first; then ours again, as long as it ends above theirs."""
    fits: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: fit_clusters([values_ND], args.units, seed=seed).centroids_CD,
        "theirs": lambda: scikit(values_ND, args.units, seed, args.threads, THEIRS[settings]),
    }
    found: dict[str, Any] = {}
    for key in ("ours", "theirs") if seed % 2 else ("theirs", "ours"):
        wall, cpu, centroids_CD = timed(fits[key])
        found[key] = {"wall": wall, "cpu": cpu, "inertia": inertia(values_ND, centroids_CD)}
        print(settings, seed, key, found[key], flush=True)
    found["equal"] = {**found["ours"], "effort": EFFORTS[0]}
    for effort in EFFORTS[1:]:
        if found["equal"]["inertia"] > found["theirs"]["inertia"]:
            wall, cpu, centroids_CD = timed(
                lambda effort=effort: fit_clusters([values_ND], args.units, seed=seed, **effort).centroids_CD
            )
            found["equal"] = {"wall": wall, "cpu": cpu, "inertia": inertia(values_ND, centroids_CD), "effort": effort}
    return found


def table(pairs: list[dict[str, Any]]) -> str:
    """Return every pair, and the medians with the smallest and largest."""
    lines = [
        "| against | seed | CPU seconds: ours | theirs | theirs / ours | inertia: ours | theirs | ours / theirs "
        "| ours until no worse than theirs: CPU seconds | theirs / that |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for settings in dict.fromkeys(p["settings"] for p in pairs):
        own = [p for p in pairs if p["settings"] == settings]
        ratios = [
            (p["theirs"]["cpu"] / p["ours"]["cpu"], p["ours"]["inertia"] / p["theirs"]["inertia"], at_equal(p))
            for p in own
        ]
        for p, (times, inertias, equal) in zip(own, ratios, strict=True):
            effort = ", ".join(f"{k}={v}" for k, v in p["equal"]["effort"].items()) or "defaults"
            reached = f"{p['equal']['cpu']:.1f} ({effort}) | {equal:.1f}" if equal else "not reached | —"
            lines.append(
                f"| {settings} | {p['seed']} | {p['ours']['cpu']:.1f} | {p['theirs']['cpu']:.1f} | {times:.1f} "
                f"| {p['ours']['inertia']:.3f} | {p['theirs']['inertia']:.3f} | {inertias:.4f} | {reached} |"
            )
        times, inertias, equals = (list(column) for column in zip(*ratios, strict=True))
        lines.append(
            f"| **{settings}, median (smallest – largest)** | | | | {spread(times)} | | | {spread(inertias, 4)} | | {spread(equals)} |"
        )
    return "\n".join(lines)


def at_equal(found: dict[str, Any]) -> float:
    """Return their time over that of the first of ours that is no worse; 0 where none is."""
    if found["equal"]["inertia"] > found["theirs"]["inertia"]:
        return 0.0
    return float(found["theirs"]["cpu"] / found["equal"]["cpu"])


def rows(data: Path | None, num_rows: int) -> Tensor:
    if data is None:
        return mixture(num_rows)
    if data.suffix == ".npy":
        return torch.from_numpy(np.load(data, allow_pickle=False)[:num_rows])
    return speech(data, num_rows)


def scikit(values_ND: Tensor, num_units: int, seed: int, threads: int, settings: dict) -> Tensor:
    with threadpool_limits(threads):
        fitted = MiniBatchKMeans(num_units, random_state=seed, **settings).fit(values_ND.numpy())
    return torch.from_numpy(fitted.cluster_centers_).float()


def timed(fit: Callable[[], Tensor]) -> tuple[float, float, Tensor]:
    wall, cpu = time.perf_counter(), time.process_time()
    centroids_CD = fit()
    return time.perf_counter() - wall, time.process_time() - cpu, centroids_CD


def spread(ratios: list[float], digits: int = 1) -> str:
    return f"{statistics.median(ratios):.{digits}f} ({min(ratios):.{digits}f} – {max(ratios):.{digits}f})"


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
