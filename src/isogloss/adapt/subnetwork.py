"""S3Net: sub-networks per language in one shared encoder (arXiv 2203.04583), and the masks that they must be compared with.

Score every language once on the frozen dense model, keep the most important share of each matrix, then train on: every
micro-batch holds one language and computes under its mask (training/by_language.py). The masks do not change any more.

A mask is also a name of the language: random masks give a dense model that lacks language identity all that this tells it. So
a sub-network is reported beside `random` masks and beside a dense model that is told the language (`one-hot`), never alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from isogloss.adapt._edited import check_kind, corpus_languages, edited_start, edits_of_model
from isogloss.adapt._importance import (
    Scores,
    added,
    language_batches,
    magnitude_scores,
    random_scores,
    taylor_scores,
)
from isogloss.adapt._pruning import Scope, keep_most_important
from isogloss.adapt.base import MethodConfig
from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import MasksConfig, install, matrices, row_of, with_languages
from isogloss.hub.load import load_encoder
from isogloss.nn.edits import WeightMask
from isogloss.training.job import Job, build_job
from isogloss.training.loop import train
from isogloss.training.parallel import Learner
from isogloss.training.recipe import Recipe

Importance = Literal["taylor", "taylor-squared", "lottery", "magnitude", "shared", "random"]
TrainAlone = Callable[[str], Encoder]  # a language → the encoder after some updates on it alone
Say = Callable[[str], None]


class Config(MethodConfig):
    """How sub-networks are found; prunable are the matrices of attention and feed-forward in the encoder's blocks.

    Norms, biases, convolutions, positions, quantizers and heads are shared by all languages and never pruned.

    sparsity
        ρ, the share of the prunable weights that a language leaves out (0.1 to 0.5; 0 is the dense model).
    importance
        "taylor": Σ|g·θ| over batches of the language's loss. "taylor-squared": Σ(g·θ)². "lottery": |θ| after `alone_updates` on the
        language alone, the weights then rewound. Controls: "random": a mask of each language at random. "shared": one mask for
        all, of the sum of their Taylor scores. "magnitude": one mask for all, of |θ|.
    scope
        "tensor" keeps the same share of every matrix; "global" lets matrices compete.
    batches
        Micro-batches of each language that are scored.
    alone_updates
        Updates on each language alone, for "lottery".
    seed
        Of random masks.
    """

    name: Literal["subnetwork"] = "subnetwork"
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.3
    importance: Importance = "taylor"
    scope: Scope = "tensor"
    batches: Count = 100
    alone_updates: Count = 200
    seed: Annotated[int, Field(ge=0)] = 1


def build(recipe: Recipe, config: Config, run_dir: Path) -> Job:
    """Return the job that trains the sub-networks; masks are found first, and kept with the dense weights in `run_dir/start`.

    A model that has masks keeps them; languages that are new to it get masks of their own, and those that it knows are
    protected: only weights that none of them uses are trained. Raises `ConfigError` where there is no mask to be found.
    """
    own = edits_of_model(recipe)
    languages = corpus_languages(recipe)
    if own is not None:
        check_kind(own, MasksConfig(languages=own.languages))
        languages = [name for name in languages if name not in own.languages]
        if not languages:
            raise ConfigError(
                "the model has masks for every language of the corpus and keeps them, so `[method]` would change nothing; train on under "
                "them with `--method continued`, or start from the dense model to find others"
            )
        if config.importance == "lottery":
            raise ConfigError(
                "a language that is added to a model with masks cannot have a `lottery` mask, which takes training the dense model on the "
                "language alone; try `--set method.importance=taylor`, or start from the dense model with all languages"
            )

    def edit(learner: Learner) -> None:
        learner.to(_device())
        if own is None:
            train_alone = _train_alone(recipe, config, run_dir) if config.importance == "lottery" else None
            find_subnetworks(learner, recipe, languages, config, train_alone=train_alone)
        else:
            for language in languages:
                add_subnetwork(learner, recipe, language, config)

    return build_job(edited_start(recipe, run_dir, edit, protected=() if own is None else own.languages))


def find_subnetworks(
    learner: Learner,
    recipe: Recipe,
    languages: Sequence[str],
    config: Config,
    *,
    train_alone: TrainAlone | None = None,
    say: Say = lambda message: None,
) -> None:
    """Give a dense learner's encoder a mask for each language; its weights are not changed.

    `recipe` says which corpus is scored and how its batches are made. The learner is whole on every rank, and the masks are the
    same on any number of ranks. `train_alone` is needed for the
    lottery tickets. Raises `ConfigError` for a language that the corpus lacks.
    """
    score = _scorer(learner, recipe, config, train_alone)
    one_for_all = config.importance in ("shared", "magnitude")
    if one_for_all:
        masks = keep_most_important(added(score(language) for language in languages), config.sparsity, config.scope)
    install(learner.encoder, MasksConfig(languages=tuple(languages)))
    for language in languages:
        if not one_for_all:
            masks = keep_most_important(score(language), config.sparsity, config.scope)
        write_masks(learner.encoder, language, masks)
        say(f"{language}: masks of {len(masks)} matrices")


def add_subnetwork(
    learner: Learner,
    recipe: Recipe,
    language: str,
    config: Config,
    *,
    train_alone: TrainAlone | None = None,
) -> None:
    """Give an encoder that has masks one more language; weights and the other languages' masks stay bit-equal.

    The new language is scored on the shared weights as they are. Train it afterwards with the others protected
    (`edits.protected`): only weights that none of them uses can then move.
    """
    if config.importance in ("shared", "magnitude"):
        raise ConfigError(f"a mask of one language cannot be `{config.importance}`; try taylor, lottery or random")
    masks = keep_most_important(_scorer(learner, recipe, config, train_alone)(language), config.sparsity, config.scope)
    with_languages(learner.encoder, [language])
    write_masks(learner.encoder, language, masks)


def write_masks(encoder: Encoder, language: str, masks: dict[str, torch.Tensor]) -> None:
    """Set the masks of a language, one bool O×D for each matrix."""
    found = matrices(encoder)
    for name, mask_OD in masks.items():
        edit = found[name].edit
        assert isinstance(edit, WeightMask)
        edit.write(row_of(encoder, language), mask_OD)


def _scorer(
    learner: Learner,
    recipe: Recipe,
    config: Config,
    train_alone: TrainAlone | None,
) -> Callable[[str], Scores]:
    encoder = learner.encoder
    if config.importance == "lottery" and train_alone is None:
        raise ConfigError("lottery tickets need training on each language alone; pass `train_alone`")

    def score(language: str) -> Scores:
        if config.importance == "random":
            return random_scores(encoder, language, config.seed)
        if config.importance == "magnitude":
            return magnitude_scores(encoder)
        if config.importance == "lottery" and train_alone is not None:
            return magnitude_scores(train_alone(language))
        batches = language_batches(recipe, learner, language, config.batches)
        return taylor_scores(learner, batches, 2 if config.importance == "taylor-squared" else 1)

    return score


def _train_alone(recipe: Recipe, config: Config, run_dir: Path) -> TrainAlone:
    """Return what trains the dense model on one language from where the recipe starts."""

    def alone(language: str) -> Encoder:
        # The run's own measurements are not made here.
        changes = {"updates": config.alone_updates, "passes": None, "hours": None, "probe_every": None}
        training = recipe.training.model_copy(update=changes)
        data = recipe.data.model_copy(update={"languages": [language]})
        own = recipe.model_copy(update={"training": training, "data": data})
        return load_encoder(train(own, run_dir / "alone" / language).model_dir)

    return alone


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
