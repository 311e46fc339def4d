"""UniSpeechModel: the trunk itself. The output layer of CTC stays under its own name: which symbols it writes is not told."""

from __future__ import annotations

from functools import partial

from isogloss.core.keymap import KeyMap
from isogloss.hub.families._wave import (
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

FAMILY = Family(
    model_type="unispeech",
    model_class="UniSpeechModel",
    prefixes=("unispeech.",),
    keys=KEYS,
    heads=KeyMap(QUANTIZER + both("project_hid", "lift_targets")),
    head_classes=(HeadClass("UniSpeechForPreTraining", frozenset({"unispeech"}), quantizer_sizes),),
    read_config=wave_config,
    write_config=partial(write_trunk, "unispeech"),
    extractor=wave_extractor,
    to_own=to_own,
    to_foreign=to_foreign,
    padding_note=padding_note,
    beside=("adapter.",),
)
