"""Cuts with alignments, and features that are a linear code of their phones: for the tests of probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from lhotse import MonoCut, SupervisionSegment
from lhotse.supervision import AlignmentItem

from isogloss.evaluation.probes import ProbeSplits

PHONES = ("a", "b", "s", "t")


def make_cut(name: str, items: list[tuple[str, float, float]], speaker: str = "x", kind: str = "gold") -> MonoCut:
    duration = items[-1][1] + items[-1][2]
    alignment = {"phone": [AlignmentItem(*item) for item in items]}
    supervision = SupervisionSegment(name, name, 0.0, duration, speaker=speaker, alignment=alignment)
    return MonoCut(name, 0.0, duration, 0, [supervision], custom={"alignment_kind": kind})


class PlantedSource:
    """Layer 1 holds a noisy linear code of the phone at each frame; layers 0 and 2 are noise."""

    name = "planted"
    layers: tuple[int, ...] = (0, 1, 2)

    def __init__(self, rate: float = 100.0, noise: float = 0.3, width: int = 12) -> None:
        self.frame_rate_hz = rate
        self.first_center_seconds = 0.5 / rate
        self.noise = noise
        self.code = np.random.default_rng(7).normal(size=(len(PHONES) + 1, width))

    def features(self, cut: Any) -> Mapping[int, np.ndarray]:
        rng = np.random.default_rng(sum(map(ord, cut.id)))
        num = round(cut.duration * self.frame_rate_hz)
        at = self.first_center_seconds + np.arange(num) / self.frame_rate_hz
        states = np.full(num, len(PHONES))
        for item in cut.supervisions[0].alignment["phone"]:
            inside = (at >= item.start) & (at < item.start + item.duration)
            states[inside] = PHONES.index(item.symbol) if item.symbol in PHONES else len(PHONES)
        shape = (num, self.code.shape[1])
        return {
            0: rng.normal(size=shape).astype(np.float32),
            1: (self.code[states] + self.noise * rng.normal(size=shape)).astype(np.float16),
            2: rng.normal(size=shape).astype(np.float32) + 3,
        }


def random_cuts(count: int, seed: int, prefix: str) -> list[MonoCut]:
    rng = np.random.default_rng(seed)
    cuts = []
    for number in range(count):
        items, time = [("SIL", 0.0, 0.1)], 0.1
        previous = ""
        for _ in range(6):
            phone = str(rng.choice([p for p in PHONES if p != previous]))
            length = float(rng.integers(12, 20)) / 100
            items.append((phone, round(time, 4), length))
            time += length
            previous = phone
        cuts.append(make_cut(f"{prefix}{number}", items, speaker=f"{prefix}{number % 6}"))
    return cuts


def planted_splits() -> ProbeSplits:
    return ProbeSplits(random_cuts(30, 0, "train"), random_cuts(10, 1, "dev"), random_cuts(12, 2, "test"))
