"""`isogloss languages overlap|lesions|gain|transfer|forgetting`: what sharing one model did, language by language."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isogloss.cli._out import check_folder

if TYPE_CHECKING:
    from isogloss.benchmark.language_pages import LanguagePage
    from isogloss.encoders.base import Encoder
    from isogloss.evaluation.predictions import ErrorMetric

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What sharing one model did, language by language.")


class MetricChoice(StrEnum):
    """Which errors of the predictions count; `error` is the share of utterances that are wrong (language identification)."""

    wer = "wer"
    cer = "cer"
    per = "per"
    error = "error"


class ByChoice(StrEnum):
    """What is measured of a model: errors of its task, or the loss of its objective."""

    errors = "errors"
    loss = "loss"


def _writable(out: Path | None) -> Path | None:
    check_folder(out)
    return out


Out = Annotated[
    Path | None,
    typer.Option(help="folder for the page, its charts as SVG, and the records", callback=_writable),
]
Seed = Annotated[int, typer.Option(help="of the bootstrap")]
Kin = Annotated[
    Path | None,
    typer.Option(help="table of classifications (language, family, branch, …); a built-in one knows some 270"),
]
Metric = Annotated[MetricChoice | None, typer.Option(help="which errors of the predictions count")]
Dataset = Annotated[str | None, typer.Option(help="name of the test set in the records; `test` by default")]
Runs = Annotated[
    list[Path] | None,
    typer.Option(
        "--run",
        help="folder of a run of `isogloss adapt`; as often as needed; either this, or --before and --after",
        metavar="RUN",
    ),
]
_SAID = "file that `isogloss predict --out` wrote on labelled speech"


@app.command()
def overlap(
    models: Annotated[
        list[Path],
        typer.Option(
            "--from",
            help="a model with sub-networks; as often as needed: give the same model with random masks too, to compare",
        ),
    ],
    kin: Kin = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """How much the sub-networks of languages overlap, against chance ρ/(2 − ρ), and whether kin share more."""
    import numpy as np

    from isogloss.benchmark.language_pages import LanguagePage, overlap_caption, overlap_chart
    from isogloss.cli._names import short_names
    from isogloss.evaluation.language_records import overlap_records
    from isogloss.evaluation.subnetworks import mask_overlap
    from isogloss.hub.load import load_encoder

    names = short_names(models)
    page = LanguagePage(
        "Overlap of sub-networks", "What two languages leave out together, against masks at random.", records=[]
    )
    for name, path in zip(names, models, strict=True):
        found = mask_overlap(load_encoder(path))
        related, order, told = _related(found, kin, seed)
        page.records += overlap_records(found, related, system=name, seed=seed, notes=told)
        expected = float(np.mean([pair[3] for pair in found.pairs()]))
        chance = (
            f"{name}: {len(found.languages)} languages, ρ = {np.mean(found.sparsity_L):.3g}, at random {expected:.3f}"
        )
        p_value = "" if related is None else f"; Mantel test of kinship p = {related.p_value:.3f}"
        page.notes.append(f"{chance}{p_value}{'; ' if told else ''}{told}")
        page.charts[name.replace("/", "-")] = (overlap_chart(f"Overlap: {name}", found, order), overlap_caption(found))
    _finish(page, out, "overlap")


@app.command()
def lesions(
    model: Annotated[Path, typer.Option("--from", help="a model with sub-networks, pretrained or fine-tuned")],
    data: Annotated[Path, typer.Option(help="a corpus that was not trained on, in any accepted form")],
    by: Annotated[
        ByChoice | None,
        typer.Option(help="errors (needs labels; default of fine-tuned models and CTC) or loss (pretrained)"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="at most so much speech of each language")] = 60.0,
    language: Annotated[list[str] | None, typer.Option(help="only these languages, as often as needed")] = None,
    kin: Kin = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="with --by loss: section.key=value, such as data.units=DIR", metavar="KEY=VALUE"),
    ] = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """What another language's mask costs, and whom the loss of the weights that one language alone uses hurts."""
    import tempfile

    import torch

    from isogloss.adapt.loss_measure import loss_measure
    from isogloss.benchmark.language_pages import mask_page
    from isogloss.cli._names import short_name
    from isogloss.cli._show import progress_bar
    from isogloss.core.errors import ConfigError
    from isogloss.data.inputs import write_corpus
    from isogloss.evaluation.language_records import lesion_records
    from isogloss.evaluation.subnetworks import masks_of
    from isogloss.evaluation.tasks import task_of
    from isogloss.evaluation.under_masks import Measure, lesion_rise, mask_rise, task_measure, under_masks
    from isogloss.evaluation.under_masks import lesions as measure_lesions
    from isogloss.hub.load import load_model

    loaded = load_model(model)
    encoder = loaded.encoder
    masks_of(encoder)
    assert encoder.edits is not None
    has_task = loaded.task is not None or (loaded.objective_tree or {}).get("name") == "ctc"
    chosen = by or (ByChoice.errors if has_task else ByChoice.loss)
    if chosen is ByChoice.errors and not has_task:
        raise ConfigError(f"{model} has no task whose errors could be counted; leave out `--by`, or fine-tune it first")
    if chosen is ByChoice.loss and loaded.objective_tree is None:
        raise ConfigError(f"{model} has no objective whose loss could be measured; leave out `--by`")
    if overrides and chosen is ByChoice.errors:
        raise ConfigError("`--set` belongs to `--by loss`; leave it out")
    cuts, told = _spoken(data, encoder, language, seconds, seed)
    measure: Measure
    if chosen is ByChoice.errors:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        task = task_of(loaded, model).to(device)
        encoder = encoder.to(device)
        metric = next(iter(task.metrics))
        metric = "error" if task.metrics[metric] else metric
        measure = task_measure(task, cuts)
    else:
        # Its recipe reads the model: two of them at a time may be one too many.
        del loaded, encoder
        with tempfile.TemporaryDirectory() as folder:
            write_corpus([cut for own in cuts.values() for cut in own], Path(folder))
            encoder, measure = loss_measure(model, folder, overrides or [])
        metric = "loss"
    order = _kin_order(list(cuts), kin)
    with progress_bar("another language's mask") as progress:
        masks = under_masks(encoder, order, measure, progress=progress)
    with progress_bar("lesions") as progress:
        cut = measure_lesions(encoder, order, measure, seed=seed, progress=progress)
    rises = {kind: lesion_rise(cut.whole, table) for kind, table in (("own", cut.own), ("random", cut.random))}
    records = lesion_records(
        masks,
        mask_rise(masks),
        cut,
        rises,
        system=short_name(model),
        dataset=short_name(data),
        metric=metric,
        seed=seed,
    )
    sizes = sorted(cut.sizes.values())
    told += [
        f"a lesion takes {sizes[0]:,} to {sizes[-1]:,} weights",
        f"at most {seconds:g} s of each of {len(order)} languages",
    ]
    _finish(mask_page(masks, cut, order, records, system=short_name(model), metric=metric, notes=told), out, "lesions")


@app.command()
def gain(
    hours: Annotated[
        list[Path],
        typer.Option(
            help="what pretraining heard: a corpus, or a table with `language` and `hours`; as often as needed"
        ),
    ],
    run: Annotated[
        Path | None,
        typer.Option(help="folder of a run of `isogloss adapt`; either this, or --before and --after", metavar="RUN"),
    ] = None,
    before: Annotated[
        list[Path] | None,
        typer.Option(help=f"{_SAID}, of the system before; as often as needed; with --after, instead of --run"),
    ] = None,
    after: Annotated[
        list[Path] | None, typer.Option(help="the same of the system after, on the same speech; with --before")
    ] = None,
    metric: Metric = None,
    dataset: Dataset = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Gain of each language against the hours of it that pretraining heard: rank correlation, and the mean of each bin of hours.

    Of a run of `isogloss adapt` (held-out masked accuracy), or of two systems' predictions.
    """
    from isogloss.benchmark.language_pages import gain_page
    from isogloss.cli._names import short_name, short_names
    from isogloss.core.errors import ConfigError
    from isogloss.evaluation.hours import hours_heard, read_hours
    from isogloss.evaluation.language_records import Told, adapted_gains, gain_records, notes_of
    from isogloss.evaluation.language_reports import change_of_estimate, changes, gain_by_hours

    if (run is None) == (before is None or after is None) or (run is not None and (before or after)):
        raise ConfigError("give either `--run RUN`, or `--before FILE` and `--after FILE`")
    if run is not None:
        _check_no_metric(metric)
        adapted = adapted_gains(run)
        targets, measured = adapted.of("target"), adapted.metric
        own = {name: change_of_estimate(record.estimate, name, seed=seed) for name, record in targets.items()}
        told = {name: Told.of_record(record) for name, record in targets.items()}
        system, dataset = short_name(run), dataset or "target held out"
    else:
        metric = _known_metric(metric)
        old, new = _said(before or [], metric), _said(after or [], metric)
        own, told = changes(old, new, seed=seed), Told.of_counts(old, new)
        measured, system = metric.value, " → ".join(short_names([(before or [])[0], (after or [])[0]]))
    heard = hours_heard(own, read_hours(hours))
    found = gain_by_hours(own, heard, seed=seed)
    never = [name for name, value in heard.items() if value == 0]
    notes = ([f"never heard: {', '.join(never)}"] if never else []) + notes_of(told)
    records = gain_records(found, system=system, dataset=dataset or "test", metric=measured, seed=seed, told=told)
    _finish(gain_page(found, records, system=system, metric=measured, notes=notes), out, "gain")


@app.command()
def transfer(
    monolingual: Annotated[
        list[Path],
        typer.Option(help=f"{_SAID} (a predictions file), of models of one language each; as often as needed"),
    ],
    multilingual: Annotated[
        list[Path],
        typer.Option(
            help="predictions file of the model that all languages share, on the same speech; as often as needed"
        ),
    ],
    adapted: Annotated[
        list[Path], typer.Option(help="predictions file of what was made of it, on the same speech; as often as needed")
    ],
    dev_monolingual: Annotated[
        list[Path],
        typer.Option(help="predictions file of the monolingual models, on a development set; as often as needed"),
    ],
    dev_multilingual: Annotated[
        list[Path],
        typer.Option(help="predictions file of the shared model, on the same development set; as often as needed"),
    ],
    metric: Annotated[MetricChoice, typer.Option(help="which errors of the predictions count")],
    dataset: Dataset = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Transfer and interference apart: does a method keep what sharing brings to some languages and undo what it costs others?

    The development set alone says which languages are which; figures are of the test set.
    """
    from isogloss.benchmark.language_pages import transfer_page
    from isogloss.cli._names import short_names
    from isogloss.evaluation.language_records import Told, transfer_records
    from isogloss.evaluation.language_reports import check_apart, helped_by_sharing, transfer_and_interference

    alone, shared, own = (_said(paths, metric) for paths in (monolingual, multilingual, adapted))
    dev_alone, dev_shared = _said(dev_monolingual, metric), _said(dev_multilingual, metric)
    helped = helped_by_sharing(dev_alone, dev_shared)
    check_apart(dev_shared, shared)
    found = transfer_and_interference(alone, shared, own, helped, seed=seed)
    names = dict(zip(("multilingual", "adapted"), short_names([multilingual[0], adapted[0]]), strict=True))
    records = transfer_records(
        found,
        **names,
        dataset=dataset or "test",
        metric=metric.value,
        seed=seed,
        told=Told.of_counts(alone, shared, own),
    )
    notes = [
        f"{name}: {', '.join(group.languages) if group is not None else 'no language'}"
        for name, group in (("transfer", found.transfer), ("interference", found.interference))
    ]
    _finish(transfer_page(found, records, **names, metric=metric.value, notes=notes), out, "transfer")


@app.command()
def forgetting(
    runs: Runs = None,
    before: Annotated[
        list[Path] | None,
        typer.Option(help=f"{_SAID}, of the model before; as often as needed; with --after, instead of --run"),
    ] = None,
    after: Annotated[
        list[Path] | None,
        typer.Option(help="the same of an adapted system; as often as there are systems; with --before"),
    ] = None,
    metric: Metric = None,
    dataset: Dataset = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Forgetting matrix: how much worse each adapted system (row) became on each language (column).

    Of runs of `isogloss adapt --source CORPUS` (masked accuracy on target and source languages), or of predictions.
    """
    from isogloss.benchmark.language_pages import forgetting_page
    from isogloss.cli._names import short_names
    from isogloss.core.errors import ConfigError
    from isogloss.evaluation.language_records import Told, adapted_gains, forgetting_records, notes_of, signed
    from isogloss.evaluation.language_reports import forgetting as forgotten

    if (not runs) == (not before or not after) or (runs and (before or after)):
        raise ConfigError("give either `--run RUN`, or `--before FILE` and `--after FILE`")
    if runs:
        _check_no_metric(metric)
        table, told, measured = {}, {}, set()
        for name, path in zip(short_names(runs), runs, strict=True):
            gains = adapted_gains(path)
            table[name] = {place: signed(record.estimate, -1.0) for place, record in gains.records.items()}
            told[name] = gains.told
            measured.add(gains.metric)
        if len(measured) > 1:
            raise ConfigError(f"runs were measured by {' and by '.join(sorted(measured))}; give those of one objective")
        unit, place = measured.pop(), ""  # languages say where they are
    else:
        metric = _known_metric(metric)
        old = _said(before or [], metric)
        said = {name: _said([path], metric) for name, path in zip(short_names(after or []), after or [], strict=True)}
        table, unit, place = forgotten(old, said, seed=seed), metric.value, "test"
        told = {name: Told.of_counts(old, own) for name, own in said.items()}
    records = forgetting_records(table, dataset=dataset or place, metric=unit, seed=seed, told=told)
    clear = [r for r in records if r.meta["p_holm"] < 0.05]
    notes = [f"{len(clear)} of {len(records)} changes are not chance at 5 % after Holm's correction"]
    notes += [f"{name}: {note}" for name, own in told.items() for note in notes_of(own)]
    _finish(forgetting_page(table, records, metric=unit, notes=notes), out, "forgetting")


def _finish(page: LanguagePage, out: Path | None, name: str) -> None:

    from isogloss.cli._show import to_people
    from isogloss.evaluation.tables import to_rich

    console = to_people()
    console.print(to_rich(page.records, title=page.title))
    for note in (page.lead, *page.notes):
        console.print(note, highlight=False, markup=False)
    if out is not None:
        console.print(f"page: {page.write(out, name)}", highlight=False, markup=False)


def _check_no_metric(metric: MetricChoice | None) -> None:
    from isogloss.core.errors import ConfigError

    if metric is not None:
        raise ConfigError(
            "`--metric` is of predictions; a run of `isogloss adapt` was measured by its objective: leave it out"
        )


def _known_metric(metric: MetricChoice | None) -> MetricChoice:
    from isogloss.core.errors import ConfigError

    if metric is None:
        known = ", ".join(MetricChoice)
        raise ConfigError(f"predictions do not say which errors count: give `--metric`, one of {known}")
    return metric


def _said(paths: Sequence[Path], metric: MetricChoice) -> dict[str, Any]:
    from isogloss.evaluation.predictions import read_predictions

    chosen: ErrorMetric = metric.value
    return dict(read_predictions(paths, chosen))


def _spoken(
    data: Path, encoder: Encoder, wanted: list[str] | None, seconds: float, seed: int
) -> tuple[dict[str, list[Any]], list[str]]:
    """Return a sample of the cuts of each language that has a mask, and what was left out."""
    from isogloss.core.errors import ConfigError, DataError
    from isogloss.core.lookup import nearest
    from isogloss.data.inputs import open_corpus
    from isogloss.encoders.language_edits import own_name
    from isogloss.evaluation.lid import language_of
    from isogloss.evaluation.probe_splits import limit_seconds

    assert encoder.edits is not None
    known = encoder.edits.languages
    named = {name: own_name(encoder, name) for name in wanted or ()}
    for name, own in named.items():
        if own is None:
            raise ConfigError(f"the model has no mask for `{name}`; {nearest(name, list(known))}")
    by_language: dict[str, list[Any]] = {}
    own_of: dict[str, str | None] = {}
    for cut in open_corpus(data):
        tag = language_of(cut) or "und"
        if tag not in own_of:
            own_of[tag] = own_name(encoder, tag)
        if own := own_of[tag]:
            by_language.setdefault(own, []).append(cut)
    left_out = sorted(tag for tag, own in own_of.items() if own is None)
    chosen = [name for name in known if name in by_language and (not wanted or name in named.values())]
    if len(chosen) < 2:
        raise DataError(
            f"{data}: has speech of {len(chosen)} of the languages that have a mask ({', '.join(known[:8])}); two are needed"
        )
    told = [f"without a mask, left out: {', '.join(left_out)}"] if left_out else []
    return {name: limit_seconds(by_language[name], seconds, seed) for name in chosen}, told


def _related(found: Any, kin: Path | None, seed: int) -> tuple[Any, list[int], str]:
    """Return the correlation of overlap with kinship (None where it cannot be), languages in order of kin, and what is to be said."""
    import numpy as np

    from isogloss.core.errors import DataError
    from isogloss.evaluation.subnetworks import kinship, relatedness

    classes = _classes(found.languages, kin)
    known = [i for i, name in enumerate(found.languages) if name in classes]
    order = [found.languages.index(name) for name in _kin_order(found.languages, kin)]
    unknown = [name for name in found.languages if name not in classes]
    told = f"kinship of {', '.join(unknown)} is unknown: left out of the correlation (`--kin`)" if unknown else ""
    names = [found.languages[i] for i in known]
    try:
        related = relatedness(found.iou_LL[np.ix_(known, known)], kinship(classes, names), seed=seed)
    except DataError as error:
        return None, order, "; ".join(part for part in (told, str(error)) if part)
    return related, order, told


def _kin_order(languages: Sequence[str], kin: Path | None) -> list[str]:
    classes = _classes(languages, kin)
    return sorted(languages, key=lambda name: (name not in classes, classes.get(name, ()), name))


def _classes(languages: Sequence[str], kin: Path | None) -> dict[str, tuple[str, ...]]:
    from isogloss.evaluation.relatedness import classification_of, read_classification

    given = {} if kin is None else read_classification(kin)
    found = {name: given.get(name) or classification_of(name) for name in languages}
    return {name: levels for name, levels in found.items() if levels}
