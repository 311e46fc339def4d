"""`isogloss extract --from MODEL --data DIR --out DIR`: write an encoder's states to disk, one file per cut."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isogloss.cli._out import check_folder
from isogloss.cli._sources import ForLanguage, open_models

app = typer.Typer(add_completion=False)


@app.command()
def extract(
    model: Annotated[Path, typer.Option("--from", help="a model: isogloss or Hugging Face folder, fairseq .pt")],
    data: Annotated[Path, typer.Option(help="a corpus in any accepted form")],
    out: Annotated[Path, typer.Option(help="folder for features/LAYER/NUMBER.npy and features.jsonl")],
    layer: Annotated[
        list[int] | None,
        typer.Option(help="as often as needed; -1, the last, by default; 0 is the first block's input"),
    ] = None,
    for_language: ForLanguage = None,
    batch_seconds: Annotated[float, typer.Option(min=0.1, help="seconds of audio encoded at once")] = 60.0,
) -> None:
    """Write S×D float16 states of every cut and layer as .npy, and an index with frame rates and times.

    `features.jsonl` names for each file its cut, layer, frames, `frame_rate_hz` and `first_center_seconds`. An interrupted
    run continues from what is done.
    """
    import torch

    from isogloss.cli._show import progress_bar
    from isogloss.data.inputs import open_corpus
    from isogloss.evaluation.features import extract_features, write_feature_files

    check_folder(out)
    (opened,) = open_models([model], for_language)
    if opened.note:
        typer.echo(opened.note, err=True)
    cuts = list(open_corpus(data))
    with progress_bar(f"encoding {len(cuts)} utterances") as progress:
        store = extract_features(
            opened.encoder.to("cuda" if torch.cuda.is_available() else "cpu"),
            cuts,
            layers=layer or [-1],
            cache_dir=out / ".cache",
            batch_seconds=batch_seconds,
            name=opened.name,
            progress=progress,
        )
    index = write_feature_files(store, cuts, out)
    typer.echo(f"{len(cuts)} utterances, layers {', '.join(map(str, store.layers))}: {index}")
    if store.too_short:
        typer.echo(
            f"{len(store.too_short)} utterances are shorter than a frame: {', '.join(store.too_short[:5])}", err=True
        )
