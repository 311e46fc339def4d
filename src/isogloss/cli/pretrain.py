"""`isogloss pretrain RECIPE --data DIR --out RUN`: train an encoder on unlabelled speech."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isogloss.cli._run import (
    AllowDataChange,
    DryRun,
    Overrides,
    Resume,
    ResumeChoice,
    energy_record,
    quoted,
    say_warnings,
)

if TYPE_CHECKING:
    from isogloss.encoders.base import Encoder
    from isogloss.training.iterations import Iteration

app = typer.Typer(add_completion=False)


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="a TOML file, or a name that `isogloss recipes list` shows")],
    out: Annotated[Path, typer.Option(help="folder of the run: checkpoints, log.jsonl, model/")],
    data: Annotated[Path | None, typer.Option(help="prepared corpus, cuts file or Shar folder")] = None,
    overrides: Overrides = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="start from this model (isogloss or Hugging Face folder, fairseq file)"),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="with --from: what is not trained: frontend, encoder.layers.0, objective.quantizer, …"),
    ] = None,
    resume: Resume = ResumeChoice.auto,
    allow_data_change: AllowDataChange = False,
    probe_data: Annotated[
        Path | None,
        typer.Option(help="corpus to probe the encoder on while it trains: phones and languages, as labelled"),
    ] = None,
    probe_every: Annotated[
        int | None,
        typer.Option(help="with --probe-data: updates between two probes; the recipe's, or 1000, by default", min=1),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    r"""Train an encoder on unlabelled speech, or continue; the same command resumes exactly where the run stopped.

    With --from the encoder, its weights and the heads that it has come from that model; what was taken and what was made afresh
    is said, and written to `start.json`. Schedule and optimiser start anew.

    A recipe with \[labels] makes units first; one with [\[iterations]] labels and trains in turn, in RUN/1, RUN/2, ….

    Several processes: `torchrun --nproc-per-node N -m isogloss pretrain …`. Exit codes: 0 all is done and saved, 143 (SIGTERM),
    130 (Ctrl-C) and 75 (SIGUSR1: requeue me) saved and resumable, 76 stood still, 2 a mistake in the recipe, 1 anything else.
    """
    import json

    from isogloss.core.config import to_toml
    from isogloss.core.dist import launched_rank
    from isogloss.labelling.iterations import run_iterations
    from isogloss.training.iterations import load_iterations
    from isogloss.training.probing import check_probed

    settings = list(overrides or [])
    if data is not None:
        settings.append(f"data.path={quoted(data)}")
    if start is not None:
        settings.append(f"start.model={quoted(start)}")
    if freeze:
        settings.append(f"start.frozen={json.dumps(freeze)}")
    if probe_every is not None:
        settings.append(f"training.probe_every={probe_every}")
    iterations = load_iterations(recipe, settings)
    if probe_data is not None:
        iterations = [_probed(turn) for turn in iterations]
    remedy = "give speech with phones or languages as labels with `isogloss pretrain --probe-data DIR`"
    for turn in iterations:
        check_probed(turn.recipe.training.probe_every, has_probe=probe_data is not None, remedy=remedy)
    is_main = launched_rank() == 0
    say_warnings((warning for turn in iterations for warning in turn.recipe.warnings()), is_main)
    if dry_run:
        for turn in iterations:
            tree = turn.recipe.model_dump(mode="json")
            typer.echo(
                to_toml(tree if turn.labels is None else {**tree, "labels": turn.labels.model_dump(mode="json")})
            )
        return
    probe = None if probe_data is None else _probe(probe_data, is_main)
    with energy_record(out, is_main):
        result = run_iterations(
            iterations,
            out,
            resume=resume.value,
            allow_data_change=allow_data_change,
            probe=probe,
            say=lambda message: typer.echo(message, err=True) if is_main and len(iterations) > 1 else None,
        )
    if is_main:
        typer.echo(
            f"{result.step} updates, {result.audio_seconds / 3600:.2f} hours of audio in {result.seconds / 60:.1f} minutes, "
            f"loss {result.loss:.4g}; model: {result.model_dir}"
        )


def _probed(turn: Iteration) -> Iteration:
    """Return a turn that is probed: as often as it says itself, else every thousand updates."""
    from dataclasses import replace

    training = turn.recipe.training
    every = training.model_copy(update={"probe_every": training.probe_every or 1000})
    return replace(turn, recipe=turn.recipe.model_copy(update={"training": every}))


def _probe(data: Path, is_main: bool) -> Callable[[Encoder, int], dict[str, Any]]:
    from isogloss.core.errors import DataError
    from isogloss.data.inputs import open_corpus
    from isogloss.evaluation.quick import NOTHING_MEASURED, measurable, quick_probe

    cuts = list(open_corpus(data))
    found = measurable(cuts)
    if not found:
        raise DataError(f"`--probe-data`: {NOTHING_MEASURED.format(data)}; attach labels, or leave it out")
    if is_main:
        typer.echo(f"probes measure, on {data}: {' and '.join(found)}", err=True)
    return lambda encoder, step: quick_probe(encoder, cuts)
