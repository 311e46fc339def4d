"""APC. Additive: nothing is drawn, and a frame's error is that of its own utterance."""

from __future__ import annotations

from isogloss.encoders.apc import ApcConfig
from objective_cases import Case

TINY = ApcConfig(num_bins=20, width=32, num_layers=2, dropout=0.0)

CASES = {
    "": Case({"name": "apc"}, TINY, {"loss_vs_zero": (1.0, 0.05)}, learns="l1", to=0.9, draws=False),
    "near": Case({"name": "apc", "steps_ahead": 1}, TINY, learns=None, draws=False),
}
