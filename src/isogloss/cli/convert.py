"""`isogloss convert MODEL FOLDER`: a Hugging Face or fairseq checkpoint becomes an isogloss folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def convert(
    model: Annotated[Path, typer.Argument(help="A Hugging Face folder or a fairseq .pt file (nothing in it is run).")],
    folder: Annotated[Path, typer.Argument(help="Where to write isogloss.json and model.safetensors.")],
) -> None:
    """Turn a Hugging Face or fairseq checkpoint into an isogloss folder; heads are kept."""
    from isogloss.encoders.language_edits import dense_tensors, split_rows
    from isogloss.hub.load import load_model
    from isogloss.hub.save import write_folder

    loaded = load_model(model)
    tensors = {f"encoder.{name}": tensor for name, tensor in dense_tensors(loaded.encoder).items()}
    tensors |= {f"objective.{name}": tensor for name, tensor in loaded.head_tensors.items()}
    extra = {"converted_from": loaded.report.format, "source": model.name}
    edits = None if loaded.encoder.edits is None else (loaded.encoder.edits, split_rows(loaded.encoder))
    write_folder(folder, tensors, loaded.encoder.config, loaded.objective_tree, extra, edits)
    for name in loaded.report.fresh:
        typer.echo(f"initialised afresh: {name}")
    for note in loaded.report.notes:
        typer.echo(f"note: {note}")
    heads = f" and {len(loaded.head_tensors)} tensors of heads" if loaded.head_tensors else ""
    typer.echo(f"wrote {folder}: the encoder{heads}, from {loaded.report.format}")
