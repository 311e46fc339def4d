"""What the families of the wave transformer share: names, sizes and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isogloss.core.config import Config, parse
from isogloss.core.errors import CheckpointError, ConfigError
from isogloss.core.keymap import KeyMap, Rule
from isogloss.encoders.wave import WaveConfig
from isogloss.hub.families.base import WAVE_EXTRACTOR, read_json
from isogloss.hub.names import both, own_to_plain, plain_to_own

# Wav2Vec2Model, HubertModel, UniSpeechModel, UniSpeechSatModel: the same names in all four.
TRUNK = [
    Rule("masked_spec_embed", "mask_embedding_D"),
    *both("feature_extractor.conv_layers.{i}.conv", "convolutions.convs.{i}"),
    *both("feature_extractor.conv_layers.{i}.layer_norm", "convolutions.norms.{i}"),
    *both("feature_projection.layer_norm", "latent_norm"),
    *both("feature_projection.projection", "projection"),
    *both("encoder.layer_norm", "norm"),
    *both("encoder.layers.{i}.attention.q_proj", "layers.{i}.attention.q"),
    *both("encoder.layers.{i}.attention.k_proj", "layers.{i}.attention.k"),
    *both("encoder.layers.{i}.attention.v_proj", "layers.{i}.attention.v"),
    *both("encoder.layers.{i}.attention.out_proj", "layers.{i}.attention.out"),
    *both("encoder.layers.{i}.layer_norm", "layers.{i}.attention_norm"),
    *both("encoder.layers.{i}.feed_forward.intermediate_dense", "layers.{i}.ffn.up"),
    *both("encoder.layers.{i}.feed_forward.output_dense", "layers.{i}.ffn.down"),
    *both("encoder.layers.{i}.final_layer_norm", "layers.{i}.ffn_norm"),
]
POSITION = [
    Rule("encoder.pos_conv_embed.conv.bias", "position.bias"),
    # Written since torch 2.0's parametrized weight norm …
    Rule("encoder.pos_conv_embed.conv.parametrizations.weight.original0", "position.gain_K"),
    Rule("encoder.pos_conv_embed.conv.parametrizations.weight.original1", "position.direction"),
    # … and before.
    Rule("encoder.pos_conv_embed.conv.weight_g", "position.gain_K"),
    Rule("encoder.pos_conv_embed.conv.weight_v", "position.direction"),
]
KEYS = KeyMap(TRUNK + POSITION)
QUANTIZER = [
    Rule("quantizer.codevectors", "quantizer.codebook"),
    *both("quantizer.weight_proj", "quantizer.logits"),
    *both("project_q", "project_targets"),
]
CONTEXT = both("project_hid", "project_context")

_REQUIRED = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
    "adapter_attn_dim": None,
    "feat_proj_layer_norm": True,
    "conv_pos_batch_norm": False,
}
_NAMES = {
    "conv_channels": "conv_dim",
    "conv_kernels": "conv_kernel",
    "conv_strides": "conv_stride",
    "conv_bias": "conv_bias",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
    "norm_first": "do_stable_layer_norm",
    "position_kernel": "num_conv_pos_embeddings",
    "position_groups": "num_conv_pos_embedding_groups",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "input_dropout": "feat_proj_dropout",
    "layerdrop": "layerdrop",
    "layer_norm_eps": "layer_norm_eps",
}
_DEFAULTS = {"activation_dropout": 0.1, "input_dropout": 0.0, "layerdrop": 0.1}  # of transformers' classes


def wave_config(tree: dict[str, Any], folder: Path) -> WaveConfig:
    """Translate `config.json` (and what the feature extractor beside it says about normalisation)."""
    return read_wave(tree, folder, {})


def read_wave(tree: dict[str, Any], folder: Path, fixed: Mapping[str, Any]) -> WaveConfig:
    """Translate the same with what another family adds (`fixed`, by our names)."""
    for key, value in _REQUIRED.items():
        if tree.get(key, value) != value:
            raise CheckpointError(
                f"{folder}: `{key}` is {tree[key]!r}, and only {value!r} is supported: another value makes another network"
            )
    conv_norm = fixed.get("conv_norm", tree.get("feat_extract_norm", "group"))
    normalizes = conv_norm == "layer"
    if (folder / "preprocessor_config.json").exists():
        extractor = read_json(folder / "preprocessor_config.json")
        normalizes = extractor.get("do_normalize", normalizes)
        if extractor.get("sampling_rate", 16_000) != 16_000:
            raise CheckpointError(
                f"{folder}: the model expects {extractor['sampling_rate']!r} samples a second, and only 16000 are supported"
            )
    fields = {own: tree[foreign] for own, foreign in _NAMES.items() if foreign in tree}
    # Not in the file; as published: 0.1 for the group-norm models, 1 for the others.
    fields |= {"conv_norm": conv_norm, "feature_gradient_scale": 0.1 if conv_norm == "group" else 1.0}
    fields |= {"normalize_waveform": normalizes, **fixed}
    try:
        return parse(WaveConfig, _DEFAULTS | fields, str(folder / "config.json"))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def write_wave(config: WaveConfig, model_type: str) -> dict[str, Any]:
    """Write the sizes as `config.json` has them."""
    return {
        "model_type": model_type,
        "dtype": "float32",
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "feat_extract_norm": config.conv_norm,
        "num_feat_extract_layers": len(config.conv_channels),
        "mask_time_prob": 0.05,  # above 0, so that transformers has a place for the mask embedding
    } | {foreign: getattr(config, own) for own, foreign in _NAMES.items()}


def write_trunk(model_type: str, config: Config) -> dict[str, Any] | None:
    """Write `config.json` of one of the four classes that are the trunk itself."""
    if not isinstance(config, WaveConfig) or config.position != "conv" or config.relative is not None:
        return None
    return write_wave(config, model_type)


def to_own(plain: Mapping[str, Tensor], config: WaveConfig, notes: list[str]) -> dict[str, Tensor]:
    """Bring a trunk's tensors to our shapes."""
    plain = dict(plain)
    if config.conv_norm == "group" and plain.pop("convolutions.convs.0.bias", None) is not None:
        notes.append("the bias of the first convolution was left out: the group norm that follows removes it")
    return plain_to_own(plain)


def to_foreign(own: Mapping[str, Tensor], config: WaveConfig, notes: list[str]) -> dict[str, Tensor]:
    """Bring our tensors to a trunk's shapes."""
    plain = own_to_plain(own)
    if config.conv_norm == "group" and config.conv_bias:
        # transformers has a bias there, which its group norm removes.
        plain["convolutions.convs.0.bias"] = torch.zeros(config.conv_channels[0])
    if not config.qkv_bias:
        names = [f"layers.{i}.attention.{part}.bias" for i in range(config.num_layers) for part in "qkv"]
        plain |= {name: torch.zeros(config.width) for name in names}
    return plain


def wave_extractor(config: WaveConfig) -> dict[str, Any]:
    """Return `preprocessor_config.json`."""
    return WAVE_EXTRACTOR | {
        "do_normalize": config.normalize_waveform,
        "return_attention_mask": config.conv_norm == "layer",
    }


def quantizer_sizes(heads: Mapping[str, Tensor], objective_tree: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a product quantizer and its projections."""
    codebook = heads["quantizer.codevectors"]
    groups = heads["project_q.weight"].shape[1] // codebook.shape[-1]
    return {
        "num_codevector_groups": groups,
        "num_codevectors_per_group": codebook.shape[1] // groups,
        "codevector_dim": heads["project_q.weight"].shape[1],
        "proj_codevector_dim": heads["project_q.weight"].shape[0],
    }


def padding_note(config: WaveConfig) -> str:
    """Tell users of transformers what padding does to such a model."""
    if config.conv_norm == "group":
        return (
            "This model's first convolution has a group norm, whose statistics run over time. transformers computes them over the\n"
            "padding too, so encode one recording at a time there; isogloss itself gives the same result in batches of any lengths."
        )
    return "Give each whole recording at zero mean and unit variance; the feature extractor does so."
