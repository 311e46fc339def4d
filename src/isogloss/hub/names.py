"""What the tensors of the wave transformer are called in fairseq, and how their shapes differ elsewhere.

Translation has two steps: names (one rule per tensor, `KeyMap`) into *plain* names, which are ours but for three things that
one tensor-to-tensor rule cannot say; then shapes: queries, keys and values become one matrix, convolution weights become
out×kernel×in, the gains of the positional convolution lose their empty dimensions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from isogloss.core.keymap import KeyMap, Rule


def both(foreign: str, own: str) -> list[Rule]:
    """Return the rules for a weight and its bias."""
    return [Rule(f"{foreign}.{part}", f"{own}.{part}") for part in ("weight", "bias")]


FAIRSEQ = KeyMap(
    [
        Rule("mask_emb", "mask_embedding_D"),
        *both("feature_extractor.conv_layers.{i}.0", "convolutions.convs.{i}"),
        *both("feature_extractor.conv_layers.{i}.2", "convolutions.norms.{i}"),  # group norm
        *both("feature_extractor.conv_layers.{i}.2.1", "convolutions.norms.{i}"),  # layer norm, between transposes
        *both("layer_norm", "latent_norm"),
        *both("post_extract_proj", "projection"),
        Rule("encoder.pos_conv.0.bias", "position.bias"),
        Rule("encoder.pos_conv.0.weight_g", "position.gain_K"),
        Rule("encoder.pos_conv.0.weight_v", "position.direction"),
        *both("encoder.layer_norm", "norm"),
        *both("encoder.layers.{i}.self_attn.q_proj", "layers.{i}.attention.q"),
        *both("encoder.layers.{i}.self_attn.k_proj", "layers.{i}.attention.k"),
        *both("encoder.layers.{i}.self_attn.v_proj", "layers.{i}.attention.v"),
        *both("encoder.layers.{i}.self_attn.out_proj", "layers.{i}.attention.out"),
        # WavLM
        *both("encoder.layers.{i}.self_attn.grep_linear", "layers.{i}.attention.relative.gate"),
        Rule("encoder.layers.{i}.self_attn.grep_a", "layers.{i}.attention.relative.scale_H"),
        Rule("encoder.layers.0.self_attn.relative_attention_bias.weight", "relative.weight"),
        # data2vec
        Rule("encoder.pos_conv.{i}.0.weight", "position.weights.{i}"),
        Rule("encoder.pos_conv.{i}.0.bias", "position.biases.{i}"),
        *both("encoder.layers.{i}.self_attn_layer_norm", "layers.{i}.attention_norm"),
        *both("encoder.layers.{i}.fc1", "layers.{i}.ffn.up"),
        *both("encoder.layers.{i}.fc2", "layers.{i}.ffn.down"),
        *both("encoder.layers.{i}.final_layer_norm", "layers.{i}.ffn_norm"),
    ]
)

FAIRSEQ_HEADS = KeyMap(
    [
        Rule("quantizer.vars", "quantizer.codebook"),
        *both("quantizer.weight_proj", "quantizer.logits"),
        *both("project_q", "project_targets"),
        *both("final_proj", "project_context"),
        Rule("label_embs_concat", "label_embeddings"),
        *both("speaker_proj", "project_speaker"),  # UniSpeech-SAT
        *both("layer_norm_for_extract", "middle_norm"),
    ]
)

_CONV_WEIGHT = re.compile(r"convolutions\.convs\.\d+\.weight")
_GATE_SCALE = re.compile(r"layers\.\d+\.attention\.relative\.scale_H")
_QUERY = re.compile(r"(layers\.\d+\.attention)\.q\.(weight|bias)")
_QKV = re.compile(r"(layers\.\d+\.attention)\.qkv\.(weight|bias)")


def plain_to_own(plain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors under plain names to our shapes; a tensor without its partners keeps its plain name."""
    own: dict[str, Tensor] = {}
    taken: set[str] = set()
    for name, tensor in plain.items():
        if _CONV_WEIGHT.fullmatch(name) and tensor.dim() == 3:
            own[name] = tensor.permute(0, 2, 1).contiguous()
        elif name == "position.gain_K" or _GATE_SCALE.fullmatch(name):
            own[name] = tensor.flatten()
        elif match := _QUERY.fullmatch(name):
            names = [f"{match[1]}.{part}.{match[2]}" for part in "qkv"]
            if len({plain[n].shape if n in plain else None for n in names}) == 1:
                own[f"{match[1]}.qkv.{match[2]}"] = torch.cat([plain[n] for n in names])
                taken.update(names)
    for name, tensor in plain.items():
        if name not in taken:
            own.setdefault(name, tensor)
    return own


def own_to_plain(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `plain_to_own`."""
    plain: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if _CONV_WEIGHT.fullmatch(name):
            plain[name] = tensor.permute(0, 2, 1).contiguous()
        elif name == "position.gain_K":
            plain[name] = tensor.view(1, 1, -1)
        elif _GATE_SCALE.fullmatch(name):
            plain[name] = tensor.view(1, -1, 1, 1)
        elif match := _QKV.fullmatch(name):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                plain[f"{match[1]}.{part}.{match[2]}"] = piece.contiguous()
        else:
            plain[name] = tensor
    return plain
