"""TERA. Additive: spans, bands and noise come from each utterance's seed."""

from __future__ import annotations

from objective_cases import Case
from objective_cases.mockingjay import STACKED, TINY

SMALL = {"name": "tera"}

CASES = {
    "": Case(SMALL, TINY, {"loss_vs_zero": (1.0, 0.05)}, learns="l1", to=0.8),
    "noisy": Case(
        SMALL | {"noise_probability": 1.0, "max_band": 0.0}, STACKED, {"loss_vs_zero": (1.0, 0.05)}, learns=None
    ),
}
