"""What `--help` shows is what was written: names in square brackets are no markup."""

from __future__ import annotations

import importlib

import pytest
import typer
from typer.testing import CliRunner

from isogloss.cli.main import main


@pytest.mark.parametrize(
    ("verb", "names"),
    [("pretrain", ["[labels]", "[[iterations]]"]), ("finetune", ["[task]"]), ("label", ["[labels]"])],
)
def test_sections_of_recipes_are_named(verb: str, names: list[str]) -> None:
    app = importlib.import_module(f"isogloss.cli.{verb}").app
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}, catch_exceptions=False).output
    for name in names:
        assert f" {name} " in shown


def test_an_interrupted_verb_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def _stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("isogloss.cli.doctor"), "app", app)
    with pytest.raises(SystemExit) as caught:
        main(["doctor"])
    assert caught.value.code == 130
    assert capsys.readouterr().err.strip() == "isogloss: interrupted"
