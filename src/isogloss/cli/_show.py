"""Progress on standard error and tables on standard output, the same in every verb of the corpus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Step = Callable[[float, float | None], None]
Stage = Callable[[str, int, int], None]


@contextmanager
def progress(description: str, unit: str = "") -> Iterator[Step]:
    """Show a bar while the block runs; yield `tell(done, total)`, total None where it is unknown."""
    with stages() as tell_stage:
        yield lambda done, total: tell_stage(f"{description} {unit}".strip(), int(done), int(total or 0))


@contextmanager
def stages() -> Iterator[Stage]:
    """Show one bar per stage while the block runs; yield `tell(stage, done, total)`. Nothing is drawn where no one looks."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        tasks = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total or None)
            bar.update(tasks[stage], completed=done, total=total or None)

        yield tell


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[float, float], None]]:
    """Show progress on standard error where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def to_people() -> Console:
    """Return the console on standard output: as wide as the terminal, and wide where no one looks, so that no file has cut tables."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else 200)


def print_table(table: Table) -> None:
    """Print a rich table."""
    to_people().print(table)


def counts_table(title: str, rows: Mapping[str, str]) -> Table:
    """Return a table of two columns."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    return table
