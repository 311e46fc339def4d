"""What `--help` shows is what was written: names in square brackets are no markup."""

from __future__ import annotations

import importlib

import pytest
from typer.testing import CliRunner


@pytest.mark.parametrize(
    ("verb", "names"),
    [("pretrain", ["[labels]", "[[iterations]]"]), ("finetune", ["[task]"]), ("label", ["[labels]"])],
)
def test_sections_of_recipes_are_named(verb: str, names: list[str]) -> None:
    app = importlib.import_module(f"isogloss.cli.{verb}").app
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}, catch_exceptions=False).output
    for name in names:
        assert f" {name} " in shown
