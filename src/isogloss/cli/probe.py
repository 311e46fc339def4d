"""`isogloss probe phones|ctc|lid --from MODEL --data DIR`: measure frozen features beside log-mel, MFCC and chance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from isogloss.cli._names import short_name
from isogloss.cli._out import check_file
from isogloss.cli._show import progress_bar, to_people
from isogloss.cli._sources import ForLanguage, check_sources, feature_sources, open_models, rivals

if TYPE_CHECKING:
    from isogloss.evaluation.lid import Pooled
    from isogloss.evaluation.tables import ResultRecord

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Measure frozen features.")

Model = Annotated[Path | None, typer.Option("--from", help="a model: isogloss or Hugging Face folder, fairseq .pt")]
Data = Annotated[Path, typer.Option(help="a corpus in any accepted form")]
Versus = Annotated[Path | None, typer.Option(help="with --from: a second model, for paired differences to it")]
Layers = Annotated[list[int] | None, typer.Option("--layer", help="as often as needed; all by default; -1 is the last")]
Against = Annotated[
    str | None,
    typer.Option(
        help="comma-separated: mel, mfcc, untrained (needs --from); empty for none; all that can be by default"
    ),
]
Out = Annotated[Path | None, typer.Option(help="append the results to this JSON lines file")]
Cache = Annotated[Path | None, typer.Option(help="folder that keeps features and silver labels for the next time")]
Hours = Annotated[float, typer.Option(min=0.01, help="at most this many hours of training speech")]
Seed = Annotated[int, typer.Option(help="of the sampling of frames and cuts, and of the untrained encoder")]
Language = Annotated[str | None, typer.Option(help="only this language; also that of utterances which say none")]
Split = Annotated[str, typer.Option(help="auto, given, speaker, source, recording: what is held out")]
Labels = Annotated[
    str, typer.Option(help="auto; alignment; silver times for: realign (its phones), espeak, ipa (texts)")
]


@app.command()
def phones(
    data: Data,
    model: Model = None,
    versus: Versus = None,
    layer: Layers = None,
    against: Against = None,
    split: Split = "auto",
    labels: Labels = "auto",
    language: Language = None,
    for_language: ForLanguage = None,
    weighted: Annotated[
        bool,
        typer.Option("--weighted", help="also a mixture of all layers with learned weights, beside the best layer"),
    ] = False,
    hours: Hours = 2.0,
    seed: Seed = 0,
    cache: Cache = None,
    out: Out = None,
) -> None:
    """Frame-wise linear phone classification; layer and weight decay are chosen on a development split."""
    from isogloss.core.errors import ConfigError
    from isogloss.evaluation.probe_records import difference_record, phone_counts, phone_records, weighted_records
    from isogloss.evaluation.probes import SearchBudget, best_on_dev, probe_phones
    from isogloss.evaluation.weighted_probe import probe_weighted

    check_file(out)
    models, others = _pair(model, versus), _rivals(model, against)
    check_sources(models, others, layers=layer is not None, language=for_language)
    if weighted and (model is None or (layer is not None and len(set(layer)) < 2)):
        raise ConfigError(
            "`--weighted` weighs layers of a model: give one with `--from`, and at least two layers or no `--layer`"
        )
    opened = open_models(models, for_language)
    splits, synthetic, told = _phone_splits(data, language, labels, split, hours, seed, cache)
    told = _joined(told, *(own.note for own in opened))
    everything = [*splits.train, *splits.dev, *splits.test]
    probed, mixed, shares = [], [], []
    for source in feature_sources(opened, others, everything, layers=layer, seed=seed, cache=cache):
        with progress_bar(f"probing {source.name}") as progress:
            results = probe_phones(source, splits, budget=SearchBudget(seed=seed), progress=progress)
        best = best_on_dev(results)
        records = phone_records(results, best, dataset=short_name(data), synthetic_speech=synthetic, notes=told)
        probed.append((best, records))
        if weighted and len(source.layers) > 1:
            with progress_bar(f"weighing the layers of {source.name}"):
                found = probe_weighted(source, splits, budget=SearchBudget(seed=seed))
            own = weighted_records(found, dataset=short_name(data), synthetic_speech=synthetic, notes=told)
            counts = phone_counts(found.probe), phone_counts(best)
            mixed += [*own, difference_record(own[0], records[0], counts, best.speakers)]
            shares.append(f"layer weights of {source.name}: {found.told}")
    rows = [record for _, records in probed for record in records]
    rows += [
        difference_record(probed[0][1][0], records[0], (phone_counts(probed[0][0]), phone_counts(best)), best.speakers)
        for best, records in probed[1:]
        if model is not None
    ]
    _finish([*rows, *mixed], out, _joined(told, *shares))


@app.command()
def ctc(
    data: Data,
    model: Model = None,
    versus: Versus = None,
    layer: Annotated[int | None, typer.Option(help="one layer; the last by default")] = None,
    against: Against = None,
    split: Split = "auto",
    labels: Labels = "auto",
    language: Language = None,
    for_language: ForLanguage = None,
    hours: Hours = 1.0,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the training part")] = 30,
    seed: Seed = 0,
    cache: Cache = None,
    out: Out = None,
) -> None:
    """The CTC phone probe of modified CPC: phone error rate by one convolution (80 ms, every 40 ms), beam 20, no language model."""
    from isogloss.evaluation.ctc_probe import CtcProbeSettings, probe_ctc
    from isogloss.evaluation.probe_records import ctc_counts, ctc_records, difference_record

    check_file(out)
    models, others = _pair(model, versus), _rivals(model, against)
    check_sources(models, others, layers=layer is not None, language=for_language)
    opened = open_models(models, for_language)
    layers = [-1 if layer is None else layer]
    splits, synthetic, told = _phone_splits(data, language, labels, split, hours, seed, cache, needs_times=False)
    told = _joined(told, *(own.note for own in opened))
    everything = [*splits.train, *splits.dev, *splits.test]
    probed = []
    for source in feature_sources(opened, others, everything, layers=layers, seed=seed, cache=cache):
        with progress_bar(f"training on {source.name}") as progress:
            result = probe_ctc(source, splits, settings=CtcProbeSettings(epochs=epochs, seed=seed), progress=progress)
        probed.append((result, ctc_records(result, dataset=short_name(data), synthetic_speech=synthetic, notes=told)))
    rows = [record for _, records in probed for record in records]
    rows += [
        difference_record(probed[0][1][0], records[0], (ctc_counts(probed[0][0]), ctc_counts(result)), result.speakers)
        for result, records in probed[1:]
        if model is not None
    ]
    _finish(rows, out, told)


@app.command()
def lid(
    data: Data,
    model: Model = None,
    versus: Versus = None,
    layer: Layers = None,
    against: Against = None,
    split: Annotated[
        str | None,
        typer.Option(help="speaker, source, or both: what is held out; both by default, speaker with --shots"),
    ] = None,
    for_language: ForLanguage = None,
    hours: Hours = 4.0,
    shots: Annotated[
        str | None, typer.Option(help="few-shot curves: labelled utterances per language, 1,5,10,25,50,100")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, help="with --shots: nested draws of the shots; 5 by default")
    ] = None,
    heads: Annotated[
        int | None, typer.Option(min=1, help="with --shots: initial weights for each draw; 3 by default")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="with --shots: draw the curves to this SVG file")] = None,
    seed: Seed = 0,
    cache: Cache = None,
    out: Out = None,
) -> None:
    """Language identification on pooled features, linear and nearest neighbours, speakers or whole sources held out.

    With --shots: macro-accuracy of a linear head against the number of labelled utterances per language, over nested,
    speaker-aware draws and initial weights, the area under that curve, and how many shots the other system needs for as much.
    """
    from isogloss.core.errors import ConfigError, DataError
    from isogloss.data.inputs import open_corpus
    from isogloss.evaluation.lid import language_of, pool, probe_language
    from isogloss.evaluation.probe_records import difference_record, lid_counts, lid_records
    from isogloss.evaluation.probe_splits import limit_seconds

    if shots is None:
        given = [
            name for name, value in (("--plot", plot), ("--draws", draws), ("--heads", heads)) if value is not None
        ]
        if given:
            raise ConfigError(
                f"`{given[0]}` belongs to few-shot curves; add `--shots 1,5,10,25,50,100`, or leave it out"
            )
    elif split == "both":
        raise ConfigError("few-shot curves hold out speakers or sources; give `--split speaker` or `--split source`")
    if plot is not None and (plot.suffix != ".svg" or not plot.parent.is_dir()):
        raise ConfigError(f"`--plot {plot}` must be an .svg file in a folder that is there")
    if split not in (None, "speaker", "source", "both"):
        raise ConfigError(f"`--split` must be speaker, source or both, but is {split}")
    check_file(out)
    models, others = _pair(model, versus), _rivals(model, against)
    check_sources(models, others, layers=layer is not None, language=for_language)
    opened = open_models(models, for_language)
    numbers = None if shots is None else _numbers(shots)
    cuts = [cut for cut in open_corpus(data) if language_of(cut) is not None]
    cuts = limit_seconds(cuts, hours * 3600, seed)
    synthetic = any((cut.custom or {}).get("synthetic") for cut in cuts)
    told = _joined(*(own.note for own in opened))
    pooled = []
    for source in feature_sources(opened, others, cuts, layers=layer, seed=seed, cache=cache):
        with progress_bar(f"pooling {source.name}"):
            pooled.append(pool(source, cuts))
    if numbers is not None:
        unit: Literal["speaker", "source"] = "source" if split == "source" else "speaker"
        name = short_name(data)
        _few_shot(pooled, unit, numbers, draws or 5, heads or 3, seed, name, synthetic, told, plot, out)
        return
    rows: list[ResultRecord] = []
    notes = []
    for held_out in ("speaker", "source") if split in (None, "both") else (split,):
        for method in ("linear", "knn"):
            probed = []
            try:
                for vectors in pooled:
                    result = probe_language(vectors, method=method, held_out=held_out)
                    records = lid_records(result, dataset=short_name(data), synthetic_speech=synthetic, notes=told)
                    probed.append((result, records))
            except DataError as error:
                if split not in (None, "both"):
                    raise
                notes.append(str(error))
                break
            rows += [record for _, records in probed for record in records]
            rows += [
                difference_record(
                    probed[0][1][0], records[0], (lid_counts(probed[0][0]), lid_counts(result)), result.speakers
                )
                for result, records in probed[1:]
                if model is not None
            ]
    if not rows:
        raise DataError(notes[0])
    _finish(rows, out, _joined(*notes, told))


def _few_shot(
    pooled: Sequence[Pooled],
    held_out: Literal["speaker", "source"],
    shots: tuple[int, ...],
    draws: int,
    heads: int,
    seed: int,
    dataset: str,
    synthetic: bool,
    told: str,
    plot: Path | None,
    out: Path | None,
) -> None:
    """Measure the curves of all systems, compare the first with the others, and draw them."""
    from rich.markup import escape
    from rich.table import Table

    from isogloss.evaluation.fewshot import FewShotSettings, few_shot
    from isogloss.evaluation.fewshot_records import few_shot_records, few_shot_table
    from isogloss.evaluation.tables import footnotes, write_results

    settings = FewShotSettings(shots=shots, draws=draws, seeds=heads)
    curves = []
    for vectors in pooled:
        with progress_bar(f"few shots: {vectors.source}") as progress:
            curves.append(few_shot(vectors, held_out=held_out, settings=settings, seed=seed, progress=progress))
    if plot is not None:
        from isogloss.benchmark.charts import band_chart, standalone

        points = {
            curve.source: [
                (n, 100 * e.value, 100 * e.low, 100 * e.high)
                for n, e in ((n, curve.accuracy(i)) for i, n in enumerate(curve.shots))
            ]
            for curve in curves
        }
        chance = 100 / (curves[0].counts_NPSIK.shape[-1] / 2)  # hits and references of each language that was trained
        chart = band_chart(
            "Languages told, %", "labelled utterances per language", points, log_x=True, reference=chance
        )
        plot.write_text(standalone(chart), encoding="utf-8")
    rows = few_shot_records(curves[0], curves[1:], dataset=dataset, synthetic_speech=synthetic, notes=told)
    for curve in curves[1:]:
        rows += few_shot_records(curve, dataset=dataset, synthetic_speech=synthetic, notes=told)
    if out is not None:
        write_results(out, rows, append=True)
    header, cells = few_shot_table(curves)
    table = Table(title=f"{dataset}: labelled utterances per language, {held_out}s held out")
    for index, head in enumerate(header):
        table.add_column(head, justify="left" if index == 0 else "right", overflow="fold")
    for row in cells:
        table.add_row(*map(escape, row))
    console = to_people()
    console.print(table)
    first, layers = rows[0], ", ".join(str(curve.layer) for curve in curves)
    console.print(
        f"95 % intervals: {draws} draws, {heads} initial weights, {first.num_units} {first.unit}s resampled; layers {layers}",
        highlight=False,
        markup=False,
    )
    for line in (*footnotes([first]), first.notes, "" if out is None else f"results: {out}"):
        if line:
            console.print(line, highlight=False, markup=False)


def _numbers(text: str) -> tuple[int, ...]:
    from isogloss.core.errors import ConfigError

    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1:
        raise ConfigError(f"`--shots` must be numbers from 1 on with commas between, such as 1,5,10,25, but is {text}")
    return numbers


def _phone_splits(
    data: Path,
    language: str | None,
    labels: str,
    split: str,
    hours: float,
    seed: int,
    cache: Path | None,
    *,
    needs_times: bool = True,
) -> tuple[Any, bool, str]:
    from isogloss.core.errors import ConfigError
    from isogloss.core.languages import normalize_language
    from isogloss.data.inputs import open_corpus
    from isogloss.evaluation.lid import language_of
    from isogloss.evaluation.probe_corpus import with_phones
    from isogloss.evaluation.probe_splits import split_for_probe

    for option, value, known in (
        ("--split", split, ("auto", "given", "speaker", "source", "recording")),
        ("--labels", labels, ("auto", "alignment", "realign", "espeak", "ipa")),
    ):
        if value not in known:
            raise ConfigError(f"`{option}` must be one of {', '.join(known)}, but is {value}")
    cuts: list[Any] = list(open_corpus(data, language=language))
    if language is not None:
        tag = normalize_language(language).tag
        cuts = [cut for cut in cuts if language_of(cut) == tag]
    if labels == "ipa" and not needs_times:
        cuts, origin = [cut for cut in cuts if any(s.text for s in cut.supervisions)], "phones are the IPA text's"
    else:
        with progress_bar("aligning texts with speech") as progress:
            cuts, origin = with_phones(cuts, labels, cache_dir=cache, progress=progress)  # type: ignore[arg-type]
    synthetic = any((cut.custom or {}).get("synthetic") for cut in cuts)
    splits, told = split_for_probe(cuts, split, max_seconds=hours * 3600, seed=seed)  # type: ignore[arg-type]
    return splits, synthetic, f"{told}; {origin}"


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _pair(model: Path | None, versus: Path | None) -> list[Path]:
    """Return the models that are measured."""
    from isogloss.core.errors import ConfigError

    if versus is not None and model is None:
        raise ConfigError("`--versus` compares a model with the one of `--from`; give both")
    return [path for path in (model, versus) if path is not None]


def _rivals(model: Path | None, against: str | None) -> list[str]:
    """Return what is compared with, all that can be where nobody says."""
    if against is None:
        return ["mel", "mfcc"] if model is None else ["mel", "mfcc", "untrained"]
    return rivals(against)


def _finish(rows: Sequence[ResultRecord], out: Path | None, told: str) -> None:

    from isogloss.evaluation.tables import to_rich, write_results

    console = to_people()
    console.print(to_rich(rows))
    if told:
        console.print(told, highlight=False, markup=False)
    if out is not None:
        write_results(out, rows, append=True)
        console.print(f"results: {out}", highlight=False, markup=False)
