"""From a model and labelled speech to a fine-tuned model: the recipe of a task, and the job that the loop runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from isogloss.core import dist
from isogloss.core.config import Config, parse
from isogloss.core.errors import ConfigError
from isogloss.core.rng import derive_seed
from isogloss.data.index import CorpusIndex
from isogloss.data.loader import DataConfig, SpeechLoader
from isogloss.encoders.language_edits import EditsConfig, freeze_shared, install
from isogloss.encoders.presets import EncoderConfig, build_encoder
from isogloss.hub.load import load_model
from isogloss.hub.save import save_model
from isogloss.tasks.base import Task, build_task, parse_task
from isogloss.training.job import Job
from isogloss.training.optim import OptimConfig
from isogloss.training.parallel import Learner
from isogloss.training.recipe import TrainingConfig, find_recipe, recipe_tree
from isogloss.training.schedule import ScheduleConfig
from isogloss.training.start import StartConfig, StartReport, fingerprint, freeze


class FinetuneRecipe(Config):
    """The whole configuration of a fine-tuning run: a model to start from, a task, labelled speech.

    `encoder` is the model's own with what the recipe changes of it (dropouts, layerdrop); so are `edits`. `start.frozen` says
    what of the encoder does not learn: "frontend" alone (fine-tuning), some layers, or "encoder" (a frozen encoder).
    """

    start: StartConfig
    encoder: EncoderConfig
    edits: EditsConfig | None = None
    task: dict[str, Any]
    data: DataConfig
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig


def load_finetune(task: str, overrides: Sequence[str] = ()) -> FinetuneRecipe:
    """Read the recipe of a task by its file or name (`asr` is `recipes/tasks/asr.toml`) and apply overrides.

    Raises `ConfigError` for anything unknown or out of range, `CheckpointError` for a model that cannot be read.
    """
    path = Path(task) if Path(task).is_file() else find_recipe(f"tasks/{task}")
    return parse_finetune(recipe_tree(path, overrides), str(path))


def parse_finetune(tree: Mapping[str, Any], where: str) -> FinetuneRecipe:
    """Build a recipe from a tree; the encoder is the model's, defaults of the task are filled in."""
    start = dict(tree.get("start") or {})
    if not start.get("model"):
        raise ConfigError(f"{where}: there is no model to start from; give one with `--from MODEL`")
    loaded = load_model(str(start["model"]))
    found = fingerprint(loaded)
    if start.setdefault("sha256", found) != found:
        raise ConfigError(
            f"{where}: {start['model']} has changed since this run was configured; start a new run elsewhere"
        )
    own = loaded.encoder.edits
    wished = dict(tree.get("edits") or {})
    edits = None if own is None else own.model_dump(mode="json") | wished
    if own is None and wished:
        raise ConfigError(
            f"{where}: {start['model']} is the same for all languages, so [edits] changes nothing; leave it out, or adapt the model first"
        )
    filled = {
        **tree,
        "start": start,
        "encoder": loaded.encoder.config.model_dump(mode="json") | dict(tree.get("encoder") or {}),
        "edits": edits,
        "task": parse_task(tree.get("task") or {}, f"{where}: [task]").model_dump(mode="json"),
        "data": {"path": "", **(tree.get("data") or {})},
    }
    return parse(FinetuneRecipe, filled, where)


def build_finetune_job(recipe: FinetuneRecipe, *, allow_data_change: bool = False) -> Job:
    """Build everything that a recipe names; the task's vocabulary or classes come from the corpus."""
    if not recipe.data.path:
        raise ConfigError("there is no corpus: give one with `--data DIR`, or set `data.path` in the recipe")
    index = CorpusIndex.open(recipe.data.path)
    completed = parse_task(recipe.task).for_corpus(index)
    recipe = recipe.model_copy(update={"task": completed.model_dump(mode="json")})

    def build() -> Learner:
        torch.manual_seed(derive_seed(recipe.training.seed, "weights"))
        encoder = build_encoder(recipe.encoder)
        if recipe.edits is not None:
            install(encoder, recipe.edits)
        return Learner(encoder, build_task(recipe.task, encoder))

    learner = build()
    if recipe.edits is not None and isinstance(learner.objective, Task) and learner.objective.finds_language:
        raise ConfigError(
            f"task `{completed.name}` must find the language, but {recipe.start.model} has {recipe.edits.kind} that are chosen by it, "
            "which would give the answer away; start from a dense model (`adapt --recipe adapt/dense`)"
        )
    report = _take_weights(learner, recipe.start)
    report.notes += completed.notes(index)
    encoder = learner.encoder
    loader = SpeechLoader(
        index,
        recipe.data,
        seed=recipe.training.seed,
        rank=dist.rank(),
        world_size=dist.world_size(),
        prepare=encoder.prepare if encoder.normalizes_waveform else None,
        num_frames=encoder.num_frames,
        grouping=recipe.data.grouping(None if recipe.edits is None else "language"),
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
        encoder_from=completed.head_only,
    )


def _take_weights(learner: Learner, start: StartConfig) -> StartReport:
    """Give the encoder the model's weights, and the head those of a model of the same task where they fit."""
    loaded = load_model(start.model)
    found = fingerprint(loaded)
    if start.sha256 and found != start.sha256:
        raise ConfigError(f"{start.model} has changed since this run was configured; start a new run in another folder")
    try:
        learner.encoder.load_state_dict(loaded.encoder.state_dict())
    except RuntimeError as error:
        raise ConfigError(
            f"the weights of {start.model} do not fit the encoder that the recipe describes ({str(error).splitlines()[-1].strip()}); "
            "change only what needs no other tensors: dropouts, layerdrop, feature_gradient_scale, checkpoint_activations"
        ) from None
    task = learner.objective
    assert isinstance(task, Task)
    report = StartReport(start.model, loaded.report.format, found, task.config.name)
    own = task.state_dict()
    heads = loaded.task[1] if start.heads == "take" and loaded.task is not None else {}
    for name, value in own.items():
        theirs = heads.get(name)
        # A vocabulary in another order would fit by shape and mean something else.
        if (
            theirs is not None
            and theirs.shape == value.shape
            and name != "progress"
            and _same_labels(task, loaded.task)
        ):
            value.copy_(theirs)
            report.taken.append(f"task.{name}")
        elif name != "progress":
            report.fresh.append(f"task.{name}")
    report.rule = "they are initialised afresh" if report.fresh else ""
    report.notes = list(loaded.report.notes)
    report.frozen = freeze(learner, start.frozen)
    report.frozen = sorted({*report.frozen, *(f"encoder.{name}" for name in freeze_shared(learner.encoder))})
    return report


def _same_labels(task: Task, theirs: tuple[dict[str, Any], Any] | None) -> bool:
    own = task.config.model_dump(mode="json")
    return theirs is not None and all(own.get(key) == theirs[0].get(key) for key in ("name", "labels", "classes"))


def _save(learner: Learner, folder: Path, extra: dict[str, Any]) -> None:
    assert isinstance(learner.objective, Task)
    save_model(folder, learner.encoder, None, extra, learner.objective)
