"""A recipe: everything that decides what a run computes, in one TOML file; presets derive, nothing else does."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from isogloss.core.config import Config, apply_overrides, parse, read_toml
from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Positive
from isogloss.core.lookup import find_module, nearest
from isogloss.data.loader import DataConfig
from isogloss.data.text_loader import TextData
from isogloss.encoders.language_edits import EditsConfig
from isogloss.encoders.presets import EncoderConfig, preset
from isogloss.training.optim import OptimConfig
from isogloss.training.parallel import Parallel
from isogloss.training.schedule import ScheduleConfig
from isogloss.training.start import StartConfig, resolve_start

RECIPES = Path(__file__).parent.parent / "recipes"


class TrainingConfig(Config):
    """How long a run lasts, in which precision, and what it writes when.

    Say one of `updates`, `passes` (through the corpus) and `hours` (of audio, repeats counted). `bf16` computes matrix
    products in bfloat16 and keeps weights, sums and the optimizer in fp32. `threads` of each process are the cores divided by
    the processes of a machine where it is not given.
    """

    updates: Count | None = None
    passes: Positive | None = None
    hours: Positive | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    parallel: Parallel = "ddp"
    seed: Annotated[int, Field(ge=0)] = 1
    threads: Count | None = None
    log_every: Count = 10
    checkpoint_every: Count = 1000
    keep: Count = 3
    probe_every: Count | None = None
    timeout_seconds: Positive = 300.0

    @model_validator(mode="after")
    def _check(self) -> TrainingConfig:
        given = [name for name in ("updates", "passes", "hours") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"one of `updates`, `passes` and `hours` must be given, but there {'are ' + ', '.join(given) if given else 'is none'}"
            )
        return self

    def total_updates(self, seconds_per_update: float, corpus_seconds: float) -> int:
        """Return the length of the run in updates."""
        if self.updates is not None:
            return self.updates
        seconds = self.hours * 3600 if self.hours is not None else (self.passes or 0.0) * corpus_seconds
        return max(1, math.ceil(seconds / seconds_per_update))


class Recipe(Config):
    """The whole configuration of a pretraining run.

    With `start` the encoder and its weights come from a model, and `encoder` holds what differs from that model's own.
    `edits` make the encoder depend on the language (encoders/language_edits.py).
    `published_seconds_per_update` is the batch of the publication that the recipe follows; a run with less is warned.
    """

    encoder: EncoderConfig
    objective: dict[str, Any]
    data: DataConfig
    text: TextData | None = None
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    training: TrainingConfig
    start: StartConfig | None = None
    edits: EditsConfig | None = None
    published_seconds_per_update: Positive | None = None

    def warnings(self) -> list[str]:
        """Return what is allowed and usually unwise."""
        published, own = self.published_seconds_per_update, self.data.seconds_per_update
        found = self.data.warnings()
        if published is not None and own < published:
            found.append(
                f"`data.seconds_per_update` is {own:g}, below the published {published:g} ({published / own:.0f} times less): "
                "small batches can collapse; raise it (memory does not grow with it, only time), or train longer at a lower rate"
            )
        return found


# A change of these does not change what a run computes, so a resumed run may have it.
_FREE = {
    *(
        f"training.{key}"
        for key in ("threads", "log_every", "checkpoint_every", "keep", "probe_every", "timeout_seconds")
    ),
    "training.parallel",
    # where the corpus lies may change, what it holds may not: its manifest hash is compared
    *(
        f"data.{key}"
        for key in ("path", "num_workers", "prefetch", "timeout_seconds", "start_method", "max_rejected", "units")
    ),
    "published_seconds_per_update",
    "text.paths",
    # the model that a run started from may move, what it holds may not change: its hash is compared
    "start.model",
}


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by its file or by the name of one that comes with isogloss, and apply `section.key=value` overrides.

    Raises `ConfigError`, in one line, for anything unknown or out of range.
    """
    path = find_recipe(name)
    tree = iteration_trees(path, overrides)[-1]
    return parse_recipe({key: value for key, value in tree.items() if key != "labels"}, str(path))


def iteration_trees(path: Path, overrides: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the tree of each of a recipe's iterations (`training.iterations`), one where it states none."""
    tree = recipe_tree(path)
    changes = tree.pop("iterations", [{}])
    if not isinstance(changes, list) or not changes or not all(isinstance(change, Mapping) for change in changes):
        raise ConfigError(f"{path}: `iterations` must be a list of sections; write [[iterations]] for each")
    wished = _name_preset(apply_overrides({}, overrides))
    if "iterations" in wished:
        raise ConfigError(f"{path}: `--set iterations…` is not possible; copy the recipe and change it there")
    trees = [merge_trees(merge_trees(tree, change), wished) for change in changes]
    for tree in trees:
        labels, objective = tree.get("labels"), tree.get("objective")
        if isinstance(labels, Mapping) and isinstance(objective, dict) and "num_units" in labels:
            # How many units are predicted follows from how many are made.
            tree["objective"] = {**objective, "num_units": labels["num_units"]}
    return trees


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe: a path as it is, or the name of a shipped one (`wav2vec2-base`, `pretrain/cpc`)."""
    path = Path(name)
    if path.is_file():
        return path
    wanted = str(name).removesuffix(".toml")
    shipped = {str(p.relative_to(RECIPES).with_suffix("")): p for p in shipped_recipes()}
    for candidate in (wanted, f"pretrain/{wanted}"):
        if candidate in shipped:
            return shipped[candidate]
    names = [known.removeprefix("pretrain/") for known in shipped]
    raise ConfigError(
        f"there is no recipe `{name}`, neither a file nor one that comes with isogloss; {nearest(wanted, names)}"
    )


def shipped_recipes() -> list[Path]:
    """Return the files of the recipes that come with isogloss."""
    return sorted(RECIPES.rglob("*.toml"))


def recipe_tree(path: Path, overrides: Sequence[str] = (), seen: frozenset[Path] = frozenset()) -> dict[str, Any]:
    """Return the tree of a recipe with what it extends and what is overridden merged in."""
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `extends` goes round in a circle")
    tree = _name_preset(read_toml(path))
    if "extends" in tree:
        beside = path.parent / f"{tree.pop('extends')}".removesuffix(".toml")
        beside = beside.with_name(beside.name + ".toml")
        parent = beside if beside.is_file() else find_recipe(beside.stem)
        tree = merge_trees(recipe_tree(parent, seen=seen | {path.resolve()}), tree)
    return merge_trees(tree, _name_preset(apply_overrides({}, overrides)))


def parse_recipe(tree: Mapping[str, Any], where: str) -> Recipe:
    """Build a recipe from a tree; the preset of the encoder, or the encoder of the model that the run starts from, and the
    defaults of the objective are filled in.

    `data.path` is empty where the tree names no corpus yet.
    """
    filled = dict(tree)
    if isinstance(tree.get("start"), Mapping):
        filled = resolve_start(tree, where)
    encoder, data, objective = filled.get("encoder"), filled.get("data", {}), filled.get("objective")
    if isinstance(encoder, Mapping) and "preset" in encoder:
        base = preset(str(encoder["preset"])).model_dump(mode="json")
        filled["encoder"] = merge_trees(base, {key: value for key, value in encoder.items() if key != "preset"})
    if isinstance(data, Mapping):
        filled["data"] = {"path": "", **data}
    if isinstance(objective, Mapping) and "name" in objective:
        module = find_module("isogloss.objectives", str(objective["name"]))
        filled["objective"] = parse(module.Config, objective, f"{where}: [objective]").model_dump(mode="json")
    return parse(Recipe, filled, where)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `key (was …, is …)` for every difference of two resolved recipes that changes what a run computes."""
    return [f"`{key}` (was {was!r}, is {now!r})" for key, (was, now) in changed_settings(old, new).items()]


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return both values of every setting that differs and changes what a run computes, by its key; None where it is not set."""
    before, after = _flatten(old), _flatten(new)
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and key not in _FREE
    }


def _name_preset(tree: dict[str, Any]) -> dict[str, Any]:
    if isinstance(tree.get("encoder"), str):
        tree["encoder"] = {"preset": tree["encoder"]}
    return tree


def merge_trees(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees; a section that becomes another thing (its `name`, `kind` or `preset` differs) starts afresh."""
    merged = dict(base)
    if "start" in change and "start" not in base:
        merged.pop("encoder", None)  # the model's own encoder takes the place of the one that is inherited
    if any(key in change for key in _LENGTHS):
        merged = {key: value for key, value in merged.items() if key not in _LENGTHS}
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if key == "labels" and "clusters" in value:
                old = without_fitting(old, value)
            tags = ("kind", "preset", "name") if key in ("encoder", "objective") else ()
            is_other = any(tag in value and value[tag] != old.get(tag) for tag in tags)
            merged[key] = dict(value) if is_other else merge_trees(old, value)
        else:
            merged[key] = value
    return merged


def without_fitting(labels: Mapping[str, Any], said: Collection[str]) -> dict[str, Any]:
    """Return settings of labels whose clusters are given elsewhere: how they would fit their own is dropped, where not `said` there."""
    return {key: value for key, value in labels.items() if key not in FITTING or key in said}


FITTING = ("fit_share", "seed", "restarts")  # settings of k-means, which clusters that are there already do not need
_LENGTHS = ("updates", "passes", "hours")  # a recipe that says one of them replaces the one that it inherits


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = value
    return flat
