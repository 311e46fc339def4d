"""Label, train, label with what was trained, train anew: any number of iterations in one folder, each step resumable.

RUN/1/units    the table that iteration 1 is trained on
RUN/1/model    what it leaves; iteration 2 clusters a layer of it
RUN/2/…
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from isogloss.core import dist
from isogloss.core.errors import ConfigError
from isogloss.labelling.label import Labelled, Progress, label_corpus
from isogloss.training.iterations import Iteration, LabelConfig
from isogloss.training.loop import Probe, TrainResult, train
from isogloss.training.recipe import Recipe
from isogloss.training.rundir import Resume

_LABEL_TIMEOUT = 7200.0  # a rank may wait for another one's piece of the corpus; seconds


def run_iterations(
    iterations: Sequence[Iteration],
    run_dir: Path | str,
    *,
    resume: Resume = "auto",
    allow_data_change: bool = False,
    probe: Probe | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> TrainResult:
    """Run every iteration, or go on where the last one stopped; return the result of the last. Every rank calls this.

    Iteration i lies in `run_dir/i`; a single one lies in `run_dir` itself. What is finished is not done again.
    """
    run_dir = Path(run_dir)
    result: TrainResult | None = None
    seconds = max(1.2 * iteration.recipe.training.timeout_seconds for iteration in iterations)
    if any(iteration.labels is not None for iteration in iterations):
        seconds = max(seconds, _LABEL_TIMEOUT)
    with dist.process_group(seconds):
        for number, iteration in enumerate(iterations, 1):
            place = run_dir / str(number) if len(iterations) > 1 else run_dir
            recipe = iteration.recipe
            if iteration.labels is not None:
                labels = _of_model(iteration.labels, recipe, None if result is None else result.model_dir)
                made = label_corpus(labels, recipe.data.path, place / "units", progress=progress)
                say(f"iteration {number}: {describe(made)}")
                recipe = recipe.model_copy(
                    update={"data": recipe.data.model_copy(update={"units": str(place / "units")})}
                )
            has_begun = (place / "checkpoints").is_dir()
            result = train(
                recipe,
                place,
                resume="auto" if resume == "must" and not has_begun and number > 1 else resume,
                allow_data_change=allow_data_change,
                probe=probe,
            )
            say(f"iteration {number}: {result.step} updates, loss {result.loss:.4g}; model: {result.model_dir}")
    assert result is not None
    return result


def describe(made: Labelled) -> str:
    """Return what was labelled, in a line."""
    table = made.table
    fit = f"clusters of {made.clusters}" if made.inertia is None else f"mean squared distance {made.inertia:.4g}"
    return (
        f"{table.header['num_labels']:,} labels of {table.hop / 16:g} ms for {table.header['num_utterances']:,} utterances: "
        f"{made.num_used} of {table.num_units} units used, perplexity {made.perplexity:.1f}, {fit}; "
        f"{table.folder}"
    )


def _of_model(labels: LabelConfig, recipe: Recipe, previous: Path | None) -> LabelConfig:
    """Fill in the model whose layer is clustered: the previous iteration's, or the one that training starts from."""
    if not recipe.data.path:
        raise ConfigError("there is no corpus: give one with `--data DIR`, or set `data.path` in the recipe")
    if labels.features != "model" or labels.model is not None:
        return labels
    if previous is not None:
        return labels.model_copy(update={"model": str(previous)})
    if recipe.start is not None:
        return labels.model_copy(update={"model": recipe.start.model})
    raise ConfigError(
        'the first iteration has no model before it: set `labels.features = "mfcc"`, or name one in `labels.model` or with --from'
    )
