"""WavLMModel: the trunk with gated relative positions (transformers has no class for its pretraining heads)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isogloss.core.config import Config
from isogloss.core.keymap import KeyMap, Rule
from isogloss.encoders.wave import GatedRelative, WaveConfig
from isogloss.hub.families._wave import (
    CONTEXT,
    POSITION,
    QUANTIZER,
    TRUNK,
    padding_note,
    read_wave,
    to_foreign,
    to_own,
    wave_extractor,
    write_wave,
)
from isogloss.hub.families.base import Family
from isogloss.hub.names import both

_RELATIVE = [
    *both("encoder.layers.{i}.attention.gru_rel_pos_linear", "layers.{i}.attention.relative.gate"),
    Rule("encoder.layers.{i}.attention.gru_rel_pos_const", "layers.{i}.attention.relative.scale_H"),
    # Layer 0 holds the table of all layers.
    Rule("encoder.layers.0.attention.rel_attn_embed.weight", "relative.weight"),
]


def _read(tree: dict[str, Any], folder: Path) -> WaveConfig:
    relative = {
        "kind": "gated",
        "num_buckets": tree.get("num_buckets", 320),
        "max_distance": tree.get("max_bucket_distance", 800),
    }
    return read_wave(tree, folder, {"relative": relative})


def _write(config: Config) -> dict[str, Any] | None:
    if not isinstance(config, WaveConfig) or config.position != "conv":
        return None
    if not isinstance(config.relative, GatedRelative):
        return None
    sizes = {"num_buckets": config.relative.num_buckets, "max_bucket_distance": config.relative.max_distance}
    return write_wave(config, "wavlm") | sizes


FAMILY = Family(
    model_type="wavlm",
    model_class="WavLMModel",
    prefixes=("wavlm.",),
    keys=KeyMap(TRUNK + POSITION + _RELATIVE),
    heads=KeyMap(QUANTIZER + CONTEXT),
    read_config=_read,
    write_config=_write,
    extractor=wave_extractor,
    to_own=to_own,
    to_foreign=to_foreign,
    padding_note=padding_note,
    beside=("adapter.",),
)
