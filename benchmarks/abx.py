"""ABX against a loop over pairs: same tokens, same distances, same error.

    OMP_NUM_THREADS=1 python benchmarks/abx.py

The loop takes each pair of tokens that a cell needs once (no pair twice), its frame angles from one matrix product, and a
dynamic programme over rows and columns; a second ratio counts distances as a loop over cells would, which computes d(a, x)
anew for every other phone. The two are run one after the other, several times, and ratios are per round, in wall time and
in processor time (on a shared machine the steadier of the two).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

import numpy as np

from isogloss.evaluation.abx import AbxItem, abx

RATE = 50


def make(
    num_items: int, width: int, phones: int, speakers: int, seed: int
) -> tuple[list[AbxItem], dict[str, np.ndarray]]:
    """Tokens of 2 to 10 frames (40 to 200 ms at 50 Hz) of random phones, thirty in each utterance."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(phones, width))
    items, features = [], {}
    for u in range(num_items // 30):
        chosen, lengths = rng.integers(phones, size=30), rng.integers(2, 11, size=30)
        noise = rng.normal(size=(int(lengths.sum()), width)) * 3
        features[f"u{u}"] = (np.repeat(means[chosen], lengths, axis=0) + noise).astype(np.float32)
        ends = np.cumsum(lengths)
        for k in range(30):
            onset, offset = float(ends[k] - lengths[k] + 0.25) / RATE, float(ends[k] - 0.25) / RATE
            items.append(AbxItem(f"u{u}", onset, offset, f"p{chosen[k]}", "", "", f"s{u % speakers}"))
    return items, features


def loop_distance(a: np.ndarray, b: np.ndarray) -> float:
    costs = np.arccos(np.clip(a @ b.T, -1, 1)) / math.pi
    num_rows, num_cols = costs.shape
    total = costs.copy()
    total[0] = np.cumsum(costs[0])
    total[:, 0] = np.cumsum(costs[:, 0])
    for i in range(1, num_rows):
        for j in range(1, num_cols):
            total[i, j] += min(total[i - 1, j - 1], total[i, j - 1], total[i - 1, j])
    i, j, steps = num_rows - 1, num_cols - 1, 1
    while i and j:
        diagonal, left, up = total[i - 1, j - 1], total[i, j - 1], total[i - 1, j]
        if diagonal <= min(left, up):
            i, j = i - 1, j - 1
        elif left <= up:
            j -= 1
        else:
            i -= 1
        steps += 1
    return float(total[-1, -1]) / (steps + i + j)


def loop_abx(items: list[AbxItem], features: dict[str, np.ndarray]) -> tuple[float, int, int]:
    """Within speaker, any context, no caps: error, pairs warped, pairs that a loop over cells would warp."""
    errors: dict[tuple[str, str], list[float]] = {}
    pairs = pairs_by_cell = 0
    for who in sorted({item.speaker for item in items}):
        groups: dict[str, list[np.ndarray]] = {}
        for item in items:
            if item.speaker == who:
                first, last = math.ceil(item.onset * RATE - 0.5), math.floor(item.offset * RATE - 0.5)
                values = features[item.id][first : last + 1]
                groups.setdefault(item.phone, []).append(values / np.linalg.norm(values, axis=1, keepdims=True))
        tokens = [(phone, values) for phone in sorted(groups) for values in groups[phone]]
        table = np.full((len(tokens), len(tokens)), np.nan)
        for i, (_, a) in enumerate(tokens):
            for j in range(i):
                table[i, j] = table[j, i] = loop_distance(a, tokens[j][1])
                pairs += 1
        phone_of = np.array([phone for phone, _ in tokens])
        for p in sorted(groups):
            for q in sorted(groups):
                if p == q or len(groups[p]) < 2:
                    continue
                to_a, to_b = table[np.ix_(phone_of == p, phone_of == p)], table[np.ix_(phone_of == q, phone_of == p)]
                hits = (to_a[:, None] < to_b[None]) + 0.5 * (to_a[:, None] == to_b[None])
                ways = len(to_a) * (len(to_a) - 1) * len(to_b)
                errors.setdefault((p, q), []).append(1 - float(hits.sum()) / ways)
                pairs_by_cell += len(to_a) * (len(to_a) - 1) // 2 + to_b.size
    return float(np.mean([np.mean(e) for e in errors.values()])), pairs, pairs_by_cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1200)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    items, features = make(options.items, options.width, phones=20, speakers=2, seed=0)
    print(f"{len(items)} tokens of {options.width} dimensions, 20 phones, 2 speakers, no caps")
    ratios: list[float] = []
    cpu_ratios: list[float] = []
    by_cell: list[float] = []
    abx(items[:300], features, frame_rate_hz=RATE, context="any")  # imports and first allocations
    for _ in range(options.rounds):
        begin, cpu = time.perf_counter(), time.process_time()
        ours = abx(items, features, frame_rate_hz=RATE, context="any", max_tokens=None).error
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
        begin, cpu = time.perf_counter(), time.process_time()
        error, pairs, pairs_by_cell = loop_abx(items, features)
        loop_seconds, loop_cpu = time.perf_counter() - begin, time.process_time() - cpu
        assert abs(ours.value - error) < 1e-4, (ours.value, error)
        ratios.append(loop_seconds / seconds)
        cpu_ratios.append(loop_cpu / cpu_seconds)
        by_cell.append(cpu_ratios[-1] * pairs_by_cell / pairs)
        print(
            f"isogloss {seconds:.2f} s, processor {cpu_seconds:.2f} s (with its interval)   loop {loop_seconds:.2f} s, "
            f"processor {loop_cpu:.2f} s   error {ours.value:.4f} {error:.4f}   {pairs} pairs"
        )
    for name, values in (("wall", ratios), ("processor", cpu_ratios), ("processor, loop over cells", by_cell)):
        print(f"ratio, {name}: median {statistics.median(values):.1f}, least {min(values):.1f}")


if __name__ == "__main__":
    main()
