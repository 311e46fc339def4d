"""UniSpeechSatModel: the trunk itself."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from isogloss.core.keymap import KeyMap, Rule
from isogloss.hub.families._wave import (
    CONTEXT,
    KEYS,
    QUANTIZER,
    padding_note,
    quantizer_sizes,
    to_foreign,
    to_own,
    wave_config,
    wave_extractor,
    write_trunk,
)
from isogloss.hub.families.base import Family, HeadClass
from isogloss.hub.names import both

_HEADS = [
    *QUANTIZER,
    *CONTEXT,
    *both("speaker_proj", "project_speaker"),
    *both("layer_norm_for_extract", "middle_norm"),
    Rule("label_embeddings_concat", "label_embeddings"),
    # Our own names of the last two, for writing.
    *both("project_hid", "heads.{i}.projection"),
    Rule("label_embeddings_concat", "heads.{i}.embeddings_CF"),
]


def _finish(heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put four rows before the units: released tables begin with the specials of fairseq's dictionaries, and so they are read."""
    table = heads["label_embeddings_concat"]
    return {**heads, "label_embeddings_concat": torch.cat([table.new_zeros(4, table.shape[1]), table])}


def _sizes(heads: Mapping[str, Tensor], objective_tree: Mapping[str, Any]) -> dict[str, Any]:
    return quantizer_sizes(heads, objective_tree) | {"num_clusters": len(heads["label_embeddings_concat"])}


FAMILY = Family(
    model_type="unispeech-sat",
    model_class="UniSpeechSatModel",
    prefixes=("unispeech_sat.",),
    keys=KEYS,
    heads=KeyMap(_HEADS),
    head_classes=(HeadClass("UniSpeechSatForPreTraining", frozenset({"unispeech_sat"}), _sizes, _finish),),
    read_config=wave_config,
    write_config=partial(write_trunk, "unispeech-sat"),
    extractor=wave_extractor,
    to_own=to_own,
    to_foreign=to_foreign,
    padding_note=padding_note,
    beside=("adapter.",),
)
