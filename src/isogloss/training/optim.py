"""The optimizer of a run: Adam or AdamW, fused, with fp32 master weights."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from isogloss.core.config import Config
from isogloss.core.errors import ConfigError


class OptimConfig(Config):
    """Adam or AdamW (decoupled decay); `clip` is the largest norm of the gradient of the mean loss, 0 for no clipping.

    `decay_all` False leaves norms and biases (every parameter of one dimension) without weight decay; fairseq decays all.
    """

    name: Literal["adamw", "adam"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 5e-4
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    eps: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    decay_all: bool = True
    clip: Annotated[float, Field(ge=0)] = 0.0


def build_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer over the trainable parameters of a module (sharded ones too)."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("nothing is left to train: every parameter is frozen")
    if config.decay_all:
        groups = [{"params": trainable, "weight_decay": config.weight_decay}]
    else:
        groups = [
            {"params": [p for p in trainable if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
