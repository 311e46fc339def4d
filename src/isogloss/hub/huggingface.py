"""Read a Hugging Face folder of Wav2Vec2, HuBERT, UniSpeech or UniSpeechSat: one trunk, four names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from isogloss.core.config import parse
from isogloss.core.errors import CheckpointError, ConfigError
from isogloss.encoders.wave import WaveConfig
from isogloss.hub.loaded import Found, LoadReport
from isogloss.hub.names import HUGGING_FACE, HUGGING_FACE_HEADS, plain_to_own

# Name of the trunk inside models with heads.
PREFIXES = {"wav2vec2": "wav2vec2.", "hubert": "hubert.", "unispeech": "unispeech.", "unispeech-sat": "unispeech_sat."}


def read_huggingface(folder: Path) -> Found:
    """Read configuration, trunk and heads; anything that this trunk cannot compute is a `CheckpointError` by name."""
    tree = read_json(folder / "config.json")
    kind = tree.get("model_type")
    if kind not in PREFIXES:
        raise CheckpointError(
            f"{folder}: `model_type` must be one of {', '.join(PREFIXES)}, but is {kind!r}; other models have another trunk"
        )
    config = wave_config(tree, folder)
    report = LoadReport("huggingface")
    prefix = PREFIXES[kind]
    plain: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    foreign = _read_tensors(folder)
    is_bare = not any(name.startswith(prefix) for name in foreign)
    for name, tensor in foreign.items():
        in_trunk = is_bare or name.startswith(prefix)
        body = name.removeprefix(prefix)
        own = HUGGING_FACE.to_own(body) if in_trunk else None
        if own is not None:
            plain[own] = tensor
        elif in_trunk and not body.startswith("adapter."):
            plain[name] = tensor  # unknown inside the trunk: assemble() reports it
        else:
            heads[HUGGING_FACE_HEADS.to_own(body) or body] = tensor.float()
    if config.conv_norm == "group" and plain.pop("convolutions.convs.0.bias", None) is not None:
        report.notes.append("the bias of the first convolution was left out: the group norm that follows removes it")
    return Found(config, plain_to_own(plain), heads, report)


def wave_config(tree: dict[str, Any], folder: Path) -> WaveConfig:
    """Translate `config.json` (and what the feature extractor beside it says about normalisation)."""
    required = {
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "adapter_attn_dim": None,
        "feat_proj_layer_norm": True,
        "conv_pos_batch_norm": False,
    }
    for key, value in required.items():
        if tree.get(key, value) != value:
            raise CheckpointError(
                f"{folder}: `{key}` is {tree[key]!r}, and only {value!r} is supported: another value makes another network"
            )
    conv_norm = tree.get("feat_extract_norm", "group")
    normalizes = conv_norm == "layer"
    if (folder / "preprocessor_config.json").exists():
        extractor = read_json(folder / "preprocessor_config.json")
        normalizes = extractor.get("do_normalize", normalizes)
        if extractor.get("sampling_rate", 16_000) != 16_000:
            raise CheckpointError(
                f"{folder}: the model expects {extractor['sampling_rate']!r} samples a second, and only 16000 are supported"
            )
    names = {
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
    fields = {own: tree[foreign] for own, foreign in names.items() if foreign in tree}
    # Not in the file; as published: 0.1 for the group-norm models, 1 for the others.
    fields |= {"conv_norm": conv_norm, "feature_gradient_scale": 0.1 if conv_norm == "group" else 1.0}
    defaults = {"activation_dropout": 0.1, "input_dropout": 0.0, "layerdrop": 0.1}  # of transformers' classes
    try:
        return parse(WaveConfig, defaults | fields | {"normalize_waveform": normalizes}, str(folder / "config.json"))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; anything else is a `CheckpointError`."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); download it again") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: must hold an object, but holds {type(tree).__name__}")
    return tree


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; a damaged one is a `CheckpointError`."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read, or damaged: {error}") from None


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / "model.safetensors").exists():
        return read_safetensors(folder / "model.safetensors")
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).exists():
            return _read_shards(folder, index)
    if (folder / "pytorch_model.bin").exists():
        return _read_bin(folder / "pytorch_model.bin")
    raise CheckpointError(
        f"{folder}: there is a config.json, but neither model.safetensors nor pytorch_model.bin; usually because the large files "
        "were not downloaded"
    )


def _read_shards(folder: Path, index: str) -> dict[str, Tensor]:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        raise CheckpointError(f"{folder / index}: `weight_map` must map names of tensors to names of files")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or not shard.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{folder / index}: {shard!r} must be the name of a file in the same folder")
        path = folder / shard
        tensors |= read_safetensors(path) if shard.endswith(".safetensors") else _read_bin(path)
    missing = [name for name in weight_map if name not in tensors]
    if missing:
        raise CheckpointError(f"{folder / index}: its files lack {', '.join(missing[:12])}")
    return tensors


def _read_bin(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # torch raises many kinds of errors for a damaged file, and its own for one that wants to run something.
    except Exception as error:
        raise CheckpointError(
            f"{path}: refused: it is damaged, or holds more than tensors ({str(error).splitlines()[0][:160]})"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: must hold a dictionary of tensors")
    return content
