"""From a recipe to the things that train: encoder, objective, index, loader."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from isogloss.core import dist
from isogloss.core.errors import ConfigError
from isogloss.core.rng import derive_seed
from isogloss.data.index import CorpusIndex
from isogloss.data.loader import SpeechLoader, Update
from isogloss.encoders.language_edits import install
from isogloss.encoders.presets import build_encoder
from isogloss.hub.save import save_model
from isogloss.objectives.base import Objective, build_objective, parse_objective
from isogloss.training.optim import OptimConfig
from isogloss.training.parallel import Learner
from isogloss.training.recipe import Recipe, TrainingConfig
from isogloss.training.schedule import ScheduleConfig
from isogloss.training.start import StartReport, start_learner


class Loader(Protocol):
    """An endless stream of updates that goes on from the state of any of them."""

    def __iter__(self) -> Iterator[Update]:
        """Yield updates."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on after the update that this state came with."""
        ...


@dataclass
class Job:
    """What the loop needs, whether it pretrains, adapts or fine-tunes.

    `build` makes the learner, on the CPU, the same on every rank; `save` writes a trained one as a model folder. `config` is
    the resolved configuration (plain values) and `manifest` the hash of the corpus: a resumed run must have the same.
    `plan_multiple` is what the number of bins of an update is a multiple of: runs with the same multiple compute the same
    updates, on however many ranks. `start` says what `learner` has of the model that the run starts from; `build` needs no
    such model, since what it builds is filled from a checkpoint of the run. Before the
    fraction `encoder_from` of the run the head learns alone.
    """

    build: Callable[[], Learner]
    save: Callable[[Learner, Path, dict[str, Any]], None]
    learner: Learner
    loader: Loader
    total_updates: int
    optim: OptimConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    config: dict[str, Any]
    manifest: str
    plan_multiple: int = 1
    start: StartReport | None = None
    encoder_from: float = 0.0


def build_job(recipe: Recipe, *, allow_data_change: bool = False) -> Job:
    """Build everything that a recipe names; `ConfigError` or `DataError` for what cannot be built."""
    if not recipe.data.path:
        raise ConfigError("there is no corpus: give one with `--data DIR`, or set `data.path` in the recipe")
    index = CorpusIndex.open(recipe.data.path)
    completed = parse_objective(recipe.objective).for_corpus(index)
    recipe = recipe.model_copy(update={"objective": completed.model_dump(mode="json")})
    if recipe.edits is not None and not recipe.edits.languages:
        edits = recipe.edits.model_copy(update={"languages": tuple(sorted(index.language_names))})
        recipe = recipe.model_copy(update={"edits": edits})

    def build() -> Learner:
        torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
        encoder = build_encoder(recipe.encoder)
        if recipe.edits is not None:
            install(encoder, recipe.edits)
        return Learner(encoder, build_objective(recipe.objective, encoder))

    report = None
    if recipe.start is None:
        learner = build()
    else:
        torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
        learner, report = start_learner(recipe.start, recipe.encoder, recipe.objective, recipe.edits)
    assert isinstance(learner.objective, Objective)
    loader = SpeechLoader(
        index,
        recipe.data,
        seed=recipe.training.seed,
        rank=dist.rank(),
        world_size=dist.world_size(),
        prepare=learner.encoder.prepare if learner.encoder.normalizes_waveform else None,
        num_frames=learner.encoder.num_frames,
        grouping=recipe.data.grouping(learner.objective.grouping if recipe.edits is None else "language"),
        allow_data_change=allow_data_change,
    )
    return Job(
        build=build,
        save=_save,
        learner=learner,
        loader=loader,
        total_updates=recipe.training.total_updates(recipe.data.seconds_per_update, index.seconds),
        optim=recipe.optim,
        schedule=recipe.schedule,
        training=recipe.training,
        config=recipe.model_dump(mode="json"),
        manifest=index.manifest,
        plan_multiple=math.lcm(dist.world_size(), recipe.data.bins_multiple_of),
        start=report,
    )


def _save(learner: Learner, folder: Path, extra: dict[str, Any]) -> None:
    assert isinstance(learner.objective, Objective)
    save_model(folder, learner.encoder, learner.objective, extra)
