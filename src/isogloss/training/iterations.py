"""Recipes that label and train in turn: `[labels]` says what is clustered before training, `[[iterations]]` what changes when.

    [labels]                      # of every iteration
    fit_share = 0.1

    [[iterations]]                # any section of the recipe, on top of it
    labels = { features = "mfcc", num_units = 100 }
    training = { updates = 250_000 }

    [[iterations]]
    labels = { features = "model", layer = 6, num_units = 500 }   # of the model of the iteration before
    training = { updates = 400_000 }

A recipe with `[labels]` and no `[[iterations]]` has one iteration. What the command line sets comes on top of them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from isogloss.core.config import Config, parse
from isogloss.core.fields import Count, Positive
from isogloss.training.recipe import FITTING, Recipe, find_recipe, iteration_trees, parse_recipe


class LabelConfig(Config):
    """Which features are clustered into how many units.

    features
        "mfcc" (13 coefficients, Δ and ΔΔ at 100 Hz: HuBERT's first iteration), "mel" (80 log-mel energies), or "model".
    model, layer
        The encoder (any that isogloss opens) and the layer whose output is clustered: the whole output of the block, after its
        residual; 0 is the input of the first block, −1 the last. In an iteration, the model of the one before.
    language
        Of a model with masks or adapters: it is labelled as it is for this language.
    normalize
        Bring every dimension to zero mean and unit variance over each utterance first.
    clusters
        A table of units, or a model that was trained on one, whose clusters are used as they are: a head that predicts them keeps
        its meaning on another corpus. None are fitted then, and `fit_share`, `seed` and `restarts` are left out; those that a
        recipe inherits are dropped.
    num_units, seed, restarts
        Of k-means; of several seedings the best goes on.
    fit_share
        Share of the utterances that k-means sees (HuBERT: 0.1). More are taken where those have too few frames.
    batch_seconds
        Audio that is encoded at once.
    """

    num_units: Annotated[int, Field(ge=2)]
    clusters: str | None = None
    features: Literal["mfcc", "mel", "model"] = "mfcc"
    model: str | None = None
    layer: int | None = None
    language: str | None = None
    normalize: bool = False
    fit_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    seed: Annotated[int, Field(ge=0)] = 0
    restarts: Count = 1
    batch_seconds: Positive = 60.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.features == "model") != (self.layer is not None):
            raise ValueError(
                'layer must be given with features = "model", and only then: it says which output of the model is clustered'
            )
        for name, value in (("model", self.model), ("language", self.language)):
            if value is not None and self.features != "model":
                raise ValueError(f'{name} must be left out with features = "{self.features}"')
        fitting = self.changed(*FITTING)
        if self.clusters is not None and fitting:
            raise ValueError(
                f"{' and '.join(fitting)} must be left out with clusters = {self.clusters!r}, whose clusters are used as they are: none "
                "are fitted"
            )
        return self


@dataclass(frozen=True)
class Iteration:
    """One turn: what is labelled, if anything, and what is trained on it."""

    labels: LabelConfig | None
    recipe: Recipe


def load_iterations(name: str | Path, overrides: Sequence[str] = ()) -> list[Iteration]:
    """Read a recipe by its file or name; one without labels and iterations is a single one."""
    path = find_recipe(name)
    trees = iteration_trees(path, overrides)
    return [
        parse_iteration(tree, f"{path}: iteration {i}" if len(trees) > 1 else str(path))
        for i, tree in enumerate(trees, 1)
    ]


def parse_iteration(tree: dict[str, Any], where: str) -> Iteration:
    """Build one turn from its tree, presets and defaults filled in."""
    labels = parse(LabelConfig, tree["labels"], f"{where}: [labels]") if "labels" in tree else None
    return Iteration(labels, parse_recipe({key: value for key, value in tree.items() if key != "labels"}, where))
