"""Wav2Vec2Model: the trunk itself."""

from __future__ import annotations

from functools import partial

from isogloss.core.keymap import KeyMap
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

FAMILY = Family(
    model_type="wav2vec2",
    model_class="Wav2Vec2Model",
    prefixes=("wav2vec2.",),
    keys=KEYS,
    heads=KeyMap(QUANTIZER + CONTEXT),
    head_classes=(HeadClass("Wav2Vec2ForPreTraining", frozenset({"wav2vec2"}), quantizer_sizes),),
    read_config=wave_config,
    write_config=partial(write_trunk, "wav2vec2"),
    extractor=wave_extractor,
    to_own=to_own,
    to_foreign=to_foreign,
    padding_note=padding_note,
    beside=("adapter.",),
)
