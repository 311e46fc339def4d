"""Configuration faults are told by name, with the nearest known key."""

from __future__ import annotations

from pathlib import Path

import pytest

from isogloss.core.config import Config, apply_overrides, parse, read_toml, to_toml
from isogloss.core.errors import ConfigError
from isogloss.core.keymap import KeyMap, Rule


class Optim(Config):
    learning_rate: float = 1e-4


class Recipe(Config):
    optim: Optim = Optim()
    seed: int = 0


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown key `optim.learning_rat`; did you mean `learning_rate`"):
        parse(Recipe, {"optim": {"learning_rat": 1}}, "recipe.toml")


def test_wrong_type_names_key_and_value() -> None:
    with pytest.raises(ConfigError, match="`seed` is 'many'"):
        parse(Recipe, {"seed": "many"}, "recipe.toml")


def test_overrides_reach_nested_keys_and_keep_the_source() -> None:
    tree = {"optim": {"learning_rate": 1.0}}
    changed = apply_overrides(tree, ["optim.learning_rate=2e-3", "seed=5", "name=plain words"])
    assert changed == {"optim": {"learning_rate": 2e-3}, "seed": 5, "name": "plain words"}
    assert tree == {"optim": {"learning_rate": 1.0}}
    with pytest.raises(ConfigError, match="section.key=value"):
        apply_overrides(tree, ["seed"])


def test_toml_round_trip(tmp_path: Path) -> None:
    tree = {"seed": 3, "name": 'a "quoted" ñ', "flag": True, "list": [1, 2.5, "x"], "optim": {"learning_rate": 1e-6}}
    (tmp_path / "r.toml").write_text(to_toml(tree), encoding="utf-8")
    assert read_toml(tmp_path / "r.toml") == tree
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(tmp_path / "bad.toml")


def test_key_map_goes_both_ways_and_knows_nothing_else() -> None:
    keys = KeyMap([Rule("encoder.layers.{i}.fc1.weight", "blocks.{i}.feed_forward.up.weight")])
    assert keys.to_own("encoder.layers.11.fc1.weight") == "blocks.11.feed_forward.up.weight"
    assert keys.to_foreign("blocks.11.feed_forward.up.weight") == "encoder.layers.11.fc1.weight"
    assert keys.to_own("xencoder.layers.1.fc1.weight") is None
    assert keys.to_own("encoder.layers.1.fc1.weightx") is None
