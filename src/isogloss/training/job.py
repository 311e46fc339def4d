"""From a recipe to the things that train: encoder, objective, index, loader."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from isogloss.core import dist
from isogloss.core.errors import ConfigError
from isogloss.core.rng import derive_seed
from isogloss.core.vocabulary import Labels
from isogloss.data.index import CorpusIndex
from isogloss.data.loader import SpeechLoader, Update
from isogloss.data.streams import Grouping
from isogloss.data.text import labels_of_corpus
from isogloss.data.text_index import TextIndex
from isogloss.data.text_loader import MixedLoader, TextLoader
from isogloss.data.units import CLUSTERS, UnitTable
from isogloss.encoders.base import Encoder
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
    texts = None if recipe.text is None else TextIndex.open(recipe.text.paths)
    if not recipe.data.path and texts is None:
        raise ConfigError("there is no corpus: give one with `--data DIR`, or set `data.path` in the recipe")
    index = CorpusIndex.open(recipe.data.path) if recipe.data.path else None
    recipe = _completed(recipe, index, texts)
    if index is not None and recipe.edits is not None and not recipe.edits.languages:
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
    loaders: dict[str, Any] = {}
    units = None
    if index is not None:
        speech = open_loader(
            recipe,
            index,
            learner,
            rank=dist.rank(),
            world_size=dist.world_size(),
            grouping=recipe.data.grouping(learner.objective.grouping if recipe.edits is None else "language"),
            allow_data_change=allow_data_change,
        )
        loaders["speech"], units = speech, speech.units
    if texts is not None and recipe.text is not None:
        loaders["text"] = TextLoader(
            texts,
            recipe.text,
            seed=recipe.training.seed,
            rank=dist.rank(),
            world_size=dist.world_size(),
            bins_multiple_of=recipe.data.bins_multiple_of,
            allow_data_change=allow_data_change,
        )
    manifests = [*([] if index is None else [index.manifest]), *([] if texts is None else [texts.manifest])]
    if units is not None:
        manifests.append(units.header["sha256"])
    return Job(
        build=build,
        save=functools.partial(_save, units=units),
        learner=learner,
        loader=next(iter(loaders.values())) if len(loaders) == 1 else MixedLoader(loaders),
        total_updates=_total_updates(recipe, index, loaders.get("text")),
        optim=recipe.optim,
        schedule=recipe.schedule,
        training=recipe.training,
        config=recipe.model_dump(mode="json"),
        manifest="+".join(manifests),
        plan_multiple=math.lcm(dist.world_size(), recipe.data.bins_multiple_of),
        start=report,
    )


def _completed(recipe: Recipe, index: CorpusIndex | None, texts: TextIndex | None) -> Recipe:
    """Fill in what follows from the data: the objective's vocabulary, and that of an encoder that reads text."""
    if index is not None:
        objective = parse_objective(recipe.objective).for_corpus(index)
        recipe = recipe.model_copy(update={"objective": objective.model_dump(mode="json")})
    labels = dict(recipe.encoder).get("labels")
    if isinstance(labels, Labels) and not labels.symbols:
        if texts is not None:
            labels = labels.with_symbols_of(map(labels.split, texts.lines()))
        elif index is not None:
            labels = labels_of_corpus(labels, index)
        recipe = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"labels": labels})})
    return recipe


def _total_updates(recipe: Recipe, index: CorpusIndex | None, texts: TextLoader | None) -> int:
    if index is not None:
        return recipe.training.total_updates(recipe.data.seconds_per_update, index.seconds)
    if texts is None or recipe.text is None or recipe.training.hours is not None:
        raise ConfigError("`training.hours` is hours of audio, but there is only text; give `updates` or `passes`")
    return recipe.training.total_updates(recipe.text.bytes_per_update, texts.num_bytes)


def open_loader(
    recipe: Recipe,
    index: CorpusIndex,
    learner: Learner,
    *,
    rank: int = 0,
    world_size: int = 1,
    grouping: Grouping | None = None,
    allow_data_change: bool = False,
) -> SpeechLoader:
    """Open the updates of a corpus as the learner's encoder and objective want them, with units where it predicts some."""
    assert isinstance(learner.objective, Objective)
    return SpeechLoader(
        index,
        recipe.data,
        seed=recipe.training.seed,
        rank=rank,
        world_size=world_size,
        prepare=learner.encoder.prepare if learner.encoder.normalizes_waveform else None,
        num_frames=learner.encoder.num_frames,
        grouping=grouping,
        units=_open_units(recipe, index, learner.encoder, learner.objective),
        allow_data_change=allow_data_change,
    )


def _open_units(recipe: Recipe, index: CorpusIndex, encoder: Encoder, objective: Objective) -> UnitTable | None:
    """Open the units that an objective predicts and hold them against the corpus, the encoder's frames and the heads."""
    if "units" not in objective.requires:
        return None
    if not recipe.data.units:
        raise ConfigError(
            f"objective `{objective.config.name}` predicts units: make them with `isogloss label` and say where they are "
            '(`--set data.units="FOLDER"`), or give the recipe a [labels] section'
        )
    units = UnitTable(recipe.data.units)
    if objective.num_units is not None and units.num_units != objective.num_units:
        raise ConfigError(
            f"`objective.num_units` is {objective.num_units}, but {recipe.data.units} has {units.num_units} units; try "
            f"`--set objective.num_units={units.num_units}`"
        )
    units.check_covers(index.id_hashes, index.durations, encoder.sample_rate)
    return units.for_frames(encoder.geometry)


def _save(learner: Learner, folder: Path, extra: dict[str, Any], units: UnitTable | None) -> None:
    assert isinstance(learner.objective, Objective)
    if units is None:
        save_model(folder, learner.encoder, learner.objective, extra)
        return
    save_model(folder, learner.encoder, learner.objective, {**extra, "units": units.header})
    clusters = units.folder / CLUSTERS
    if clusters.is_file():  # tables that were made elsewhere have none
        shutil.copyfile(clusters, folder / f".{CLUSTERS}")
        (folder / f".{CLUSTERS}").replace(folder / CLUSTERS)
