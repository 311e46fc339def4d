"""The optimizer of a run: Adam or AdamW, fused, with fp32 master weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from isogloss.core.config import Config
from isogloss.core.errors import ConfigError
from isogloss.core.fields import Positive, Weight


class OptimConfig(Config):
    """Adam or AdamW (decoupled decay); `clip` is the largest norm of the gradient of the mean loss, 0 for no clipping.

    `decay_all` False leaves norms and biases (every parameter of one dimension) without weight decay; fairseq decays all.
    `head_lr` is the learning rate of all that is not the encoder, `lr` where it is not given.
    """

    name: Literal["adamw", "adam"] = "adamw"
    lr: Positive = 5e-4
    head_lr: Positive | None = None
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    eps: Positive = 1e-6
    weight_decay: Weight = 0.01
    decay_all: bool = True
    clip: Annotated[float, Field(ge=0)] = 0.0


def build_optimizer(config: OptimConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer over the trainable parameters of a module (sharded ones too).

    Parameters named `encoder.…` and the others are groups of their own; each group keeps its factor on the learning rate.
    """
    trainable = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("nothing is left to train: every parameter is frozen")
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, parameter in trainable:
        is_encoder, has_decay = name.startswith("encoder."), config.decay_all or parameter.dim() > 1
        group = groups.setdefault(
            (is_encoder, has_decay),
            {
                "params": [],
                "weight_decay": config.weight_decay if has_decay else 0.0,
                "is_encoder": is_encoder,
                "factor": 1.0 if is_encoder or config.head_lr is None else config.head_lr / config.lr,
            },
        )
        group["params"].append(parameter)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(list(groups.values()), lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, *, encoder_waits: bool = False) -> None:
    """Set the rate of every group, times the group's factor; an encoder that waits for its head has none and stays bit for bit."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if encoder_waits and group["is_encoder"] else lr * group["factor"]
