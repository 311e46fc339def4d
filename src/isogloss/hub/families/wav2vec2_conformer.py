"""Wav2Vec2ConformerModel: the trunk's convolutions, then Conformer blocks with relative, rotary or no positions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isogloss.core.config import Config, parse
from isogloss.core.errors import CheckpointError, ConfigError
from isogloss.core.keymap import KeyMap, Rule
from isogloss.encoders.wave_conformer import WaveConformerConfig
from isogloss.hub.families import _conformer
from isogloss.hub.families._wave import CONTEXT, POSITION, QUANTIZER, quantizer_sizes
from isogloss.hub.families.base import WAVE_EXTRACTOR, Family, HeadClass, read_json
from isogloss.hub.names import both

_NORM = "encoder.layers.{i}.conv_module.batch_norm"
_KEYS = KeyMap(
    [
        Rule("masked_spec_embed", "mask_embedding_D"),
        *both("feature_extractor.conv_layers.{i}.conv", "convolutions.convs.{i}"),
        *both("feature_extractor.conv_layers.{i}.layer_norm", "convolutions.norms.{i}"),
        *both("feature_projection.layer_norm", "latent_norm"),
        *both("feature_projection.projection", "projection"),
        *_conformer.BLOCK,
        *(
            Rule(f"{_NORM}.{part}", f"layers.{{i}}.conv.norm.{part}")
            for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ),
        *both("encoder.layer_norm", "norm"),
        Rule("encoder.embed_positions.inv_freq", "rotary_rates"),
        *(Rule(rule.foreign, f"unused_{rule.own}") for rule in POSITION),
    ]
)
_CONVOLUTIONS = {
    "conv_channels": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "conv_features_norm": "feat_extract_norm",
}
# Of transformers' class; what is not written in a file has these values.
_DEFAULTS: dict[str, Any] = {
    "width": 768,
    "num_layers": 12,
    "num_heads": 12,
    "ffn_width": 3072,
    "activation_dropout": 0.1,
    "layerdrop": 0.1,
    "conv_bias": False,
    "conv_features_norm": "group",
}


def _read(tree: dict[str, Any], folder: Path) -> WaveConformerConfig:
    for key, value in {"feat_extract_activation": "gelu", "layer_norm_eps": 1e-5}.items():
        if tree.get(key, value) != value:
            raise CheckpointError(f"{folder}: `{key}` is {tree[key]!r}, and only {value!r} is supported")
    fields = _conformer.read_blocks(tree, folder, default_activation="gelu", default_positions="relative")
    fields |= {own: tree[foreign] for own, foreign in _CONVOLUTIONS.items() if foreign in tree}
    normalizes = fields.get("conv_features_norm") == "layer"
    if (folder / "preprocessor_config.json").exists():
        extractor = read_json(folder / "preprocessor_config.json")
        normalizes = extractor.get("do_normalize", normalizes)
        if extractor.get("sampling_rate", 16_000) != 16_000:
            raise CheckpointError(
                f"{folder}: the model expects {extractor['sampling_rate']!r} samples a second, and only 16000 are supported"
            )
    try:
        return parse(
            WaveConformerConfig, _DEFAULTS | fields | {"normalize_waveform": normalizes}, str(folder / "config.json")
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _write(config: Config) -> dict[str, Any] | None:
    if not isinstance(config, WaveConformerConfig):
        return None
    fits = config.conv_norm == "batch" and not config.causal_convolution and config.final_norm
    if not fits or config.positions == "relative_key" or config.layer_norm_eps != 1e-5:
        return None
    return (
        {"model_type": "wav2vec2-conformer", "feat_extract_activation": "gelu"}
        | _conformer.write_blocks(config)
        | {foreign: getattr(config, own) for own, foreign in _CONVOLUTIONS.items()}
        # transformers builds a positional convolution that it never uses: the smallest that there is.
        | {"num_conv_pos_embeddings": 1, "num_conv_pos_embedding_groups": config.width}
    )


def _to_own(plain: Mapping[str, Tensor], config: WaveConformerConfig, notes: list[str]) -> dict[str, Tensor]:
    used = {name: tensor for name, tensor in plain.items() if not name.startswith("unused_") and name != "rotary_rates"}
    if any(name.startswith("unused_") for name in plain):
        notes.append("the positional convolution was left out: no class of transformers uses it")
    if config.conv_features_norm == "group" and used.pop("convolutions.convs.0.bias", None) is not None:
        notes.append("the bias of the first convolution was left out: the group norm that follows removes it")
    return _conformer.to_own(used)


def _to_foreign(own: Mapping[str, Tensor], config: WaveConformerConfig, notes: list[str]) -> dict[str, Tensor]:
    plain = _conformer.to_foreign(own)
    if config.conv_features_norm == "group" and config.conv_bias:
        plain["convolutions.convs.0.bias"] = torch.zeros(config.conv_channels[0])
    plain |= {
        "unused_position.bias": torch.zeros(config.width),
        "unused_position.gain_K": torch.ones(1, 1, 1),
        "unused_position.direction": torch.ones(config.width, 1, 1),
    }
    if config.positions == "rotary":
        head_width = config.width // config.num_heads
        plain["rotary_rates"] = 10_000.0 ** -(torch.arange(0, head_width, 2, dtype=torch.float32) / head_width)
    return plain


def _extractor(config: WaveConformerConfig) -> dict[str, Any]:
    return WAVE_EXTRACTOR | {"do_normalize": config.normalize_waveform, "return_attention_mask": True}


def _padding_note(config: WaveConformerConfig) -> str:
    return (
        "The convolutions and batch norms of this class see padding in transformers, so encode one recording at a time there;\n"
        "isogloss itself gives the same result in batches of any lengths."
    )


FAMILY = Family(
    model_type="wav2vec2-conformer",
    model_class="Wav2Vec2ConformerModel",
    prefixes=("wav2vec2_conformer.",),
    keys=_KEYS,
    heads=KeyMap(QUANTIZER + CONTEXT),
    head_classes=(HeadClass("Wav2Vec2ConformerForPreTraining", frozenset({"wav2vec2"}), quantizer_sizes),),
    read_config=_read,
    write_config=_write,
    extractor=_extractor,
    to_own=_to_own,
    to_foreign=_to_foreign,
    padding_note=_padding_note,
    beside=("adapter.",),
)
