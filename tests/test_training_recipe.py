"""Recipes: what derives from what, what is refused, and one step of every recipe that comes with isogloss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import training_fakes as fakes
from isogloss.core.config import to_toml
from isogloss.core.errors import ConfigError
from isogloss.training.loop import train
from isogloss.training.recipe import RECIPES, differences, find_recipe, load_recipe, pretraining_recipes, recipe_tree
from isogloss.training.sizes import count_parameters

NAMES = sorted(path.stem for path in (RECIPES / "pretrain").glob("*.toml"))
EVERY = [str(path.relative_to(RECIPES).with_suffix("")) for path in pretraining_recipes()]
# Millions of parameters with the heads of pretraining (arXiv 2006.11477 and the released checkpoints; a float is a measurement).
PUBLISHED = {
    "wav2vec2-base": 95.04,
    "wav2vec2-large-lv60k": 317.39,
    "xls-r-300m": 317.39,
    "xls-r-1b": 965.5,
    "xls-r-2b": 2162.9,
}
ENCODERS = {"modified-cpc": 1_843_456}
# What makes a large model small; nothing else of the recipe changes.
SMALL_WAVE = [
    "encoder.conv_channels=[16, 16, 16, 16, 16, 16, 16]",
    "encoder.width=32",
    "encoder.num_layers=1",
    "encoder.num_heads=2",
    "encoder.ffn_width=32",
    "encoder.position_kernel=8",
    "encoder.position_groups=2",
]
SMALL_CPC = ["encoder.channels=16", "encoder.width=16"]
SHORT = [
    "training.updates=1",
    "data.seconds_per_update=2.4",
    "data.micro_batch_seconds=1.3",
    "data.min_seconds=0.4",
    "data.num_workers=0",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.make_corpus(tmp_path_factory.mktemp("corpus"), 8)


def test_the_published_recipes_are_there() -> None:
    assert set(PUBLISHED) | {"cpc", "modified-cpc", "wav2vec2-small", "cpc-small"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_what_it_is_and_resolves(name: str, tmp_path: Path) -> None:
    path = find_recipe(name)
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("command", "hardware", "hours", "expected"):
        assert any(line.startswith(f"# {word}") for line in head), f"{name} does not say its {word}"
    recipe = load_recipe(name)
    # the resolved recipe, written and read again, is the same recipe
    (tmp_path / "resolved.toml").write_text(to_toml(recipe.model_dump(mode="json")))
    assert load_recipe(tmp_path / "resolved.toml") == recipe


@pytest.mark.parametrize("name", NAMES)
def test_the_sizes_are_the_published_ones(name: str) -> None:
    encoder, objective = count_parameters(load_recipe(name))
    if name in PUBLISHED:
        assert (encoder + objective) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.06)
    if name in ENCODERS:
        assert encoder == ENCODERS[name]


@pytest.mark.parametrize("name", EVERY)
def test_one_step_of_every_recipe(name: str, corpus: Path, tmp_path: Path) -> None:
    is_wave = load_recipe(name).encoder.kind == "wave"
    small = [*(SMALL_WAVE if is_wave else SMALL_CPC), *SHORT, f'data.path="{corpus}"']
    small += ["data.max_seconds=1.0"] if is_wave else ["data.max_seconds=0.4"]
    recipe = load_recipe(name, small)
    result = train(recipe, tmp_path)
    assert result.step == 1
    assert torch.isfinite(torch.tensor(result.loss))
    assert (result.model_dir / "model.safetensors").exists()


def test_a_recipe_derives_and_may_be_derived_from(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'extends = "wav2vec2-base"\n[training]\nhours = 2\n[data]\nseconds_per_update = 60\n'
    )
    (tmp_path / "mine2.toml").write_text('extends = "mine"\n[optim]\nlr = 1e-4\n')
    recipe = load_recipe(tmp_path / "mine2.toml")
    assert (recipe.optim.lr, recipe.training.updates, recipe.training.hours) == (1e-4, None, 2)
    assert recipe.training.total_updates(60, 1e9) == 120
    assert recipe.objective == load_recipe("wav2vec2-base").objective
    assert "96 times less" in recipe.warnings()[0]
    assert not load_recipe("wav2vec2-base").warnings()
    (tmp_path / "a.toml").write_text('extends = "b"\n')
    (tmp_path / "b.toml").write_text('extends = "a"\n')
    with pytest.raises(ConfigError, match="circle"):
        load_recipe(tmp_path / "a.toml")


def test_overrides_may_change_the_objective_the_encoder_and_the_length() -> None:
    tree = recipe_tree(find_recipe("wav2vec2-base"), ["objective.k=3", "objective.name=other", "training.passes=2"])
    assert tree["objective"] == {"k": 3, "name": "other"}
    assert "updates" not in tree["training"]
    recipe = load_recipe("wav2vec2-base", ["encoder.preset=wave-tiny", "encoder.dropout=0.0"])
    assert (recipe.encoder.width, recipe.encoder.dropout) == (64, 0.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.rate=1", "unknown key `optim.rate`; did you mean `betas`|unknown key `optim.rate`"),
        ("training.precison=bf16", "unknown key `training.precison`; did you mean `precision`"),
        ("objective.num_negative=3", "did you mean `num_negatives`"),
        ("objective.name=wav2vec", "there is no objective `wav2vec`; did you mean `wav2vec2`"),
        ("encoder.preset=wav2vec2-bas", "did you mean `wav2vec2-base`"),
        ("schedule.warmup=1.5", "`schedule.warmup` is 1.5"),
        ("training.precision=fp16", "`training.precision` is 'fp16'"),
        ("data.max_seconds=100", "must be at most `micro_batch_seconds`"),
    ],
)
def test_a_mistake_is_told_in_one_line_with_its_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as told:
        load_recipe("wav2vec2-base", [override])
    assert "\n" not in str(told.value)


def test_only_what_changes_the_result_counts_as_a_difference() -> None:
    old = load_recipe("wav2vec2-base", ["data.path=a"]).model_dump(mode="json")
    new = load_recipe("wav2vec2-base", ["data.path=b", "training.keep=9", "training.parallel=fsdp2", "optim.lr=1e-3"])
    assert differences(old, new.model_dump(mode="json")) == ["`optim.lr` (was 0.0005, is 0.001)"]
