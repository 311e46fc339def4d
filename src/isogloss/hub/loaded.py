"""What loading gives back, and the one way in which tensors become an encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from isogloss.core.config import Config
from isogloss.core.errors import CheckpointError, ConfigError
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import EditsConfig, install, split_rows, write_rows
from isogloss.encoders.presets import EncoderConfig, build_encoder

_SHOWN = 12  # names in an error message


class Heads(Protocol):
    """What saving needs of an objective: its configuration and its tensors."""

    @property
    def config(self) -> Config:
        """What it was built from."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return its tensors by name."""
        ...


@dataclass
class LoadReport:
    """Where a model came from, which tensors of the encoder were initialised afresh, and what else is worth knowing."""

    format: str  # "isogloss", "huggingface" or "fairseq"
    fresh: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Loaded:
    """An encoder, the tensors of its heads under the objectives' names, and the objective's configuration where it is known.

    `task` is what a fine-tuned model does: the task's configuration and its tensors.
    """

    encoder: Encoder
    head_tensors: dict[str, Tensor]
    objective_tree: dict[str, Any] | None
    report: LoadReport
    task: tuple[dict[str, Any], dict[str, Tensor]] | None = None


@dataclass
class Found:
    """What a reader found in a foreign checkpoint: a configuration, tensors under our names, heads, and notes."""

    config: EncoderConfig
    tensors: dict[str, Tensor]
    heads: dict[str, Tensor]
    report: LoadReport
    objective_tree: dict[str, Any] | None = None
    edits: tuple[EditsConfig, dict[str, Tensor]] | None = None  # what depends on the language, and each language's rows
    task: tuple[dict[str, Any], dict[str, Tensor]] | None = None


def assemble(found: Found, path: Path) -> Loaded:
    """Build the encoder and give it the tensors.

    Every tensor must be known, present and of the right shape: otherwise `CheckpointError` lists the faults. The encoder is
    built without memory first, so a configuration that promises more than the file holds costs nothing.
    """
    tensors = dict(found.tensors)
    _check_depth(found.config, tensors, path)
    with torch.device("meta"):
        encoder = build_encoder(found.config)
    expected = encoder.state_dict()
    if "mask_embedding_D" in expected and "mask_embedding_D" not in tensors:
        # Models that were fine-tuned or exported without masking have none.
        tensors["mask_embedding_D"] = torch.rand(expected["mask_embedding_D"].shape)
        found.report.fresh.append("mask_embedding_D")
    faults = [f"{name} is missing" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            faults.append(f"{name} is unknown")
        elif tensor.shape != expected[name].shape:
            faults.append(f"{name} has shape {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}")
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise CheckpointError(
            f"{path}: the tensors do not fit the model that its configuration describes: {'; '.join(faults[:_SHOWN])}{more}"
        )
    encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    encoder.eval()
    if found.edits is not None:
        _install(encoder, *found.edits, path)
    return Loaded(encoder, found.heads, found.objective_tree, found.report, found.task)


def _install(encoder: Encoder, config: EditsConfig, rows: Mapping[str, Tensor], path: Path) -> None:
    """Put the edits into the encoder; every row must be there and known."""
    try:
        install(encoder, config)
        if missing := sorted(split_rows(encoder).keys() - rows.keys()):
            raise ConfigError(f"`{missing[0]}` is missing, with {len(missing) - 1} more")
        write_rows(encoder, rows)
    except ConfigError as error:
        raise CheckpointError(f"{path / config.kind}.safetensors: {error}") from None
    encoder.eval()


def _check_depth(config: EncoderConfig, tensors: Mapping[str, Tensor], path: Path) -> None:
    # Every encoder of `num_layers` repeated blocks calls them layers.0, layers.1, …
    num_layers = config.model_dump().get("num_layers", 0)
    layers = {int(match[1]) for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))}
    if num_layers > len(layers):
        raise CheckpointError(
            f"{path}: the configuration describes {num_layers} layers, but the file holds {len(layers)}; usually "
            "because the configuration belongs to another checkpoint"
        )
