"""A budget of passes through little audio: updates small enough that a schedule has time to rise and fall, and as many as fill it."""

from __future__ import annotations

from isogloss.data.index import CorpusIndex
from isogloss.data.loader import SpeechLoader
from isogloss.training.job import Job
from isogloss.training.recipe import Recipe, TrainingConfig

ENOUGH = 10  # updates, below which a warm-up is one update or none and the mean of a gradient is all that is learned
_COUNTED = 100  # updates, up to which they are counted instead of computed from their nominal size


def budget_seconds(training: TrainingConfig, corpus_seconds: float) -> float | None:
    """Return the seconds of audio that a run is to train on, repeats counted; None where its length is said in updates."""
    if training.hours is not None:
        return 3600 * training.hours
    return None if training.passes is None else training.passes * corpus_seconds


def with_small_updates(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """Return the recipe with updates of which its budget has `ENOUGH`, and a sentence where that took smaller ones.

    An update stays as long as the longest utterance, and keeps its number of micro-batches as far as an utterance fits into each.
    """
    data, index = recipe.data, CorpusIndex.open(recipe.data.path)
    budget = budget_seconds(recipe.training, index.seconds)
    if budget is None:
        return recipe, []
    longest = min(float(index.durations.max()), data.max_seconds)
    seconds = max(budget / ENOUGH, longest)
    if seconds >= data.seconds_per_update:
        return recipe, []
    micro = max(data.micro_batch_seconds * seconds / data.seconds_per_update, data.max_seconds)
    smaller = {"seconds_per_update": seconds, "micro_batch_seconds": min(micro, data.micro_batch_seconds)}
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
    if job.total_updates <= _COUNTED and isinstance(job.loader, SpeechLoader):
        job.total_updates = job.loader.num_updates(budget)
    if job.total_updates >= ENOUGH:
        return []
    return [
        f"the budget is {job.total_updates} update{'s' * (job.total_updates != 1)} only, in which little can be learned; give more "
        "`--passes`, or more audio"
    ]
