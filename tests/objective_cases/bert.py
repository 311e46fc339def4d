"""BERT. Additive: tokens are hidden and replaced by each text's own seed, and counted."""

from __future__ import annotations

from isogloss.core.vocabulary import Labels
from isogloss.encoders.text import TextConfig
from objective_cases import Case

TEXT = TextConfig(
    labels=Labels(symbols=("a", "b", "c", "d")),
    width=32,
    num_layers=2,
    num_heads=2,
    ffn_width=64,
    max_tokens=16,
    dropout=0.0,
    attention_dropout=0.0,
)

CASES = {
    "": Case({"name": "bert", "mask_probability": 0.5}, TEXT, {}, to=0.5),
    "spans": Case({"name": "bert", "mask_span": 2, "mask_probability": 0.5}, TEXT, learns=None),
}
