"""From importance to masks: the most important share of each matrix, or of all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from isogloss.core.errors import ConfigError

Scope = Literal["tensor", "global"]


def keep_most_important(scores: Mapping[str, Tensor], sparsity: float, scope: Scope) -> dict[str, Tensor]:
    """Return masks that keep the most important 1 − `sparsity` of the weights, exactly so many; equal ones by their place.

    Of each matrix by itself (`tensor`: no layer can collapse), or of all together (`global`).
    """
    if not 0 <= sparsity < 1:
        raise ConfigError(
            f"`sparsity` must be at least 0 and below 1, but is {sparsity}; it is the share that is left out"
        )
    if scope == "tensor":
        return {name: _keep(score.reshape(-1), sparsity).view(score.shape) for name, score in scores.items()}
    sizes = [score.numel() for score in scores.values()]
    kept = _keep(torch.cat([score.reshape(-1) for score in scores.values()]), sparsity).split(sizes)
    return {name: part.view(score.shape) for part, (name, score) in zip(kept, scores.items(), strict=True)}


def _keep(scores_W: Tensor, sparsity: float) -> Tensor:
    num_dropped = round(sparsity * len(scores_W))
    if not num_dropped:
        return torch.ones(len(scores_W), dtype=torch.bool)
    threshold = scores_W.kthvalue(num_dropped).values
    is_kept_W = scores_W > threshold
    ties = (scores_W == threshold).nonzero().flatten()
    is_kept_W[ties[: len(scores_W) - num_dropped - int(is_kept_W.sum())]] = True
    return is_kept_W
