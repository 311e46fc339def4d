"""`isogloss finetune TASK --from MODEL --data DIR --out RUN`: a task on a frozen, partly frozen or fine-tuned encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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

app = typer.Typer(add_completion=False)


@app.command()
def finetune(
    task: Annotated[str, typer.Argument(help="a task (asr, …), or a TOML file with a \\[task]")],
    out: Annotated[Path, typer.Option(help="folder of the run: checkpoints, log.jsonl, model/")],
    start: Annotated[
        Path | None, typer.Option("--from", help="a model: isogloss or Hugging Face folder, fairseq .pt")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="labelled speech in any accepted form; its training part only")
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="`encoder`, `frontend` or beginnings of parameter names, as often as needed; the recipe's by default"
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Resume = ResumeChoice.auto,
    allow_data_change: AllowDataChange = False,
    dry_run: DryRun = False,
) -> None:
    """Train a task on a model; the same command resumes. Measure it with `isogloss predict`."""
    import json

    from isogloss.core.config import to_toml
    from isogloss.core.dist import launched_rank
    from isogloss.training.finetune import load_finetune
    from isogloss.training.loop import train

    settings = list(overrides or [])
    if data is not None:
        settings.append(f"data.path={quoted(data)}")
    if start is not None:
        settings.append(f"start.model={quoted(start)}")
    if freeze:
        settings.append(f"start.frozen={json.dumps(freeze)}")
    resolved = load_finetune(task, settings)
    if dry_run:
        typer.echo(to_toml(resolved.model_dump(mode="json")))
        return
    is_main = launched_rank() == 0
    say_warnings(resolved.data.warnings(), is_main)
    with energy_record(out, is_main):
        result = train(resolved, out, resume=resume.value, allow_data_change=allow_data_change)
    if is_main:
        typer.echo(
            f"{result.step} updates, {result.audio_seconds / 3600:.2f} hours of audio in {result.seconds / 60:.1f} minutes, "
            f"loss {result.loss:.4g}; model: {result.model_dir}"
        )
