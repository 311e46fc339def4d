"""`isogloss benchmark SUITE --data CORPUS --out DIR`: many systems on the same recordings, for the same seconds of speech."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isogloss.cli._out import check_folder

app = typer.Typer(add_completion=False)


@app.command()
def benchmark(
    suite: Annotated[str, typer.Argument(help="a TOML file, or the name of one that comes with isogloss: objectives")],
    data: Annotated[Path, typer.Option(help="a corpus with languages, voices, and texts or phone times")],
    out: Annotated[Path, typer.Option(help="folder of the runs, figures, table.md, curves and report.html")],
    languages: Annotated[
        Path | None,
        typer.Option(help="another corpus for language identification, with two sources of a language; not trained on"),
    ] = None,
    budget: Annotated[str, typer.Option(help="one that the suite names")] = "small",
    only: Annotated[list[str] | None, typer.Option(help="only these systems, as often as needed")] = None,
    seed: Annotated[int, typer.Option(help="of everything that is drawn")] = 1,
) -> None:
    """Pretrain every system of a suite on the same recordings, and measure each beside its untrained encoder and log-mel.

    Voices are held out of all training. What is finished is taken up when the command is given again; a system that fails is
    named, and the others go on.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    from isogloss.benchmark.prepare import BedSizes, prepare_bed, with_languages
    from isogloss.benchmark.suite import claim_folder, load_suite, run_system, watched_metrics
    from isogloss.benchmark.suite_report import comparison, write_suite
    from isogloss.cli._show import to_people
    from isogloss.core.errors import ConfigError
    from isogloss.core.lookup import nearest
    from isogloss.data.inputs import open_corpus

    check_folder(out)
    console = to_people()
    chosen = load_suite(suite)
    if budget not in chosen.budgets:
        raise ConfigError(f"the suite has no budget `{budget}`; {nearest(budget, list(chosen.budgets))}")
    names = [system.name for system in chosen.systems]
    for name in only or ():
        if name not in names:
            raise ConfigError(f"the suite has no system `{name}`; {nearest(name, names)}")
    systems = [system for system in chosen.systems if not only or system.name in only]
    sizes = chosen.budgets[budget]
    settings = {"data": str(data.resolve()), "languages": languages and str(languages.resolve()), "seed": seed}
    claim_folder(out, {**settings, "budget": sizes.model_dump(mode="json")})
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("reading the corpus", total=None)

        def progress(what: str, done: float, total: float) -> None:
            bar.update(task, description=what, completed=done, total=total)

        bed_sizes = BedSizes(sizes.phone_seconds, sizes.abx_seconds, sizes.seconds_per_voice)
        cuts = list(open_corpus(data))
        prepared = prepare_bed(cuts, out, bed_sizes, dataset=data.name, seed=seed, progress=progress)
        bed = prepared.bed
        if languages is not None:
            bed = with_languages(bed, list(open_corpus(languages)), sizes.seconds_per_voice, seed)
        results = []
        for number, system in enumerate(systems, 1):
            progress(f"{number}/{len(systems)} {system.name}: training", 0, 1)
            results.append(run_system(chosen, system, sizes, prepared.corpus, bed, out, seed=seed, progress=progress))
            if results[-1].failure:
                bar.console.print(f"{system.name}: {results[-1].failure}", markup=False, highlight=False)
    minutes = sizes.train_seconds / 60
    path = write_suite(
        results,
        out,
        title=f"isogloss benchmark: {suite}",
        lead=f"{len(systems)} systems, each trained on the same {minutes:g} minutes of speech, seed {seed}; {prepared.labels}.",
        watched=watched_metrics(chosen),
    )
    header, rows = comparison(results)
    table = Table(title=f"{minutes:g} minutes of speech each, voices held out")
    for index, head in enumerate(header):
        table.add_column(head, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for reason in dict.fromkeys(reason for result in results for reason in result.measured.left_out):
        console.print(f"left out: {reason}", markup=False, highlight=False)
    console.print(f"\nreport: {path}\ntable: {out / 'table.md'}", highlight=False)
