"""`isogloss predict --model RUN/model --data DIR --out FILE`: what a fine-tuned model says of a corpus, and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def predict(
    model: Annotated[Path, typer.Option(help="the model/ folder that `isogloss finetune` leaves")],
    data: Annotated[Path, typer.Option(help="a corpus in any accepted form")],
    out: Annotated[Path | None, typer.Option(help="write a line of JSON for each utterance: id, text, speaker")] = None,
    results: Annotated[Path | None, typer.Option(help="append the figures to this JSON lines file")] = None,
    name: Annotated[str, typer.Option(help="of the system in the results; the run's by default")] = "",
    language: Annotated[str | None, typer.Option(help="that of utterances which say none")] = None,
) -> None:
    """Let a fine-tuned model transcribe or classify a corpus; labelled utterances are scored, speakers resampled."""
    import torch
    from rich.console import Console

    from isogloss.cli.probe import _name, progress_bar
    from isogloss.data.inputs import open_corpus
    from isogloss.evaluation.tables import to_rich, write_results
    from isogloss.evaluation.tasks import load_task, run_task, task_records, write_predictions

    encoder, task = load_task(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuts = list(open_corpus(data, language=language))
    with progress_bar(f"running {task.config.name}") as progress:
        result = run_task(encoder.to(device), task.to(device), cuts, progress=progress)
    console = Console(width=None if Console().is_terminal else 200)
    if out is not None:
        write_predictions(out, result)
        console.print(f"predictions: {out}", highlight=False, markup=False)
    if any(result.references):
        rows = task_records(task, result, cuts, system=name or _name(model), dataset=_name(data))
        console.print(to_rich(rows))
        if results is not None:
            write_results(results, rows, append=True)
            console.print(f"results: {results}", highlight=False, markup=False)
    elif out is None:
        for identifier, text in zip(result.ids, result.predictions, strict=True):
            console.print(f"{identifier}\t{text}", highlight=False, markup=False)
