"""`isogloss label --data DIR --out FOLDER`: units for a corpus, by k-means on MFCC, log-mel or a layer of a model."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from isogloss.cli._out import check_folder
from isogloss.cli._run import Overrides
from isogloss.cli._sources import ForLanguage

app = typer.Typer(add_completion=False)


class FeatureChoice(StrEnum):
    """What is clustered."""

    mfcc = "mfcc"
    mel = "mel"
    model = "model"


@app.command()
def label(
    out: Annotated[Path, typer.Option(help="folder of the table of units")],
    recipe: Annotated[
        str | None,
        typer.Argument(help="a recipe whose \\[labels] section and corpus are used; else the options say all"),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="prepared corpus, cuts file or Shar folder")] = None,
    features: Annotated[
        FeatureChoice | None, typer.Option(help="mfcc (39 numbers, 100 Hz), mel, or model; model where --from is given")
    ] = None,
    model: Annotated[Path | None, typer.Option("--from", help="the model whose layer is clustered")] = None,
    for_language: ForLanguage = None,
    layer: Annotated[int | None, typer.Option(help="0 is the input of the first block, -1 the last output")] = None,
    num_units: Annotated[int | None, typer.Option(help="clusters", min=2)] = None,
    clusters: Annotated[
        Path | None,
        typer.Option(
            help="a table of units, or a model trained on one: its clusters, of the same features; none are fitted"
        ),
    ] = None,
    fit_share: Annotated[float | None, typer.Option(help="share of the utterances that k-means sees")] = None,
    iteration: Annotated[int, typer.Option(help="which of the recipe's iterations", min=1)] = 1,
    overrides: Overrides = None,
) -> None:
    """Cluster the frames of a share of a corpus and write the unit of every frame of all of it; resumes where it stopped.

    The table is what `--set data.units=FOLDER` names to `isogloss pretrain` for objectives that predict units. Where utterances
    have phone alignments, it is told how well units and phones tell each other. Several processes: `torchrun … -m isogloss label`.
    """
    import json

    from isogloss.cli._show import stages
    from isogloss.core import dist
    from isogloss.core.config import apply_overrides, parse
    from isogloss.core.errors import ConfigError
    from isogloss.core.files import write_whole
    from isogloss.data.index import CorpusIndex
    from isogloss.labelling.iterations import describe
    from isogloss.labelling.label import label_corpus
    from isogloss.labelling.quality import phone_quality
    from isogloss.training.iterations import LabelConfig, load_iterations

    check_folder(out)
    tree: dict[str, Any] = {}
    corpus = data
    if recipe is not None:
        turns = load_iterations(recipe, overrides or [])
        if iteration > len(turns):
            raise ConfigError(
                f"`--iteration` must be at most {len(turns)}, the recipe's iterations, but is {iteration}"
            )
        turn = turns[iteration - 1]
        if turn.labels is None:
            raise ConfigError(f"{recipe} has no [labels] section; leave the recipe out and say all with options")
        tree = turn.labels.model_dump(mode="json")
        corpus = data or (Path(turn.recipe.data.path) if turn.recipe.data.path else None)
    elif overrides:
        raise ConfigError("`--set` changes a recipe, but none is given; use the options --num-units, --layer, …")
    if corpus is None:
        raise ConfigError("there is no corpus: give one with `--data DIR`")
    given = {
        "features": features and features.value,
        "layer": layer,
        "language": for_language,
        "num_units": num_units,
        "fit_share": fit_share,
    }
    said = {key: value for key, value in given.items() if value is not None}
    if model is not None:
        said = {"features": "model", **said, "model": str(model)}
    tree |= said
    if clusters is not None:
        tree = _with_clusters(clusters, tree, {*said, *apply_overrides({}, overrides or []).get("labels", {})})
    config = parse(LabelConfig, tree, recipe or "isogloss label")
    with dist.process_group(timeout_seconds=7200.0), stages() as tell:
        made = label_corpus(config, corpus, out, progress=tell)
        is_main = dist.is_main()
    if not is_main:
        return
    typer.echo(describe(made))
    quality = phone_quality(made.table, CorpusIndex.open(corpus))
    if quality is not None:
        figures = {
            "pnmi": quality.pnmi.value,
            "pnmi_low": quality.pnmi.low,
            "pnmi_high": quality.pnmi.high,
            "phone_purity": quality.phone_purity.value,
            "cluster_purity": quality.cluster_purity.value,
            "num_frames": quality.num_frames,
            "num_phones": quality.num_phones,
        }
        write_whole(out / "quality.json", json.dumps(figures) + "\n")
        typer.echo(
            f"PNMI {quality.pnmi.value:.3f} [{quality.pnmi.low:.3f}, {quality.pnmi.high:.3f}], phone purity "
            f"{quality.phone_purity.value:.3f}, cluster purity {quality.cluster_purity.value:.3f}, on {quality.num_frames:,} frames of "
            f"{quality.num_phones} phones"
        )


def _with_clusters(place: Path, tree: dict[str, Any], said: set[str]) -> dict[str, Any]:
    """Add the settings that clusters were made with to a recipe's and those that were `said`; others than theirs are a `ConfigError`.

    How the recipe would fit clusters of its own does not matter any more, and is dropped where nobody said it now.
    """
    from isogloss.core.errors import ConfigError
    from isogloss.data.units import CLUSTERS
    from isogloss.labelling.label import read_clusters
    from isogloss.training.recipe import without_fitting

    found, convention = read_clusters(place / CLUSTERS if place.is_dir() else place)
    own = {"features": "mfcc", "layer": None, "normalize": False, "num_units": len(found.centroids_CD)}
    own |= {key: convention[key] for key in ("features", "layer", "normalize") if key in convention}
    kept = without_fitting(tree, said)
    if kept.get("layer") is not None and kept["layer"] < 0 and own["layer"] is not None:
        own["layer"] = kept["layer"]  # counted from the end: compared once the model is open
    other = [key for key in own if kept.get(key, own[key]) != own[key]]
    if other:
        told = ", ".join(f"{key} = {own[key]!r} (not {kept[key]!r})" for key in other)
        raise ConfigError(f"the clusters of {place} were made with {told}; give clusters of what is to be labelled")
    return {**own, **kept, "clusters": str(place)}
