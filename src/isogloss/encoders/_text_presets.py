"""BERT's published sizes, and small ones of ours."""

from __future__ import annotations

from isogloss.encoders.text import TextConfig

PRESETS: dict[str, TextConfig] = {
    "bert-base": TextConfig(),
    "bert-large": TextConfig(width=1024, num_layers=24, num_heads=16, ffn_width=4096),
    "text-tiny": TextConfig(width=64, num_layers=2, num_heads=4, ffn_width=128, max_tokens=256),
    "text-small": TextConfig(width=192, num_layers=4, num_heads=4, ffn_width=768, max_tokens=256),
}
