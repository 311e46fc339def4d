"""Read a Hugging Face folder of any family in `hub/families`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from isogloss.core.errors import CheckpointError
from isogloss.hub.families.base import find_family, read_json
from isogloss.hub.loaded import Found, LoadReport


def read_huggingface(folder: Path) -> Found:
    """Read configuration, trunk and heads; anything that our encoders cannot compute is a `CheckpointError` by name."""
    tree = read_json(folder / "config.json")
    family = find_family(tree.get("model_type"), folder)
    config = family.read_config(tree, folder)
    report = LoadReport("huggingface")
    plain: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    foreign = _read_tensors(folder)
    prefix = next((prefix for prefix in family.prefixes if any(name.startswith(prefix) for name in foreign)), "")
    for name, tensor in foreign.items():
        in_trunk = name.startswith(prefix)
        body = name.removeprefix(prefix)
        own = family.keys.to_own(body) if in_trunk else None
        if own is not None:
            plain[own] = tensor
        elif in_trunk and not body.startswith(family.beside):
            plain[name] = tensor  # unknown inside the trunk: assemble() reports it
        else:
            heads[family.heads.to_own(body) or body] = tensor.float()
    return Found(config, family.to_own(plain, config, report.notes), heads, report)


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
