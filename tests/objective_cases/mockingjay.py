"""Mockingjay. Additive: spans and what replaces them come from the utterance itself."""

from __future__ import annotations

from isogloss.encoders.mel import MelConfig
from objective_cases import Case

TINY = MelConfig(num_bins=20, width=32, num_layers=2, num_heads=2, ffn_width=64, dropout=0.0, attention_dropout=0.0)
STACKED = TINY.model_copy(update={"stack": 3, "num_deltas": 1})
SMALL = {"name": "mockingjay"}

CASES = {
    "": Case(SMALL, TINY, {"loss_vs_zero": (1.0, 0.05), "masked_fraction": (0.13, 0.03)}, learns="l1", to=0.8),
    "2019": Case(SMALL | {"mask_span": 1, "decide": "span"}, STACKED, {"loss_vs_zero": (1.0, 0.05)}, learns=None),
}
