"""What the Conformer families share: names, sizes and shapes of a block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isogloss.core.errors import CheckpointError
from isogloss.core.keymap import Rule
from isogloss.encoders._conformer import BlockConfig
from isogloss.hub.names import both, own_to_plain, plain_to_own

_BLOCK, _OWN = "encoder.layers.{i}", "layers.{i}"
BLOCK = [
    *both(f"{_BLOCK}.ffn1_layer_norm", f"{_OWN}.ffn1_norm"),
    *both(f"{_BLOCK}.ffn1.intermediate_dense", f"{_OWN}.ffn1.up"),
    *both(f"{_BLOCK}.ffn1.output_dense", f"{_OWN}.ffn1.down"),
    *both(f"{_BLOCK}.self_attn_layer_norm", f"{_OWN}.attention_norm"),
    *both(f"{_BLOCK}.self_attn.linear_q", f"{_OWN}.attention.q"),
    *both(f"{_BLOCK}.self_attn.linear_k", f"{_OWN}.attention.k"),
    *both(f"{_BLOCK}.self_attn.linear_v", f"{_OWN}.attention.v"),
    *both(f"{_BLOCK}.self_attn.linear_out", f"{_OWN}.attention.out"),
    Rule(f"{_BLOCK}.self_attn.linear_pos.weight", f"{_OWN}.attention.distance.weight"),
    Rule(f"{_BLOCK}.self_attn.pos_bias_u", f"{_OWN}.attention.content_bias_Hd"),
    Rule(f"{_BLOCK}.self_attn.pos_bias_v", f"{_OWN}.attention.distance_bias_Hd"),
    Rule(f"{_BLOCK}.self_attn.distance_embedding.weight", f"{_OWN}.attention.distance_keys_Pd"),
    *both(f"{_BLOCK}.conv_module.layer_norm", f"{_OWN}.conv.input_norm"),
    Rule(f"{_BLOCK}.conv_module.pointwise_conv1.weight", f"{_OWN}.conv.expand.weight"),
    Rule(f"{_BLOCK}.conv_module.depthwise_conv.weight", f"{_OWN}.conv.depthwise.weight"),
    Rule(f"{_BLOCK}.conv_module.pointwise_conv2.weight", f"{_OWN}.conv.project.weight"),
    *both(f"{_BLOCK}.ffn2_layer_norm", f"{_OWN}.ffn2_norm"),
    *both(f"{_BLOCK}.ffn2.intermediate_dense", f"{_OWN}.ffn2.up"),
    *both(f"{_BLOCK}.ffn2.output_dense", f"{_OWN}.ffn2.down"),
    *both(f"{_BLOCK}.final_layer_norm", f"{_OWN}.final_norm"),
]
SIZES = {
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_width": "intermediate_size",
    "kernel": "conv_depthwise_kernel_size",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "conv_dropout": "conformer_conv_dropout",
    "input_dropout": "feat_proj_dropout",
    "layerdrop": "layerdrop",
    "layer_norm_eps": "layer_norm_eps",
}
_ACTIVATIONS = {"swish": "swish", "silu": "swish", "gelu": "gelu"}
_POINTWISE = ("conv.expand.weight", "conv.project.weight")


def read_blocks(
    tree: Mapping[str, Any], folder: Path, *, default_activation: str, default_positions: str
) -> dict[str, Any]:
    """Translate what `config.json` says about the blocks; a network that ours cannot be is a `CheckpointError`."""
    activation = tree.get("hidden_act", default_activation)
    positions = tree.get("position_embeddings_type", default_positions)
    if activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"{folder}: `hidden_act` must be swish or gelu, but is {activation!r}: it makes another network"
        )
    if tree.get("rotary_embedding_base", 10_000) != 10_000:
        raise CheckpointError(
            f"{folder}: `rotary_embedding_base` is {tree['rotary_embedding_base']!r}, and only 10000 is supported"
        )
    fields = {own: tree[foreign] for own, foreign in SIZES.items() if foreign in tree}
    return fields | {"activation": _ACTIVATIONS[activation], "positions": "none" if positions is None else positions}


def write_blocks(config: BlockConfig) -> dict[str, Any]:
    """Write the same as `config.json` has it."""
    return {
        "dtype": "float32",
        "hidden_act": config.activation,
        "position_embeddings_type": None if config.positions == "none" else config.positions,
        "mask_time_prob": 0.05,  # above 0, so that transformers has a place for the mask embedding
    } | {foreign: getattr(config, own) for own, foreign in SIZES.items()}


def to_own(plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring a Conformer's tensors to our shapes: pointwise convolutions are matrices."""
    own = {}
    for name, tensor in plain_to_own(plain).items():
        if name.endswith("num_batches_tracked"):
            continue  # counts updates; nothing depends on it
        is_pointwise = name.endswith(_POINTWISE) and tensor.dim() == 3 and tensor.shape[2] == 1
        own[name] = tensor.squeeze(2) if is_pointwise else tensor
    return own


def to_foreign(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `to_own`."""
    plain = {
        name: tensor.unsqueeze(2) if name.endswith(_POINTWISE) else tensor for name, tensor in own_to_plain(own).items()
    }
    for name in own:
        if name.endswith("conv.norm.running_mean"):
            plain[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    return plain
