"""Metrics by their definitions: recursion and loops over thresholds, trials and classes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np


def edit_distance(reference: Sequence[Any], hypothesis: Sequence[Any]) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        same = reference[i - 1] == hypothesis[j - 1]
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (not same))

    return distance(len(reference), len(hypothesis))


def rates_at(scores: Sequence[float], targets: Sequence[bool], threshold: float) -> tuple[float, float]:
    """Miss and false-alarm rate of accepting scores above the threshold."""
    miss = [s <= threshold for s, t in zip(scores, targets, strict=True) if t]
    false_alarm = [s > threshold for s, t in zip(scores, targets, strict=True) if not t]
    return sum(miss) / len(miss), sum(false_alarm) / len(false_alarm)


def equal_error_rate(scores: Sequence[float], targets: Sequence[bool]) -> float:
    points = [rates_at(scores, targets, t) for t in [-np.inf, *sorted(set(scores))]]
    for (miss_a, fa_a), (miss_b, fa_b) in itertools.pairwise(points):
        if miss_b >= fa_b:
            gap_a, gap_b = miss_a - fa_a, miss_b - fa_b
            return miss_a + (miss_b - miss_a) * -gap_a / (gap_b - gap_a)
    raise AssertionError


def min_dcf(scores: Sequence[float], targets: Sequence[bool], p: float) -> float:
    points = [rates_at(scores, targets, t) for t in [-np.inf, *sorted(set(scores))]]
    return min(p * miss + (1 - p) * fa for miss, fa in points) / min(p, 1 - p)


def cavg(languages: Sequence[int], llr: np.ndarray, p: float) -> float:
    threshold = np.log((1 - p) / p)
    present = sorted(set(languages))
    cost = 0.0
    for t in present:
        own = [llr[i, t] <= threshold for i, n in enumerate(languages) if n == t]
        cost += p * float(np.mean(own))
        for n in present:
            if n != t:
                others = [llr[i, t] > threshold for i, m in enumerate(languages) if m == n]
                cost += (1 - p) / (len(present) - 1) * float(np.mean(others))
    return cost / len(present)


def macro_f1(references: Sequence[Any], hypotheses: Sequence[Any]) -> float:
    scores = []
    for c in set(references) | set(hypotheses):
        hits = sum(r == h == c for r, h in zip(references, hypotheses, strict=True))
        precision = hits / max(sum(h == c for h in hypotheses), 1)
        recall = hits / max(sum(r == c for r in references), 1)
        scores.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return float(np.mean(scores))
