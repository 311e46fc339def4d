"""`isogloss export MODEL FOLDER`: a folder that `transformers` opens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isogloss.cli._out import check_folder

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="An isogloss or Hugging Face folder, or a fairseq .pt file.")],
    folder: Annotated[Path, typer.Argument(help="Where to write config.json, model.safetensors and the model card.")],
    for_language: Annotated[
        str | None, typer.Option(help="the language of which to write the sub-network, of a model with masks or LoRA")
    ] = None,
) -> None:
    """Write a folder that `transformers` opens with equal outputs."""
    from isogloss.hub.export import export_tensors
    from isogloss.hub.load import load_model
    from isogloss.hub.save import read_extra

    check_folder(folder, "FOLDER")
    loaded = load_model(model)
    extra = read_extra(model) if loaded.report.format == "isogloss" else {}
    # Heads of foreign checkpoints bear the names of our wav2vec 2.0 objective only where they are its heads.
    tree = loaded.objective_tree
    if tree is None and "quantizer.codebook" in loaded.head_tensors and "project_targets.weight" in loaded.head_tensors:
        tree = {"name": "wav2vec2"}
    encoder = loaded.encoder
    if for_language is not None:
        encoder = encoder.for_language(for_language)
        extra = {**extra, "language": for_language}
    export_tensors(encoder, folder, loaded.head_tensors, tree, extra)
    for name in loaded.report.fresh:
        typer.echo(f"initialised afresh: {name}")
    typer.echo(f"wrote {folder}; open it with `transformers.AutoModel.from_pretrained({str(folder)!r})`")
