"""fairseq's wav2vec and vq-wav2vec: their tensors under our names, and what shapes and settings tell of their sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from isogloss.core.config import parse
from isogloss.core.errors import CheckpointError, ConfigError
from isogloss.core.keymap import KeyMap, Rule
from isogloss.encoders.wav2vec import Wav2VecConfig
from isogloss.hub.loaded import Found, LoadReport

KEYS = KeyMap(
    [
        Rule("feature_extractor.conv_layers.{i}.0.weight", "convs.{i}.weight"),
        *(Rule(f"feature_extractor.conv_layers.{{i}}.2.{p}", f"norms.{{i}}.{p}") for p in ("weight", "bias")),
        *(Rule(f"feature_aggregator.conv_layers.{{i}}.1.{p}", f"context_convs.{{i}}.{p}") for p in ("weight", "bias")),
        *(Rule(f"feature_aggregator.conv_layers.{{i}}.3.{p}", f"context_norms.{{i}}.{p}") for p in ("weight", "bias")),
        *(Rule(f"vector_quantizer.weight_proj.0.0.{p}", f"quantizer.up.{p}") for p in ("weight", "bias")),
        *(Rule(f"vector_quantizer.weight_proj.1.{p}", f"quantizer.logits.{p}") for p in ("weight", "bias")),
        Rule("vector_quantizer.vars", "quantizer.codebook"),
        Rule("vector_quantizer.embedding", "quantizer.codebook"),
        Rule("vector_quantizer.projection.0.weight", "quantizer.projection_Gde"),
        *(Rule(f"vector_quantizer.projection.1.{p}", f"quantizer.norm.{p}") for p in ("weight", "bias")),
    ]
)
_STRIDES = {10: 5, 8: 4, 4: 2, 1: 1}  # of the convolutions with these kernels, in every published model


def is_wav2vec(names: Mapping[str, Tensor]) -> bool:
    """Say whether a fairseq file holds a wav2vec or vq-wav2vec: an aggregator of convolutions."""
    return any(name.startswith("feature_aggregator.conv_layers.") for name in names)


def read_wav2vec(foreign: Mapping[str, Tensor], settings: Mapping[str, Any], path: Path) -> Found:
    """Return the encoder's configuration and tensors, and the predictors as heads of `wav2vec` and `vq_wav2vec`.

    Raises `CheckpointError` where the file was made with a switch that our encoder does not have.
    """
    if settings.get("agg_zero_pad") or settings.get("skip_connections_feat"):
        raise CheckpointError(
            f"{path}: made with zero padding in the aggregator or skip connections in the feature encoder, which no published model "
            "has and this encoder does not compute"
        )
    tensors: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for name, tensor in foreign.items():
        if name == "wav2vec_predictions.project_to_steps.weight":
            heads["predictor.weight_KDE"] = tensor.float().squeeze(2).permute(2, 0, 1).contiguous()
        elif name == "wav2vec_predictions.project_to_steps.bias":
            heads["predictor.bias_E"] = tensor.float()
        else:
            tensors[KEYS.to_own(name) or name] = tensor  # unknown ones are reported by assemble()
    kind = "none"
    if "vector_quantizer.vars" in foreign:
        kind = "gumbel"
    elif "vector_quantizer.embedding" in foreign:
        kind = "kmeans"
    try:
        config = _config(tensors, kind, settings, path)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    for name in [name for name in tensors if re.fullmatch(r"(context_)?convs\.\d+\.weight", name)]:
        tensors[name] = tensors[name].permute(0, 2, 1).contiguous()
    groups = config.num_codebooks
    if kind == "gumbel":
        book = tensors["quantizer.codebook"].squeeze(0)
        tensors["quantizer.codebook"] = book.unflatten(0, (-1, config.num_codes))
    elif kind == "kmeans":
        tensors["quantizer.codebook"] = tensors["quantizer.codebook"].transpose(0, 1).contiguous()
        # A grouped convolution is out×in/groups: each group's transpose multiplies rows from the right.
        grouped = tensors["quantizer.projection_Gde"].squeeze(2).unflatten(0, (groups, -1))
        tensors["quantizer.projection_Gde"] = grouped.transpose(1, 2).contiguous()
    return Found(config, tensors, heads, LoadReport("fairseq"))


def _config(tensors: Mapping[str, Tensor], kind: str, settings: Mapping[str, Any], path: Path) -> Wav2VecConfig:
    kernels = _kernels(tensors, "convs")
    strides = tuple(_STRIDES.get(kernel, 0) for kernel in kernels)
    if not kernels or 0 in strides:
        raise CheckpointError(f"{path}: the strides of its convolutions are not known (kernels {kernels})")
    channels = tensors["convs.0.weight"].shape[0]
    codebook = tensors.get("quantizer.codebook")
    quantizer: dict[str, Any] = {"quantizer": kind}
    if codebook is not None:
        groups = channels // codebook.shape[-1]
        if kind == "gumbel":
            num_codes = tensors["quantizer.logits.weight"].shape[0] // groups
            is_shared = codebook.shape[1] == num_codes
        else:
            num_codes, is_shared = codebook.shape[0], codebook.shape[1] == 1
        quantizer |= {"num_codebooks": groups, "num_codes": num_codes, "share_codebook": is_shared and groups > 1}
    scale = settings.get("residual_scale", 0.5)
    if settings.get("skip_connections_agg", True) and scale != 0.5:
        raise CheckpointError(f"{path}: `residual_scale` must be 0.5, as in every published model, but is {scale}")
    tree = {
        "channels": channels,
        "kernels": kernels,
        "strides": strides,
        "context_kernels": _kernels(tensors, "context_convs"),
        "activation": settings.get("activation", "relu" if kind == "none" else "gelu"),
        "log_compression": settings.get("log_compression", kind == "none"),
        "skip_connections": settings.get("skip_connections_agg", True),
        **quantizer,
    }
    return parse(Wav2VecConfig, tree, str(path))


def _kernels(tensors: Mapping[str, Tensor], stack: str) -> tuple[int, ...]:
    found = sorted(int(m[1]) for name in tensors if (m := re.fullmatch(rf"{stack}\.(\d+)\.weight", name)))
    return tuple(tensors[f"{stack}.{i}.weight"].shape[-1] for i in found)
