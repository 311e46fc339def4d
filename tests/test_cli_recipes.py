"""`isogloss recipes list|copy|check`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from isogloss.cli._recipe_check import check_recipe
from isogloss.cli.recipes import app
from isogloss.core.errors import ConfigError
from isogloss.training.recipe import RECIPES, shipped_recipes


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


def test_overrides_without_names_leave_out_suites_and_say_so() -> None:
    result = CliRunner().invoke(app, ["check", "--set", "training.log_every=3"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.exception
    assert "not checked, because `--set` cannot change a suite of systems: benchmark/objectives\n" in result.stderr
    assert "pretrain/hubert-small" in result.stdout
    assert "benchmark/objectives" not in result.stdout
    with pytest.raises(ConfigError, match="1 of the recipes cannot be used; first: .*cannot change a suite"):
        CliRunner().invoke(
            app, ["check", "benchmark/objectives", "--set", "training.log_every=3"], catch_exceptions=False
        )


def test_warnings_of_every_iteration_reach_the_verdict(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'extends = "wav2vec2-small"\npublished_seconds_per_update = 5600\n'
        "[[iterations]]\ndata = { seconds_per_update = 70.0 }\n"
        "[[iterations]]\ndata = { seconds_per_update = 80.0 }\n"
        "[[iterations]]\ndata = { seconds_per_update = 5600.0 }\n",
        encoding="utf-8",
    )
    verdict = check_recipe(own).verdict
    assert verdict.count("`data.seconds_per_update` is 70, below the published 5600 (80 times less)") == 1
    assert verdict.count("`data.seconds_per_update` is 80, below the published 5600 (70 times less)") == 1
    assert verdict.count("below the published") == 2


NAMES = [str(path.relative_to(RECIPES).with_suffix("")) for path in shipped_recipes()]


@pytest.mark.parametrize("name", NAMES)
def test_every_listed_recipe_can_be_checked(name: str) -> None:
    checked = check_recipe(name)
    assert checked.verdict.startswith("good")
    assert checked.length
    assert (checked.encoder is None) == (name.partition("/")[0] in ("adapt", "tasks", "benchmark"))


@pytest.mark.parametrize(
    ("name", "fault", "told"),
    [
        ("adapt/dense", "method.nam=1", "unknown key `nam"),
        ("adapt/dense", "adapt.heldou=0.2", "heldou"),
        ("adapt/lora", "method.name=lara", "did you mean `lora`"),
        ("adapt/dense", "start.froze=1", "froze"),
        ("adapt/dense", "optim.lrr=1", "optim.lrr"),
        ("tasks/asr", "task.nothing=1", "nothing"),
        ("tasks/asr", "training.update=1", "training.update"),
        ("tasks/lid", "start.froze=1", "froze"),
        ("benchmark/objectives", "shared.data=1", "cannot change a suite"),
        ("pretrain/hubert", "labels.num_unit=7", "num_unit"),
    ],
)
def test_faults_of_every_kind_are_found_without_a_model(name: str, fault: str, told: str) -> None:
    check_recipe(name)
    with pytest.raises(ConfigError, match=told):
        check_recipe(name, [fault])


def test_a_faulty_suite_and_what_only_the_model_decides(tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text("[budgets.small]\ntrain_seconds = 1\n[[systems]]\nname = 'a'\nrecipe = {}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"suite\.toml"):
        check_recipe(suite)
    own = tmp_path / "own.toml"
    own.write_text('extends = "dense"\n[encoder]\nlayerdrop = 0.1\n', encoding="utf-8")
    (tmp_path / "dense.toml").write_text((RECIPES / "adapt/dense.toml").read_text(encoding="utf-8"), encoding="utf-8")
    assert "so [encoder] could not be checked" in check_recipe(own).verdict
