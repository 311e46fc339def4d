"""`isogloss recipes list|copy|check`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from isogloss.cli.recipes import app
from isogloss.core.errors import ConfigError


def test_list_shows_every_recipe() -> None:
    result = CliRunner().invoke(app, ["list"])
    assert result.exit_code == 0
    assert "pretrain/wav2vec2-base" in result.output
    assert "pretrain/cpc-small" in result.output


def test_copy_never_overwrites(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["copy", "wav2vec2-small", str(tmp_path)]).exit_code == 0
    assert "[objective]" in (tmp_path / "wav2vec2-small.toml").read_text()
    with pytest.raises(ConfigError, match="exists already"):
        CliRunner().invoke(app, ["copy", "wav2vec2-small", str(tmp_path)], catch_exceptions=False)
    with pytest.raises(ConfigError, match="did you mean `wav2vec2-small`"):
        CliRunner().invoke(app, ["copy", "wav2vec2-smal"], catch_exceptions=False)


def test_check_counts_parameters_and_names_what_is_wrong(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", "wav2vec2-base", "wav2vec2-small"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "94.37" in result.output
    bad = tmp_path / "bad.toml"
    bad.write_text('extends = "wav2vec2-base"\n[optim]\nlearning_rate = 1\n')
    with pytest.raises(
        ConfigError, match="1 of the recipes cannot be used; first: .*unknown key `optim.learning_rate`"
    ):
        CliRunner().invoke(app, ["check", str(bad)], catch_exceptions=False)
