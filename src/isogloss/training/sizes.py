"""How large a recipe's model is, without making it."""

from __future__ import annotations

import torch

from isogloss.encoders.presets import build_encoder
from isogloss.objectives.base import build_objective
from isogloss.training.recipe import Recipe


def count_parameters(recipe: Recipe) -> tuple[int, int]:
    """Return the numbers of parameters of the encoder and of the objective, counted on torch's meta device (no memory)."""
    with torch.device("meta"):
        encoder = build_encoder(recipe.encoder)
        objective = build_objective(recipe.objective, encoder)
    return sum(p.numel() for p in encoder.parameters()), sum(p.numel() for p in objective.parameters())
