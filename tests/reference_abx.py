"""ABX token by token, pair by pair and triplet by triplet, in float64: the definitions and nothing else."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np


def frames(onset: str, offset: str, rate: int) -> list[int]:
    """Frames whose centres (i + ½)Δ lie in [onset, offset], by exact arithmetic on decimal times."""
    on, off, delta = Fraction(onset), Fraction(offset), Fraction(1, rate)
    return [i for i in range(10_000) if on <= (i + Fraction(1, 2)) * delta <= off]


def frame_distance(x: np.ndarray, y: np.ndarray, distance: str) -> float:
    if distance == "euclidean":
        return float(np.sqrt(((x - y) ** 2).sum()))
    norm_x, norm_y = np.linalg.norm(x), np.linalg.norm(y)
    if norm_x == 0 or norm_y == 0:
        return 0.0 if norm_x == norm_y else 1.0
    return math.acos(max(-1.0, min(1.0, float(x @ y) / float(norm_x * norm_y)))) / math.pi


def dtw(costs: np.ndarray) -> float:
    """Mean cost along the cheapest path, by walking back from the end (diagonal first, then left, then up)."""
    num_rows, num_cols = costs.shape
    total = np.full((num_rows + 1, num_cols + 1), np.inf)
    total[0, 0] = 0.0
    for i in range(num_rows):
        for j in range(num_cols):
            total[i + 1, j + 1] = costs[i, j] + min(total[i, j], total[i + 1, j], total[i, j + 1])
    i, j, steps = num_rows - 1, num_cols - 1, 1
    while (i, j) != (0, 0):
        diagonal, left, up = total[i, j], total[i + 1, j], total[i, j + 1]
        if i and j and diagonal <= min(left, up):
            i, j = i - 1, j - 1
        elif j and (not i or left <= up):
            j -= 1
        else:
            i -= 1
        steps += 1
    return float(total[num_rows, num_cols]) / steps


def token_distance(a: np.ndarray, b: np.ndarray, distance: str) -> float:
    if len(a) > len(b):
        a, b = b, a
    return dtw(np.array([[frame_distance(x, y, distance) for y in b] for x in a]))


def abx_cells(
    tokens: Sequence[Any], frames_of: Sequence[np.ndarray], *, speaker: str, context: str, distance: str
) -> dict[tuple[str, ...], tuple[float, int]]:
    """(phone a, phone b, context, speaker, speaker x) → (error, triplets); distances anew for every triplet."""
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, token in enumerate(tokens):
        where = (token.prev, token.next) if context != "any" else ("*", "*")
        groups[token.phone, where, token.speaker].append(index)
    cells = {}
    for (phone_a, where, who), group_a in groups.items():
        for (phone_b, where_b, who_b), group_b in groups.items():
            if phone_b == phone_a or where_b != where or who_b != who:
                continue
            for (phone_x, where_x, who_x), group_x in groups.items():
                if phone_x != phone_a or where_x != where or (who_x == who) != (speaker == "within"):
                    continue
                score, count = 0.0, 0
                for a in group_a:
                    for x in group_x:
                        if a == x:
                            continue
                        to_a = token_distance(frames_of[a], frames_of[x], distance)
                        for b in group_b:
                            to_b = token_distance(frames_of[b], frames_of[x], distance)
                            score += 1.0 if to_a < to_b else 0.5 if to_a == to_b else 0.0
                            count += 1
                if count:
                    cells[phone_a, phone_b, *where, who, who_x] = (1 - score / count, count)
    return cells


def collapse(cells: Mapping[tuple[str, ...], tuple[float, int]]) -> float:
    """Mean over contexts, then over speakers (pairs of them across), then over phone pairs."""
    by_speaker: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for (phone_a, phone_b, _, _, who, who_x), (error, _) in cells.items():
        by_speaker[phone_a, phone_b, who, who_x].append(error)
    by_pair: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for (phone_a, phone_b, _, _), errors in by_speaker.items():
        by_pair[phone_a, phone_b].append(float(np.mean(errors)))
    return float(np.mean([np.mean(errors) for errors in by_pair.values()]))
