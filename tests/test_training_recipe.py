"""Recipes: what derives from what, what is refused, and one step of every recipe that comes with isogloss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import training_fakes as fakes
from isogloss.core.config import to_toml
from isogloss.core.errors import ConfigError
from isogloss.core.lookup import names_in
from isogloss.encoders.presets import build_encoder, preset
from isogloss.hub.save import save_model
from isogloss.labelling.iterations import run_iterations
from isogloss.training.iterations import load_iterations
from isogloss.training.recipe import (
    RECIPES,
    differences,
    find_recipe,
    iteration_trees,
    load_recipe,
    recipe_tree,
    shipped_recipes,
)
from isogloss.training.sizes import count_parameters

NAMES = sorted(path.stem for path in (RECIPES / "pretrain").glob("*.toml"))
EVERY = [
    str(path.relative_to(RECIPES).with_suffix(""))
    for path in shipped_recipes()
    if path.parent.name in ("pretrain", "demo")
]
# Millions of parameters with the heads of pretraining (arXiv 2006.11477 and the released checkpoints; a float is a measurement).
PUBLISHED = {
    "wav2vec2-base": 95.04,
    "wav2vec2-large-lv60k": 317.39,
    "xls-r-300m": 317.39,
    "xls-r-1b": 965.5,
    "xls-r-2b": 2162.9,
}
ENCODERS = {"modified-cpc": 1_843_456}
# What makes a large model small; nothing else of the recipe changes but how many units are made.
SMALL = {
    "wave": [
        "conv_channels=[16, 16, 16, 16, 16, 16, 16]",
        "width=32",
        "num_heads=2",
        "ffn_width=32",
        "position_groups=2",
    ],
    "wave_conformer": ["conv_channels=[16, 16, 16, 16, 16, 16, 16]", "width=32", "num_heads=2", "ffn_width=32"],
    "conformer": ["conv_channels=[4, 4]", "width=32", "num_heads=2", "ffn_width=32"],
    "cpc": ["channels=16", "width=16"],
    "wav2vec": ["channels=16"],
    "mel": ["width=32", "num_heads=2", "ffn_width=32"],
    "apc": ["width=16"],
    "text": ["width=32", "num_heads=2", "ffn_width=32"],
}
SHORT = [
    "training.updates=1",
    "data.seconds_per_update=2.4",
    "data.micro_batch_seconds=1.3",
    "data.min_seconds=0.4",
    "data.num_workers=0",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fakes.make_corpus(tmp_path_factory.mktemp("corpus"), 8)
    (folder / "text.txt").write_text("one line of text\nand another one\n" * 8)
    return folder


@pytest.fixture(scope="module")
def labelled_by(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, build_encoder(preset("wave-tiny")), None, {})
    return folder


def test_every_published_size_and_every_objective_has_a_recipe() -> None:
    assert set(PUBLISHED) | {"cpc", "modified-cpc", "wav2vec2-small", "cpc-small"} <= set(NAMES)
    assert {load_recipe(name).objective["name"] for name in NAMES} == set(names_in("isogloss.objectives"))


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
def test_one_step_of_every_recipe(name: str, corpus: Path, labelled_by: Path, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    encoder, objective = recipe.encoder, recipe.objective["name"]
    small = [f"encoder.{setting}" for setting in SMALL[encoder.kind]]
    if encoder.kind == "wave":
        small.append(f"encoder.position_kernel={7 if encoder.position == 'conv_stack' else 8}")
    if objective == "bert":
        small += ["training.updates=1", f'text.paths=["{corpus / "text.txt"}"]', "text.bytes_per_update=64"]
        small += ["text.micro_batch_bytes=32", "text.max_bytes=32"]
    else:
        small += [*SHORT, f'data.path="{corpus}"', f"data.max_seconds={0.4 if objective == 'cpc' else 1.2}"]
    labels = iteration_trees(find_recipe(name))[0].get("labels", {})
    if labels:
        small += ["labels.num_units=8", "labels.fit_share=1.0"]
    if labels.get("features") == "model":  # of a model that the recipe's user has: its first iteration's
        small += [f'labels.model="{labelled_by}"', "labels.layer=1"]
    if objective in ("ctc", "unispeech") and "small" not in name:
        small.append("objective.labels.unit=characters")  # the corpus has texts and no phones
    result = run_iterations(load_iterations(name, small), tmp_path)
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


def test_clusters_that_are_named_later_drop_how_own_ones_were_fitted(tmp_path: Path) -> None:
    for turn in load_iterations("hubert-small", ['labels.clusters="there"']):
        assert turn.labels is not None
        assert (turn.labels.clusters, turn.labels.fit_share, turn.labels.num_units) == ("there", 0.1, 100)
    with pytest.raises(ConfigError, match="fit_share must be left out with clusters"):
        load_iterations("hubert-small", ['labels.clusters="there"', "labels.fit_share=0.5"])
    own = tmp_path / "own.toml"
    own.write_text('extends = "hubert-small"\n[labels]\nclusters = "there"\nseed = 3\n')
    with pytest.raises(ConfigError, match="seed must be left out with clusters"):
        load_iterations(own)
    own.write_text('extends = "hubert-small"\n[labels]\nclusters = "there"\n')
    with pytest.raises(ConfigError, match="restarts must be left out with clusters"):
        load_iterations(own, ["labels.restarts=2"])
    assert [turn.labels and turn.labels.clusters for turn in load_iterations(own)] == ["there", "there"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.rate=1", "unknown key `optim.rate`; did you mean `betas`|unknown key `optim.rate`"),
        ("training.precison=bf16", "unknown key `training.precison`; did you mean `precision`"),
        ("objective.num_negative=3", "did you mean `num_negatives`"),
        ("objective.name=wav2vec3", "there is no objective `wav2vec3`; did you mean `wav2vec`"),
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
