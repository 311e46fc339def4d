"""What every method of adaptation is: one file in this folder that turns a recipe into the job that adapts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Protocol

from pydantic import Field

from isogloss.core.config import Config, parse
from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Positive
from isogloss.core.lookup import find_module, names_in, nearest
from isogloss.training.job import Job
from isogloss.training.recipe import Recipe, parse_recipe, recipe_tree

_PACKAGE = "isogloss.adapt"
LENGTHS = ("updates", "passes", "hours")  # of a run
SHARED = frozenset({"base", "guard", "heldout", "judge", "loss_measure", "mixture", "report", "run"})


class MethodConfig(Config):
    """Base of every method's settings (`class Config` in its file); `name` is the file's name."""

    name: str


class Method(Protocol):
    """A method's file: settings, and how the run is built."""

    Config: type[MethodConfig]

    def build(self, recipe: Recipe, config: Any, run_dir: Path) -> Job:
        """Return the job; `recipe.start` names the model and `recipe.data.path` the corpus. Called again on a resume."""
        ...


class AdaptConfig(Config):
    """What all methods share.

    heldout
        Share of the target audio (by speaker, else by recording) that is not trained on: one half of it decides when to stop and
        which update is the model, the other is reported.
    heldout_seconds
        At most so much of each half is measured, and of the source corpus for forgetting.
    evaluate_every
        Passes through the training audio between two measurements.
    patience
        Measurements without a better one after which the run stops; the best update becomes the model.
    replay
        Share of the seconds of training that comes from the replay corpus.
    """

    heldout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    heldout_seconds: Positive = 600.0
    evaluate_every: Positive = 1.0
    patience: Count = 3
    replay: Annotated[float, Field(ge=0, lt=1)] = 0.0


class AdaptRecipe(Config):
    """A recipe of adaptation: what a run of pretraining has, `[method]`, and `[adapt]`; `is_empty` for a budget of zero."""

    recipe: Recipe
    method: dict[str, Any]
    adapt: AdaptConfig
    is_empty: bool = False

    def warnings(self) -> list[str]:
        """Return what is allowed and usually unwise."""
        data = self.recipe.data
        found = self.recipe.warnings()
        if self.method["name"] == "subnetwork" and data.seconds_per_update < 4 * data.micro_batch_seconds:
            found.append(
                f"`data.seconds_per_update` is {data.seconds_per_update:g}, below four times `data.micro_batch_seconds`: an update then "
                "holds few languages, and the weights of the others wait; raise it (memory does not grow with it)"
            )
        return found

    def tree(self) -> dict[str, Any]:
        """Return plain values, as a TOML file has them."""
        own = {"method": self.method, "adapt": self.adapt.model_dump(mode="json")}
        return {**own, **self.recipe.model_dump(mode="json")}


def parse_adapt(tree: Mapping[str, Any], where: str) -> AdaptRecipe:
    """Build a recipe of adaptation; what `[encoder]` and `[objective]` leave open comes from the model that it starts from."""
    rest = {key: value for key, value in tree.items() if key not in ("method", "adapt")}
    method = dict(tree.get("method") or {"name": "continued"})
    module = find_method(str(method.get("name", "continued")))
    config: MethodConfig = parse(module.Config, method, f"{where}: [method]")
    adapt = parse(AdaptConfig, tree.get("adapt", {}), f"{where}: [adapt]")
    if "start" not in rest:
        raise ConfigError(f"{where}: adaptation needs a model to start from; give it with `--from MODEL`")
    training = dict(rest.get("training", {}))
    lengths = [key for key in LENGTHS if training.get(key) is not None]
    if len(lengths) > 1:
        told = " and ".join(f"`training.{key}` = {training[key]}" for key in lengths)
        raise ConfigError(
            f"{where}: one of `training.updates`, `training.passes` (`--passes`) and `training.hours` must say how long the run is, but "
            f"there are {told}; leave one out"
        )
    is_empty = any(training[key] == 0 for key in lengths)
    if is_empty:
        rest["training"] = {key: (1 if key in lengths else v) for key, v in training.items()}
    recipe = parse_recipe(rest, where)
    return AdaptRecipe(recipe=recipe, method=config.model_dump(mode="json"), adapt=adapt, is_empty=is_empty)


def load_adapt(path: Path, overrides: list[str]) -> AdaptRecipe:
    """Read a recipe of adaptation and apply `section.key=value` overrides."""
    return parse_adapt(recipe_tree(path, overrides), str(path))


def find_method(name: str) -> ModuleType:
    """Return a method's file; an unknown name is a `ConfigError` that names the nearest one."""
    known = method_names()  # not the shared modules beside them, which `find_module` would also name
    if name not in known:
        raise ConfigError(f"there is no method of adaptation `{name}`; {nearest(name, known)}")
    return find_module(_PACKAGE, name)


def method_names() -> list[str]:
    """Return the methods that there are."""
    return names_in(_PACKAGE, without=SHARED)
