"""Units for objectives that predict them: those of replayed audio join those of the target, and all mean the same clusters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from isogloss.adapt.mixture import Mixture
from isogloss.core.errors import ConfigError
from isogloss.data.index import CorpusIndex
from isogloss.data.units import CLUSTERS, UnitTable
from isogloss.training.recipe import Recipe


def check_units(
    recipe: Recipe, *, replays: bool, source: bool, replay_units: str | None, source_units: str | None
) -> None:
    """Refuse, before anything is computed, a corpus without units where the recipe names units, and units of other clusters.

    Raises `ConfigError`, also for units that the objective does not predict; `DataError` for a folder that is no table of units.
    """
    units = recipe.data.units
    if units and not _predicts_units(recipe.objective):
        raise ConfigError(
            f"`--units {units}` must go with an objective that predicts units, but `{recipe.objective['name']}` does not and would not "
            "read them; leave it out, or choose such an objective (`--set objective.name=hubert`)"
        )
    for wanted, own, flag, what in (
        (replays, replay_units, "--replay-units", "replayed"),
        (source, source_units, "--source-units", "source"),
    ):
        if own is not None and not (wanted and units):
            raise ConfigError(
                f"`{flag}` must go with {what} audio and with `--units` of the target, but one of them is not given; leave it out"
            )
        if wanted and units and own is None:
            raise ConfigError(
                f"the {what} audio must have units too, but none are given; label it with the same clusters as the target (`isogloss label "
                f"--clusters {units}`) and give them with `{flag}`"
            )
        if own is not None and units and not same_units(Path(units), Path(own)):
            raise ConfigError(
                f"the units in {own} must be of the same clusters as those in {units}, but are of others; label with `isogloss label "
                f"--clusters {units}`"
            )
    for table in (units, replay_units, source_units):
        if table:
            UnitTable(table)
    start = recipe.start
    takes_heads = start is not None and start.heads == "take"
    if units and takes_heads and start is not None and not same_units(Path(start.model), Path(units)):
        raise ConfigError(
            f"the units in {units} must be of the clusters that {start.model} predicts, but are of others, so its head would have to "
            f"unlearn them; label with `isogloss label --clusters {start.model}`, or set `start.heads=fresh`"
        )


def _predicts_units(objective: Mapping[str, Any]) -> bool:
    """Return whether an objective of these settings, or one of its parts, predicts units."""
    parts = [part["objective"] for part in objective.get("parts", {}).values()]
    return "num_units" in objective or any(_predicts_units(part) for part in parts)


def join_units(folder: Path, target: str, replay: str, mixture: Mixture) -> str:
    """Write the units of a mixture, `folder`: of each target utterance its own, of each replayed one those of what it copies."""
    if not (folder / "units.json").is_file():
        own, other = UnitTable(target), UnitTable(replay)
        names = [
            name
            for corpus in (mixture.train, mixture.choosing, mixture.reporting)
            for name in _ids(corpus)
            if name not in mixture.replayed
        ]
        UnitTable.join(
            folder,
            [
                *((name, own, name) for name in dict.fromkeys(names)),
                *((name, other, original) for name, original in mixture.replayed.items()),
            ],
        )
    return str(folder)


def same_units(first: Path, second: Path) -> bool:
    """Return False where two tables, or models that were trained on one, are of clusters with other centroids."""
    own, other = _centroids(first), _centroids(second)
    return own is None or other is None or (own.shape == other.shape and torch.equal(own, other))


def _centroids(folder: Path) -> Tensor | None:
    try:
        return load_file(folder / CLUSTERS)["centroids_CD"]
    except (OSError, SafetensorError, KeyError):
        return None  # made elsewhere: nothing can be said


def _ids(corpus: Path) -> list[str]:
    index = CorpusIndex.open(corpus)
    return [index.cut_id(row) for row in range(len(index))]
