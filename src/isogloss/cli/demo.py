"""`isogloss demo`: the whole chain in minutes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from isogloss.cli._out import check_folder

app = typer.Typer(add_completion=False)


class SpeechChoice(StrEnum):
    """Which recordings to use."""

    auto = "auto"
    real = "real"
    synthetic = "synthetic"


class SizeChoice(StrEnum):
    """How much of everything."""

    tiny = "tiny"
    small = "small"
    large = "large"


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for the recordings, runs, results.jsonl and report.html")] = Path(
        "demo"
    ),
    speech: Annotated[
        SpeechChoice, typer.Option(help="auto: Debian's recordings where apt can get them, else synthesised speech")
    ] = SpeechChoice.auto,
    size: Annotated[SizeChoice, typer.Option(help="tiny: for tests; small: minutes; large: hours")] = SizeChoice.small,
    seed: Annotated[int, typer.Option(help="of everything that is drawn")] = 1,
) -> None:
    """Obtain speech, audit it, pretrain by three objectives, measure them beside log-mel and their untrained selves, report.

    An interrupted demo goes on where it stopped. It downloads at most about 220 MB, and says so before.
    """
    from rich.table import Table

    from isogloss.benchmark.demo import run_demo
    from isogloss.benchmark.demo_report import findings, result_table, write_report
    from isogloss.cli._show import to_people

    check_folder(out)
    console = to_people()
    result = run_demo(out, size=size.value, speech=speech.value, seed=seed, console=console)
    path = write_report(result)
    header, rows = result_table(result)
    table = Table(title="synthesised speech" if result.synthetic else "real recordings, voices held out")
    for index, head in enumerate(header):
        table.add_column(head, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row, style="bold" if row[0] in result.runs else None)
    console.print(table)
    for line in findings(result):
        console.print(f"  {line}", highlight=False, markup=False)
    for reason in result.measured.left_out:
        console.print(f"left out: {reason}", highlight=False, markup=False)
    console.print(f"\nreport: {path}\nfigures: {out / 'results.jsonl'}", highlight=False)
