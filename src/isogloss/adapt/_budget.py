"""A budget of passes through little audio: updates small enough that a schedule has time to rise and fall, and as many as fill it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from isogloss.core import dist
from isogloss.core.errors import ConfigError
from isogloss.data.index import CorpusIndex
from isogloss.data.loader import SpeechLoader
from isogloss.training.checkpoint import Checkpoints, read_state
from isogloss.training.job import Job
from isogloss.training.recipe import Recipe, TrainingConfig, changed_settings

ENOUGH = 10  # updates, below which a warm-up is one update or none and the mean of a gradient is all that is learned
_COUNTED = 100  # updates, up to which they are counted instead of computed from their nominal size
_DERIVED = {"data.seconds_per_update", "data.micro_batch_seconds"}  # `with_small_updates` sets them


def budget_seconds(training: TrainingConfig, corpus_seconds: float) -> float | None:
    """Return the seconds of audio that a run is to train on, repeats counted; None where its length is said in updates."""
    if training.hours is not None:
        return 3600 * training.hours
    return None if training.passes is None else training.passes * corpus_seconds


def with_small_updates(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Return the recipe with updates of which its budget has `ENOUGH`, and a sentence where that took smaller ones.

    An update stays as long as the longest utterance and as what its processes need to have some each. It keeps its number of
    micro-batches as far as an utterance fits into each.
    """
    data, index = recipe.data, CorpusIndex.open(recipe.data.path)
    budget = budget_seconds(recipe.training, index.seconds)
    if budget is None:
        return recipe, []
    longest = min(float(index.durations.max()), data.max_seconds)
    seconds = max(budget / ENOUGH, longest, _least_seconds(recipe, index))
    if seconds >= data.seconds_per_update:
        return recipe, []
    micro = min(data.micro_batch_seconds * seconds / data.seconds_per_update, seconds / _num_bins(recipe))
    smaller = {"seconds_per_update": seconds, "micro_batch_seconds": max(micro, data.max_seconds)}
    said = (
        f"`data.seconds_per_update` is {seconds:.3g} instead of {data.seconds_per_update:g}: the budget is {budget:.3g} s of audio, which "
        f"would be {budget / data.seconds_per_update:.2g} updates"
    )
    return recipe.model_copy(update={"data": data.model_copy(update=smaller)}), [said]


def fill_budget(job: Job, recipe: Recipe) -> list[str]:
    """Give a short job as many updates as its budget holds, counted in what they draw; return a warning where they are too few.

    What an update holds is below its nominal size, by half an utterance on average, which adds up where updates are small.
    """
    budget = budget_seconds(recipe.training, CorpusIndex.open(recipe.data.path).seconds)
    if budget is None:
        return []
    job.total_updates = updates_in(job, recipe, budget)
    if job.total_updates >= ENOUGH:
        return []
    return [
        f"the budget is {job.total_updates} update{'s' * (job.total_updates != 1)} only, in which little can be learned; give more "
        "`--passes`, or more audio"
    ]


def updates_in(job: Job, recipe: Recipe, seconds: float) -> int:
    """Return how many updates hold so many seconds of audio: counted where they are few, else from the size of one."""
    size = max(recipe.data.seconds_per_update, _least_seconds(recipe, CorpusIndex.open(recipe.data.path)))
    nominal = max(1, math.ceil(seconds / size))
    if nominal <= _COUNTED and isinstance(job.loader, SpeechLoader):
        return job.loader.num_updates(seconds)
    return nominal


def set_measurements(job: Job, recipe: Recipe, passes: float) -> None:
    """Have a job measured, and a checkpoint of it kept, after every so many passes through its audio."""
    every = updates_in(job, recipe, passes * CorpusIndex.open(recipe.data.path).seconds)
    # However many checkpoints are kept, the loop spares the best.
    schedule = {"probe_every": every, "checkpoint_every": every}
    job.training = job.training.model_copy(update=schedule)
    job.config = {**job.config, "training": {**job.config["training"], **schedule}}


def check_length(job: Job, run_dir: Path) -> None:
    """Refuse to go on with a run that was begun with another number of updates: `ConfigError`.

    Its learning rates were those of another length, and one that is finished would train on. Where settings differ, the loop
    names them.
    """
    state = _newest_state(Checkpoints(run_dir, job.training.keep))
    if state is None or changed_settings(state["config"], job.config).keys() - _DERIVED:
        return
    old, finished = state.get("total_updates"), run_dir / "adapt.json"
    if old is None and finished.exists():  # an older isogloss made it
        old = json.loads(finished.read_text(encoding="utf-8")).get("planned_updates") or None
    if old not in (None, job.total_updates):
        raise ConfigError(
            f"{run_dir} was begun with {old} updates, but the same budget is {job.total_updates} now; usually because the number of "
            "processes is another one, or an older isogloss counted them; go on with as many processes as before, or make the run again "
            "in a new folder"
        )


def _newest_state(checkpoints: Checkpoints) -> dict[str, Any] | None:
    for step in reversed(checkpoints.steps()):
        try:
            return read_state(checkpoints.path(step))
        except (OSError, ValueError):  # damaged: the loop says so
            continue
    return None


def _num_bins(recipe: Recipe) -> int:
    """Return of what number the bins of an update are a multiple."""
    return math.lcm(dist.world_size(), recipe.data.bins_multiple_of)


def _least_seconds(recipe: Recipe, index: CorpusIndex) -> float:
    """Return about how much an update holds at least, where every one of its bins holds one draw.

    A draw is an utterance, or a micro-batch where those hold one language each. The recipe does not tell whether the objective wants
    that too; then it is more than this.
    """
    data = recipe.data
    lengths = np.minimum(index.durations[index.durations >= data.min_seconds].astype(np.float64), data.max_seconds)
    if not len(lengths):
        return 0.0
    mean = float(lengths.mean())
    # A micro-batch is at least as long as the longest utterance may be, and on average lacks half an utterance.
    draw = max(mean, data.max_seconds - mean / 2) if data.grouping(None) else mean
    return _num_bins(recipe) * draw
