"""`isogloss recipes list|copy|check`: the recipes that come with isogloss, and yours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isogloss.cli._run import Overrides

app = typer.Typer(add_completion=False, no_args_is_help=True)


@app.command("list")
def list_recipes() -> None:
    """Show the recipes that come with isogloss, with the first line of each."""
    from rich.table import Table

    from isogloss.cli._show import print_table
    from isogloss.training.recipe import RECIPES, shipped_recipes

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    table.add_column("what")
    for path in shipped_recipes():
        first = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
        table.add_row(str(path.relative_to(RECIPES).with_suffix("")), first)
    print_table(table)


@app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="a name that `isogloss recipes list` shows")],
    target: Annotated[Path | None, typer.Argument(help="file or folder; the current folder by default")] = None,
) -> None:
    """Copy a recipe, to change it; it is never overwritten."""
    from isogloss.core.errors import ConfigError
    from isogloss.training.recipe import find_recipe

    source = find_recipe(name)
    place = target or Path()
    file = place / source.name if place.is_dir() else place
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise ConfigError(f"{file} exists already; choose another name") from None
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}") from None
    typer.echo(str(file))


@app.command("check")
def check_recipes(
    recipes: Annotated[list[str] | None, typer.Argument(help="files or names; all shipped ones by default")] = None,
    overrides: Overrides = None,
) -> None:
    """Check recipes without training: every key, every value, and the sizes of the model that they describe.

    Recipes that start from a model need not name it: what the model decides is not checked then.
    """
    from rich.markup import escape
    from rich.table import Table

    from isogloss.cli._recipe_check import check_recipe, is_suite
    from isogloss.cli._show import print_table
    from isogloss.core.errors import ConfigError, IsoglossError
    from isogloss.training.recipe import RECIPES, shipped_recipes

    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "encoder (M)", "objective (M)", "seconds per update", "length", "verdict"):
        table.add_column(column, justify="right" if "(M)" in column else "left")
    names = recipes or [str(path) for path in shipped_recipes()]
    if overrides and not recipes:
        suites = [name for name in names if is_suite(name)]
        names = [name for name in names if name not in suites]
        shown = ", ".join(str(Path(name).relative_to(RECIPES).with_suffix("")) for name in suites)
        typer.echo(f"not checked, because `--set` cannot change a suite of systems: {shown}", err=True)
    faults = []
    for name in names:
        shown = str(Path(name).relative_to(RECIPES)) if Path(name).is_relative_to(RECIPES) else name
        shown = shown.removesuffix(".toml")
        try:
            checked = check_recipe(name, overrides or [])
        except IsoglossError as error:
            faults.append(str(error))
            table.add_row(shown, "", "", "", "", f"[red]wrong[/]: {escape(str(error))}")
            continue
        sizes = ("" if size is None else f"{size / 1e6:.2f}" for size in (checked.encoder, checked.objective))
        table.add_row(shown, *sizes, checked.seconds_per_update, checked.length, escape(checked.verdict))
    print_table(table)
    if faults:
        raise ConfigError(f"{len(faults)} of the recipes cannot be used; first: {faults[0]}")
