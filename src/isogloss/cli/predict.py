"""`isogloss predict --model RUN/model --data DIR --out FILE`: what a fine-tuned model says of a corpus, and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from isogloss.cli._out import check_file

app = typer.Typer(add_completion=False)


@app.command()
def predict(
    model: Annotated[Path, typer.Option(help="the model/ folder that `isogloss finetune` leaves")],
    data: Annotated[
        list[Path],
        typer.Option(help="a corpus in any accepted form; as often as needed: in-domain, then out-of-domain"),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="write a line of JSON for each utterance: id, text, speaker, language, seconds, reference (with its kind of labels, and "
            "whether the speech is synthetic), and the scores of a task with classes; with several corpora a file each, named after it"
        ),
    ] = None,
    dev: Annotated[
        Path | None,
        typer.Option(help="for a task with classes: fit the temperature and the rejection threshold on this corpus"),
    ] = None,
    results: Annotated[Path | None, typer.Option(help="append the figures to this JSON lines file")] = None,
    name: Annotated[str, typer.Option(help="of the system in the results; the run's by default")] = "",
    language: Annotated[str | None, typer.Option(help="that of utterances which say none")] = None,
) -> None:
    """Let a fine-tuned model transcribe or classify a corpus; labelled utterances are scored, speakers resampled."""
    import torch

    from isogloss.cli._names import short_name
    from isogloss.cli._run import say_warnings
    from isogloss.cli._show import progress_bar, to_people
    from isogloss.core.errors import ConfigError
    from isogloss.data.inputs import open_corpus
    from isogloss.evaluation.identification import Calibration, domain_gap
    from isogloss.evaluation.tables import to_rich, write_results
    from isogloss.evaluation.tasks import TaskResult, load_task, run_task, scored_of, task_records, write_predictions

    check_file(results, "--results")
    datasets = _dataset_names(data)
    places = [
        None if out is None else out if len(data) == 1 else out.with_name(f"{out.stem}-{name}{out.suffix}")
        for name in datasets
    ]
    for place in places:
        check_file(place)
    encoder, task = load_task(model)
    if dev is not None and not task.classes:
        raise ConfigError(f"`--dev` calibrates a task that chooses among classes, but {task.config.name} does not")
    corpora = [list(open_corpus(path, language=language)) for path in data]
    heard = [] if dev is None else list(open_corpus(dev, language=language))
    _refuse_heard(data, corpora, heard)
    told = {
        path: f"{short_name(model)} was trained on this corpus"
        for path in _trained_on(model, [*data, *filter(None, [dev])])
    }
    say_warnings((f"{path}: {note}, so its figures say nothing of other speech" for path, note in told.items()), True)
    fitted = f"temperature and threshold are from {dev}, on which the model was trained" if dev in told else ""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder, task = encoder.to(device), task.to(device)
    console = to_people()

    def run(path: Path, cuts: list[Any]) -> TaskResult:
        with progress_bar(f"running {task.config.name} on {short_name(path)}") as progress:
            return run_task(encoder, task, cuts, progress=progress)

    calibration = None
    if dev is not None:
        calibration = Calibration.fit(scored_of(run(dev, heard)))
        console.print(
            f"temperature {calibration.temperature:.3g}, threshold {calibration.threshold:.3g}: {calibration.how}",
            highlight=False,
            markup=False,
        )
    system = name or short_name(model)
    scored: list[tuple[str, Any]] = []
    for path, dataset, cuts, place in zip(data, datasets, corpora, places, strict=True):
        result = run(path, cuts)
        if not task.classes and result.predictions and not any(result.predictions):
            console.print(
                f"every text of {path} is empty: the model writes blanks alone, usually because it has been trained for too few updates",
                highlight=False,
                markup=False,
            )
        if place is not None:
            write_predictions(place, result)
            console.print(f"predictions: {place}", highlight=False, markup=False)
        if any(result.references):
            notes = "; ".join(filter(None, (told.get(path), fitted)))
            rows = task_records(
                task, result, cuts, system=system, dataset=dataset, calibration=calibration, notes=notes
            )
            console.print(to_rich(rows))
            if task.classes:
                scored.append((dataset, scored_of(result)))
            if results is not None:
                write_results(results, rows, append=True)
                console.print(f"results: {results}", highlight=False, markup=False)
            continue
        if results is not None:
            console.print(f"no figures of {path}: none of its utterances is labelled", highlight=False, markup=False)
        if out is None:
            for identifier, text in zip(result.ids, result.predictions, strict=True):
                console.print(f"{identifier}\t{text}", highlight=False, markup=False)
    gaps = [
        domain_gap(
            scored[0][1],
            own,
            system=system,
            task=f"{task.config.name}, fine-tuned",
            datasets=(scored[0][0], other),
        )
        for other, own in scored[1:]
    ]
    found = [gap for gap in gaps if gap is not None]
    if found:
        console.print(to_rich(found, title="from the first corpus to the others, languages that both test"))
        if results is not None:
            write_results(results, found, append=True)


def _dataset_names(paths: list[Path]) -> list[str]:
    """Return a name for each corpus: its folder's, with the folder above where two have the same (`fleurs/test`, `adi17/test`)."""
    from isogloss.cli._names import short_name
    from isogloss.core.errors import ConfigError

    names = [short_name(path) for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}-{name}" for path, name in zip(paths, names, strict=True)]
    twice = [path for path, name in zip(paths, names, strict=True) if names.count(name) > 1]
    if twice:
        raise ConfigError(
            f"`--data {twice[0]}` and another corpus have the same name; give each once, or link them to other names"
        )
    return names


def _trained_on(model: Path, corpora: list[Path]) -> list[Path]:
    """Return the corpora that are, recording for recording, the one that the model was trained on last."""
    from isogloss.core.errors import IsoglossError
    from isogloss.data.index import CorpusIndex
    from isogloss.hub.save import DESCRIPTION, read_extra

    provenance = read_extra(model).get("provenance") if (model / DESCRIPTION).is_file() else None
    known = provenance.get("manifest_sha256") if isinstance(provenance, dict) else None
    found = []
    for path in corpora if known else ():
        try:
            is_same = CorpusIndex.open(path).manifest == known
        except IsoglossError:
            continue  # what no run can train on was not trained on
        if is_same:
            found.append(path)
    return found


def _refuse_heard(paths: list[Path], corpora: list[list[Any]], heard: list[Any]) -> None:
    """Refuse to test on recordings that the temperature and the threshold will be fitted on, before anything is computed."""
    from isogloss.adapt.guard import shared_recordings
    from isogloss.core.errors import ConfigError

    for path, cuts in zip(paths, corpora, strict=True) if heard else ():
        shared = shared_recordings(cuts, heard)
        if shared:
            raise ConfigError(
                f"{path} must have no recording of the corpus of `--dev`, but shares some: {shared}; what the temperature and the "
                "threshold were fitted on cannot test them: give other speech (where recordings only have the same ids, other ids)"
            )
