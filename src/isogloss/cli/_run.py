"""What the verbs that train share: their options, warnings, and the record of energy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class ResumeChoice(StrEnum):
    """What to do where RUN holds checkpoints, or none."""

    auto = "auto"
    never = "never"
    must = "must"


Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value, as often as needed", metavar="KEY=VALUE")
]
Resume = Annotated[ResumeChoice, typer.Option(help="auto: continue where there are checkpoints; never; must")]
AllowDataChange = Annotated[
    bool, typer.Option("--allow-data-change", help="resume although the corpus or the number of processes changed")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything and say what would be trained")]


def say_warnings(warnings: Iterable[str], is_main: bool) -> None:
    """Tell each warning once, on standard error."""
    for warning in dict.fromkeys(warnings):
        if is_main:
            typer.echo(f"warning: {warning}", err=True)


@contextmanager
def energy_record(out: Path, is_main: bool) -> Iterator[None]:
    """Add a record of the energy to `energy.jsonl`, however the run ends: one line for each time that it was started."""
    import json

    from isogloss.evaluation.energy import EnergyMeter

    meter = EnergyMeter()
    try:
        with meter:
            yield
    finally:
        if is_main and out.is_dir():
            with (out / "energy.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(meter.record()) + "\n")


def quoted(path: Path) -> str:
    """Return a path as a value of `--set`."""
    import json

    return json.dumps(str(path), ensure_ascii=False)
