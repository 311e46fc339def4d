"""Data2VecAudioModel: layer norms in the convolutions, norms last, a stack of convolutions for positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isogloss.core.config import Config
from isogloss.core.keymap import KeyMap, Rule
from isogloss.encoders.wave import WaveConfig
from isogloss.hub.families._wave import (
    TRUNK,
    padding_note,
    read_wave,
    to_foreign,
    to_own,
    wave_extractor,
    write_wave,
)
from isogloss.hub.families.base import Family

_POSITION = [
    Rule("encoder.pos_conv_embed.layers.{i}.conv.weight", "position.weights.{i}"),
    Rule("encoder.pos_conv_embed.layers.{i}.conv.bias", "position.biases.{i}"),
]


def _read(tree: dict[str, Any], folder: Path) -> WaveConfig:
    fixed = {
        "conv_norm": "layer",
        "norm_first": False,
        "position": "conv_stack",
        "position_kernel": tree.get("conv_pos_kernel_size", 19),
        "position_layers": tree.get("num_conv_pos_embeddings", 5),
    }
    return read_wave(tree, folder, fixed)


def _write(config: Config) -> dict[str, Any] | None:
    if not isinstance(config, WaveConfig) or config.position != "conv_stack" or config.relative is not None:
        return None
    if config.norm_first or config.conv_norm != "layer" or config.position_kernel % 2 == 0:
        return None
    sizes = {"conv_pos_kernel_size": config.position_kernel, "num_conv_pos_embeddings": config.position_layers}
    return write_wave(config, "data2vec-audio") | sizes


FAMILY = Family(
    model_type="data2vec-audio",
    model_class="Data2VecAudioModel",
    prefixes=("data2vec_audio.",),
    keys=KeyMap(TRUNK + _POSITION),
    read_config=_read,
    write_config=_write,
    extractor=wave_extractor,
    to_own=to_own,
    to_foreign=to_foreign,
    padding_note=padding_note,
    beside=("adapter.",),
)
