"""`isogloss evaluate --reference FILE --hypothesis FILE --metric wer`: score hypotheses, with confidence intervals."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from isogloss.cli._out import check_file

app = typer.Typer(add_completion=False)


class MetricChoice(StrEnum):
    """What to compute; `per_utterance` is the mean of the utterances' own PER."""

    wer = "wer"
    cer = "cer"
    per = "per"
    per_utterance = "per_utterance"
    accuracy = "accuracy"
    macro_accuracy = "macro_accuracy"
    macro_f1 = "macro_f1"
    eer = "eer"
    min_dcf = "min_dcf"


class LabelsChoice(StrEnum):
    """Where the references come from."""

    gold = "gold"
    silver = "silver"
    synthetic = "synthetic"


@app.command()
def evaluate(
    reference: Annotated[
        Path, typer.Option(help="ids with texts, labels or target/nontarget: .jsonl, .csv, .tsv, Kaldi text")
    ],
    hypothesis: Annotated[
        list[Path],
        typer.Option(help="the same ids in the same order; as often as needed, the first is compared with the rest"),
    ],
    metric: Annotated[MetricChoice, typer.Option(help="what to compute")],
    dataset: Annotated[str, typer.Option(help="name of the test set in the results; the reference's by default")] = "",
    labels: Annotated[LabelsChoice, typer.Option(help="where the references come from")] = LabelsChoice.gold,
    synthetic_speech: Annotated[bool, typer.Option("--synthetic-speech", help="the speech was synthesised")] = False,
    resamples: Annotated[int, typer.Option(min=100, help="of the bootstrap")] = 2000,
    level: Annotated[float, typer.Option(min=0.5, max=0.999, help="of the intervals")] = 0.95,
    seed: Annotated[int, typer.Option(help="of the bootstrap")] = 0,
    out: Annotated[Path | None, typer.Option(help="append the results to this JSON lines file")] = None,
) -> None:
    """Score hypotheses against references; a missing, repeated, unknown or moved id is refused by name.

    Intervals resample speakers where the reference has a `speaker` field (five or more of them), else utterances.
    """

    from isogloss.cli._show import to_people
    from isogloss.evaluation.scoring import read_rows, score_files
    from isogloss.evaluation.tables import to_rich, write_results

    check_file(out)
    # Files of one name in several folders are told apart by their paths.
    is_ambiguous = len({path.stem for path in hypothesis}) < len(hypothesis)
    records = score_files(
        read_rows(reference),
        [read_rows(path, str(path.with_suffix("")) if is_ambiguous else "") for path in hypothesis],
        metric.value,
        dataset=dataset or reference.stem,
        labels=labels.value,
        synthetic_speech=synthetic_speech,
        resamples=resamples,
        level=level,
        seed=seed,
    )
    console = to_people()
    console.print(to_rich(records))
    if out is not None:
        write_results(out, records, append=True)
        console.print(f"results: {out}", highlight=False, markup=False)
