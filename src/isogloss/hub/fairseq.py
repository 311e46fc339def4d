"""Read fairseq's wav2vec 2.0, XLSR, XLS-R, HuBERT, WavLM, UniSpeech(-SAT) and data2vec files without running anything in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isogloss.core.config import parse
from isogloss.core.errors import CheckpointError, ConfigError
from isogloss.encoders.wave import WaveConfig
from isogloss.hub._fairseq_wav2vec import is_wav2vec, read_wav2vec
from isogloss.hub.loaded import Found, LoadReport
from isogloss.hub.names import FAIRSEQ, FAIRSEQ_HEADS, plain_to_own
from isogloss.hub.unpickle import Inert, StoredTensor, read_torch_file

# Fine-tuned models hold the pretrained one inside.
_INNER = ("w2v_encoder.w2v_model.", "w2v_model.", "encoder.w2v_model.")
_HEADS_OF_PUBLISHED_WIDTHS = {768: 12, 1024: 16, 1280: 16, 1920: 16}
_MAX_DEPTH = 12


def read_fairseq(path: Path) -> Found:
    """Read a `.pt` file: shapes tell the sizes, the stored configuration tells what shapes cannot (heads, norms, strides)."""
    content = read_torch_file(path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise CheckpointError(f"{path}: a fairseq file holds `model`, and this one does not")
    foreign = {str(name): value.tensor().clone() for name, value in model.items() if isinstance(value, StoredTensor)}
    if is_wav2vec(foreign):
        return read_wav2vec(foreign, _settings(content), path)
    report = LoadReport("fairseq")
    plain, heads = _translate(foreign)
    if "convolutions.convs.0.weight" not in plain or not plain.keys() & {"position.direction", "position.weights.0"}:
        raise CheckpointError(
            f"{path}: no convolutions and positional convolution under fairseq's names; usually because it is none of wav2vec "
            "2.0, HuBERT, WavLM, UniSpeech and data2vec"
        )
    config = _wave_config(plain, _settings(content), path)
    if "projection.weight" not in plain and config.width == config.conv_channels[-1]:
        # fairseq leaves the projection out where the widths agree.
        plain["projection.weight"], plain["projection.bias"] = torch.eye(config.width), torch.zeros(config.width)
        report.notes.append("the file has no projection; it is the identity")
    if config.conv_norm == "group":
        plain.pop("convolutions.convs.0.bias", None)
    if config.position == "conv_stack":
        heads = _data2vec_heads(heads, model.get("_ema"))
    return Found(config, plain_to_own(plain), heads, report)


def _translate(foreign: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    plain: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    inner = next((prefix for prefix in _INNER if any(name.startswith(prefix) for name in foreign)), "")
    for name, tensor in foreign.items():
        body = name.removeprefix(inner)
        if own := FAIRSEQ.to_own(body):
            plain[own] = tensor
        elif name in ("w2v_encoder.proj.weight", "w2v_encoder.proj.bias"):
            heads[f"lm_head.{name.rpartition('.')[2]}"] = tensor.float()
        elif body.startswith(("encoder.", "feature_extractor.")):
            plain[body] = tensor  # unknown inside the trunk: assemble() reports it
        else:
            heads[FAIRSEQ_HEADS.to_own(body) or body] = tensor.float()
    return plain, heads


def _data2vec_heads(heads: Mapping[str, Tensor], averaged: Any) -> dict[str, Tensor]:
    """Name the regression layer as our objective does, and the teacher: the averaged transformer, without the frontend."""
    named = {name.replace("project_context.", "project."): tensor for name, tensor in heads.items()}
    if isinstance(averaged, dict):
        stored = {f"encoder.{name}": value for name, value in averaged.items() if isinstance(value, StoredTensor)}
        plain = {own: value.tensor().float() for name, value in stored.items() if (own := FAIRSEQ.to_own(name))}
        named |= {f"teacher.model.{own}": tensor for own, tensor in plain_to_own(plain).items()}
    return named


def _wave_config(plain: Mapping[str, Tensor], settings: Mapping[str, Any], path: Path) -> WaveConfig:
    convs = sorted(int(m[1]) for name in plain if (m := re.fullmatch(r"convolutions\.convs\.(\d+)\.weight", name)))
    weights = [plain[f"convolutions.convs.{i}.weight"] for i in convs]
    stack = sorted(name for name in plain if re.fullmatch(r"position\.weights\.\d+", name))
    direction, up = plain[stack[0] if stack else "position.direction"], plain.get("layers.0.ffn.up.weight")
    if any(weight.dim() != 3 for weight in [*weights, direction]) or up is None or up.dim() != 2:
        raise CheckpointError(f"{path}: its convolutions or layers have unknown shapes")
    conv_norm = "layer" if "convolutions.norms.1.weight" in plain else "group"
    kernels = tuple(weight.shape[2] for weight in weights)
    width = direction.shape[0]
    heads = settings.get("encoder_attention_heads", _HEADS_OF_PUBLISHED_WIDTHS.get(width))
    if heads is None:
        raise CheckpointError(
            f"{path}: the file does not say how many attention heads a model of width {width} has, and shapes cannot tell"
        )
    tree = {
        "conv_channels": tuple(weight.shape[0] for weight in weights),
        "conv_kernels": kernels,
        "conv_strides": _strides(settings.get("conv_feature_layers"), kernels, path),
        "conv_norm": conv_norm,
        "conv_bias": "convolutions.convs.1.bias" in plain,
        "width": width,
        "num_layers": len({name.split(".")[1] for name in plain if name.startswith("layers.")}),
        "num_heads": heads,
        "ffn_width": up.shape[0],
        "norm_first": settings.get("layer_norm_first", conv_norm == "layer" and not stack),
        "position_kernel": direction.shape[2],
        "position_groups": width // max(direction.shape[1], 1),
        "position": "conv_stack" if stack else "conv",
        "position_layers": max(len(stack), 1),
        "relative": _relative(plain, settings),
        "normalize_waveform": bool(settings.get("normalize", conv_norm == "layer")),
        "feature_gradient_scale": settings.get("feature_grad_mult", 0.1 if conv_norm == "group" else 1.0) or 1.0,
    }
    dropouts = {
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "activation_dropout": "activation_dropout",
        "input_dropout": "dropout_input",
        "layerdrop": "encoder_layerdrop",
    }
    tree |= {own: settings[foreign] for own, foreign in dropouts.items() if foreign in settings}
    try:
        return parse(WaveConfig, tree, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _relative(plain: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Any] | None:
    table = plain.get("relative.weight")
    if table is None:
        return None
    # 800 in every released file; fairseq's class would take 1280 where nothing is said.
    return {"kind": "gated", "num_buckets": len(table), "max_distance": settings.get("max_distance", 800)}


def _strides(layers: Any, kernels: tuple[int, ...], path: Path) -> tuple[int, ...]:
    """Read `[(512,10,5)] + [(512,3,2)] * 4 + …` (a Python expression, which is matched and never evaluated)."""
    if isinstance(layers, str):
        found: list[tuple[int, int]] = []
        for group, repeat in re.findall(r"\[((?:\s*\([\d,\s]+\)\s*,?)+)\]\s*(?:\*\s*(\d{1,2}))?", layers):
            triples = re.findall(r"\(\s*\d+\s*,\s*(\d+)\s*,\s*(\d+)\s*,?\s*\)", group)
            found += [(int(kernel), int(stride)) for kernel, stride in triples] * int(repeat or 1)
        if tuple(kernel for kernel, _ in found) == kernels:
            return tuple(stride for _, stride in found)
    if kernels == (10, 3, 3, 3, 3, 2, 2):
        return (5, 2, 2, 2, 2, 2, 2)
    raise CheckpointError(f"{path}: the strides of its convolutions are not told (kernels {kernels})")


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the plain settings of the pretrained model, wherever a version of fairseq has put them."""
    merged: dict[str, Any] = {}
    for key in ("args", "cfg"):
        tree = _plain(content.get(key))
        if not isinstance(tree, dict):
            continue
        merged |= _model_settings(tree)
    return merged


def _model_settings(tree: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in tree.items() if isinstance(value, (int, float, str, bool))}
    for section in ("task", "model", "w2v_args"):
        if isinstance(tree.get(section), dict):
            found |= _model_settings(tree[section])
    return found


def _plain(value: Any, depth: int = 0) -> Any:
    """Return the settings inside inert Namespace and OmegaConf objects as plain dictionaries."""
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, Inert):
        state = value.__dict__.get("state")
        if isinstance(state, tuple) and len(state) == 2:
            state = state[0] or state[1]
        if not isinstance(state, dict):
            return None
        for content in ("_content", "_val"):  # OmegaConf: a container, a leaf
            if content in state:
                return _plain(state[content], depth + 1)
        return _plain(state, depth + 1)
    if isinstance(value, dict):
        return {str(key): _plain(item, depth + 1) for key, item in dict.items(value)}
    return value if isinstance(value, (int, float, str, bool)) else None
