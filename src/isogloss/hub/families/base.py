"""What a family of foreign models is: how its `config.json`, its tensors and its heads are read and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from isogloss.core.config import Config
from isogloss.core.errors import CheckpointError
from isogloss.core.keymap import KeyMap
from isogloss.core.lookup import find_module, names_in
from isogloss.encoders.base import Encoder
from isogloss.encoders.presets import EncoderConfig

_PACKAGE = "isogloss.hub.families"

WAVE_EXTRACTOR: dict[str, Any] = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "sampling_rate": 16_000,
    "padding_value": 0.0,
    "padding_side": "right",
}
USE = """from transformers import AutoFeatureExtractor, AutoModel

model = AutoModel.from_pretrained("FOLDER").eval()
extractor = AutoFeatureExtractor.from_pretrained("FOLDER")
inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt")  # mono, 16 kHz
states = model(**inputs, output_hidden_states=True).hidden_states"""


def _same_tensors(tensors: Mapping[str, Tensor], config: Any, notes: list[str]) -> dict[str, Tensor]:
    return dict(tensors)


def _no_sizes(heads: Mapping[str, Tensor], objective_tree: Mapping[str, Any]) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class HeadClass:
    """A class of transformers for the trunk with the heads of some of our objectives.

    `finish(foreign heads)` changes shapes; `head_sizes(finished heads, objective's tree)` gives the keys of `config.json` that
    describe them.
    """

    name: str
    objectives: frozenset[str]
    head_sizes: Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Any]] = _no_sizes
    finish: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict


@dataclass(frozen=True)
class Family:
    """Models of one `model_type` of Hugging Face.

    prefixes
        What the trunk's tensors begin with inside models with heads, first match counts; a bare trunk has none of them.
    keys, heads
        Names of the trunk's and of the heads' tensors; `{i}` is a number. Own names of heads are those of the objectives.
    read_config(tree, folder)
        `config.json` to our configuration; `CheckpointError` names what our encoder cannot compute.
    write_config(config)
        Back, without `architectures`; None where no model of this family computes such an encoder.
    to_own(plain, config, notes), to_foreign(own, config, notes)
        What names cannot say: shapes, tensors that one side does not have. Both work under our names.
    beside
        Beginnings of names inside the trunk that are no part of the encoder (adapters).
    extractor(config)
        `preprocessor_config.json`.
    """

    model_type: str
    model_class: str
    prefixes: tuple[str, ...]
    keys: KeyMap
    read_config: Callable[[dict[str, Any], Path], EncoderConfig]
    write_config: Callable[[Config], dict[str, Any] | None]
    extractor: Callable[[Any], dict[str, Any]]
    to_own: Callable[[Mapping[str, Tensor], Any, list[str]], dict[str, Tensor]] = _same_tensors
    to_foreign: Callable[[Mapping[str, Tensor], Any, list[str]], dict[str, Tensor]] = _same_tensors
    heads: KeyMap = field(default_factory=lambda: KeyMap([]))
    head_classes: tuple[HeadClass, ...] = ()
    beside: tuple[str, ...] = ()
    use: str = USE
    padding_note: Callable[[Any], str] = lambda config: ""
    objectives: frozenset[str] = (
        frozenset()
    )  # whose encoders are written as this family, though no class has their heads

    def head_class(self, objective_tree: Mapping[str, Any] | None) -> HeadClass | None:
        """Return the class that has the heads of an objective."""
        name = (objective_tree or {}).get("name")
        return next((item for item in self.head_classes if name in item.objectives), None)


def family_names() -> list[str]:
    """Return the model types that can be read."""
    return [_family(name).model_type for name in names_in(_PACKAGE)]


def find_family(model_type: Any, where: Path) -> Family:
    """Return the family of a `model_type`; one that no file knows is a `CheckpointError`."""
    for name in names_in(_PACKAGE):
        family = _family(name)
        if family.model_type == model_type:
            return family
    raise CheckpointError(
        f"{where}: `model_type` must be one of {', '.join(family_names())}, but is {model_type!r}; other models have another trunk"
    )


def family_for(encoder: Encoder, objective_tree: Mapping[str, Any] | None) -> tuple[Family, dict[str, Any]]:
    """Return the family to write an encoder as, and its `config.json`.

    Among the families that compute this encoder, one with a class for the objective's heads is taken, otherwise one that
    names the objective, otherwise wav2vec 2.0 (which most tools know), otherwise the first by name.
    """
    families = [_family(name) for name in names_in(_PACKAGE)]
    fitting = [(family, tree) for family in families if (tree := family.write_config(encoder.config)) is not None]
    if not fitting:
        raise CheckpointError(
            f"this encoder is `{encoder.config.model_dump()['kind']}`, for which transformers has no class; keep its isogloss "
            "folder, which `isogloss.load_encoder` opens"
        )
    name = (objective_tree or {}).get("name")

    def order(pair: tuple[Family, dict[str, Any]]) -> tuple[bool, bool, bool]:
        family = pair[0]
        return family.head_class(objective_tree) is None, name not in family.objectives, family.model_type != "wav2vec2"

    return min(fitting, key=order)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; anything else is a `CheckpointError`."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); download it again") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: must hold an object, but holds {type(tree).__name__}")
    return tree


def _family(name: str) -> Family:
    family: Family = find_module(_PACKAGE, name).FAMILY
    return family
