"""What `isogloss recipes check` checks: recipes of pretraining, adaptation and tasks, and suites, told apart by their sections.

Adaptation and fine-tuning take encoder and objective from a model. Where the recipe names none, everything else is checked with
stand-ins in their places, and the verdict says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isogloss.training.recipe import Recipe, TrainingConfig

_ENCODER, _OBJECTIVE = "wav2vec2-base", "wav2vec2"  # stand-ins


@dataclass(frozen=True)
class Checked:
    """One row of the table: `encoder` and `objective` are numbers of parameters, None where a model decides them."""

    encoder: int | None
    objective: int | None
    seconds_per_update: str
    length: str
    verdict: str


def check_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Checked:
    """Check every key and value of a recipe, whatever verb it is for; a fault is a `ConfigError`."""
    from isogloss.training.recipe import find_recipe, recipe_tree

    path = find_recipe(name)
    tree = recipe_tree(path)
    if _names_systems(tree):
        return _suite(path, overrides)
    if "method" in tree or "adapt" in tree:
        return _adaptation(path, overrides)
    if "task" in tree:
        return _task(path, overrides)
    return _pretraining(path, overrides)


def is_suite(name: str | Path) -> bool:
    """Return whether a recipe is a suite of systems, which `--set` cannot change; one that cannot be read is a `ConfigError`."""
    from isogloss.training.recipe import find_recipe, recipe_tree

    return _names_systems(recipe_tree(find_recipe(name)))


def _names_systems(tree: Mapping[str, Any]) -> bool:
    return "budgets" in tree or "systems" in tree


def _pretraining(path: Path, overrides: Sequence[str]) -> Checked:
    from isogloss.training.iterations import parse_iteration
    from isogloss.training.recipe import iteration_trees
    from isogloss.training.sizes import count_parameters

    trees = iteration_trees(path, overrides)
    told: dict[str, None] = {}  # of all turns, each once
    for number, tree in enumerate(trees, 1):
        where = f"{path}: iteration {number}" if len(trees) > 1 else str(path)
        filled, notes = _without_model(tree, where)
        recipe = parse_iteration(filled, where).recipe
        encoder, objective = (None, None) if notes else count_parameters(recipe)
        told |= dict.fromkeys([*recipe.warnings(), *notes])
    return _of_recipe(recipe, encoder, objective, list(told))


def _adaptation(path: Path, overrides: Sequence[str]) -> Checked:
    from isogloss.adapt.base import AdaptConfig, find_method, load_adapt
    from isogloss.core.config import parse
    from isogloss.training.recipe import parse_recipe, recipe_tree
    from isogloss.training.sizes import count_parameters

    tree = recipe_tree(path, overrides)
    filled, notes = _without_model(tree, str(path))
    if not notes:
        adapt = load_adapt(path, list(overrides))
        return _of_recipe(adapt.recipe, *count_parameters(adapt.recipe), adapt.warnings())
    method = dict(filled.pop("method", {"name": "continued"}))
    parse(find_method(str(method.get("name", "continued"))).Config, method, f"{path}: [method]")
    parse(AdaptConfig, filled.pop("adapt", {}), f"{path}: [adapt]")
    return _of_recipe(parse_recipe(filled, str(path)), None, None, notes)


def _task(path: Path, overrides: Sequence[str]) -> Checked:
    from isogloss.core.config import parse
    from isogloss.encoders.presets import preset
    from isogloss.tasks.base import parse_task
    from isogloss.training.finetune import FinetuneRecipe, load_finetune
    from isogloss.training.recipe import recipe_tree

    tree = recipe_tree(path, overrides)
    if _model_of(tree):
        recipe, notes = load_finetune(str(path), overrides), []
    else:
        task = parse_task(tree.get("task") or {}, f"{path}: [task]")
        left: dict[str, Any] = {key: tree.pop(key) for key in ("encoder", "edits") if key in tree}
        filled = {
            **tree,
            "start": {"model": "MODEL", **(tree.get("start") or {})},
            "encoder": preset(_ENCODER).model_dump(mode="json"),
            "task": task.model_dump(mode="json"),
            "data": {"path": "", **(tree.get("data") or {})},
        }
        recipe, notes = parse(FinetuneRecipe, filled, str(path)), [_note(left)]
    seconds = f"{recipe.data.seconds_per_update:,g}"
    return Checked(None, None, seconds, _length(recipe.training), "; ".join(["good", *notes]))


def _suite(path: Path, overrides: Sequence[str]) -> Checked:
    from isogloss.benchmark.suite import load_suite
    from isogloss.core.errors import ConfigError

    if overrides:
        raise ConfigError(f"{path}: `--set` cannot change a suite of systems; copy it with `isogloss recipes copy`")
    suite = load_suite(path)
    budgets = ", ".join(f"{name} {budget.train_seconds / 3600:g} h" for name, budget in suite.budgets.items())
    return Checked(None, None, "", budgets, f"good; {len(suite.systems)} systems")


def _without_model(tree: Mapping[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Return the tree and no notes where it says what is trained; else a tree with stand-ins, and what that leaves unchecked."""
    from isogloss.core.config import parse
    from isogloss.training.start import StartConfig

    filled = dict(tree)
    if _model_of(tree):
        return filled, []
    if "start" not in tree and "method" not in tree and "adapt" not in tree:
        return filled, []  # trained from random weights: it must say all itself
    parse(StartConfig, {"model": "MODEL", **(filled.pop("start", None) or {})}, f"{where}: [start]")
    left: dict[str, Any] = {}
    for section, key, stand_in in (
        ("encoder", "kind", {"preset": _ENCODER}),
        ("objective", "name", {"name": _OBJECTIVE}),
    ):
        wished = filled.get(section) or {}
        if key not in wished and "preset" not in wished:
            left |= {section: wished} if wished else {}
            filled[section] = stand_in
    return filled, [_note(left)]


def _model_of(tree: Mapping[str, Any]) -> str:
    start = tree.get("start")
    return str(start.get("model", "")) if isinstance(start, Mapping) else ""


def _note(left: Mapping[str, Any]) -> str:
    sections = " and ".join(f"[{name}]" for name in left)
    unchecked = f", so {sections} could not be checked" if left else ""
    return f"starts from a model that it does not name{unchecked}"


def _of_recipe(recipe: Recipe, encoder: int | None, objective: int | None, notes: Sequence[str]) -> Checked:
    seconds = f"{recipe.data.seconds_per_update:,g}"
    return Checked(encoder, objective, seconds, _length(recipe.training), "; ".join(["good", *notes]))


def _length(training: TrainingConfig) -> str:
    return next(f"{v:,} {k}" for k in ("updates", "passes", "hours") if (v := getattr(training, k)) is not None)
