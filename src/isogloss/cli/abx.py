"""`isogloss abx --from MODEL --data DIR`: how well features tell phones apart, beside log-mel and MFCC."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from isogloss.cli._out import check_file
from isogloss.cli._sources import ForLanguage, check_sources, feature_sources, open_models, rivals

app = typer.Typer(add_completion=False)


class SpeakerChoice(StrEnum):
    """Whose tokens are compared."""

    within = "within"
    across = "across"
    both = "both"


class ContextChoice(StrEnum):
    """What is compared: whole triphones, phones between equal neighbours, or phones whatever their neighbours."""

    triphone = "triphone"
    phone = "phone"
    any = "any"
    all = "all"


@app.command()
def abx(
    data: Annotated[Path, typer.Option(help="a corpus in any accepted form, with phone alignments")],
    model: Annotated[
        list[Path] | None,
        typer.Option("--from", help="a model: isogloss or Hugging Face folder, fairseq .pt; as often as needed"),
    ] = None,
    features: Annotated[
        list[Path] | None, typer.Option(help="a folder that `isogloss extract` wrote; as often as needed")
    ] = None,
    layer: Annotated[list[int] | None, typer.Option(help="as often as needed; all by default; -1 is the last")] = None,
    against: Annotated[str, typer.Option(help="comma-separated: mel, mfcc, untrained; empty for none")] = "mel,mfcc",
    speaker: Annotated[SpeakerChoice, typer.Option(help="within, across or both")] = SpeakerChoice.both,
    context: Annotated[
        ContextChoice,
        typer.Option(help="whole triphones, phones between equal neighbours, any neighbours, or all three"),
    ] = ContextChoice.triphone,
    labels: Annotated[
        str, typer.Option(help="auto, alignment, espeak (silver, from texts), ipa (silver, texts are IPA)")
    ] = "auto",
    language: Annotated[str | None, typer.Option(help="of utterances which say none")] = None,
    for_language: ForLanguage = None,
    max_cuts: Annotated[int | None, typer.Option(min=2, help="a sample of the corpus, the same for one seed")] = None,
    max_tokens: Annotated[int, typer.Option(min=0, help="of one phone, context and speaker; 0 for all")] = 10,
    max_x_speakers: Annotated[int, typer.Option(min=0, help="speakers of x for one phone of a; 0 for all")] = 5,
    drop_last: Annotated[
        bool, typer.Option("--drop-last", help="leave out each token's last frame, as Libri-Light did")
    ] = False,
    resamples: Annotated[int, typer.Option(min=100, help="of the bootstrap")] = 2000,
    seed: Annotated[int, typer.Option(help="of the sampling and the bootstrap")] = 0,
    cache: Annotated[Path | None, typer.Option(help="folder that keeps features for the next time")] = None,
    out: Annotated[Path | None, typer.Option(help="append the results to this JSON lines file")] = None,
) -> None:
    """ABX error of features on a corpus with phone alignments; chance is 50 %, lower is better.

    Every source is scored on the same tokens, and compared with the first one. Intervals resample speakers; with fewer than
    five of them they leave out utterances in turn, and say so.
    """

    from isogloss.cli._names import short_name
    from isogloss.cli._show import progress_bar, stages, to_people
    from isogloss.core.rng import derive_seed
    from isogloss.data.inputs import open_corpus
    from isogloss.evaluation.abx_records import measure_abx
    from isogloss.evaluation.probe_corpus import with_phones
    from isogloss.evaluation.tables import to_rich, write_results

    check_file(out)
    models, others = model or [], rivals(against)
    check_sources(models, others, folders=features or [], layers=layer is not None, language=for_language)
    opened = open_models(models, for_language)
    cuts: list[Any] = list(open_corpus(data, language=language))
    with progress_bar("aligning texts with speech") as progress:
        cuts, told = with_phones(cuts, labels, cache_dir=cache, progress=progress)  # type: ignore[arg-type]
    told = "; ".join(filter(None, (told, *(own.note for own in opened))))
    if max_cuts is not None:
        cuts = sorted(cuts, key=lambda cut: derive_seed("abx cuts", seed, cut.id))[:max_cuts]
    sources = list(feature_sources(opened, others, cuts, folders=features or [], layers=layer, seed=seed, cache=cache))
    with stages() as tell:
        records, problems = measure_abx(
            sources,
            cuts,
            dataset=short_name(data),
            speakers=("within", "across") if speaker == "both" else (speaker.value,),  # type: ignore[arg-type]
            contexts=("triphone", "phone", "any") if context == "all" else (context.value,),  # type: ignore[arg-type]
            max_tokens=max_tokens or None,
            max_x_speakers=max_x_speakers or None,
            drop_last=drop_last,
            seed=seed,
            resamples=resamples,
            notes=told,
            tell=tell,
        )
    console = to_people()
    console.print(to_rich(records))
    for line in (told, *(f"not measured: {problem}" for problem in problems)):
        console.print(line, highlight=False, markup=False)
    if out is not None:
        write_results(out, records, append=True)
        console.print(f"results: {out}", highlight=False, markup=False)
