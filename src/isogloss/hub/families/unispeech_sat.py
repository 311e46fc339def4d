"""UniSpeechSatModel: the trunk itself."""

from __future__ import annotations

from functools import partial

from isogloss.core.keymap import KeyMap
from isogloss.hub.families._wave import (
    KEYS,
    QUANTIZER,
    padding_note,
    to_foreign,
    to_own,
    wave_config,
    wave_extractor,
    write_trunk,
)
from isogloss.hub.families.base import Family

FAMILY = Family(
    model_type="unispeech-sat",
    model_class="UniSpeechSatModel",
    prefixes=("unispeech_sat.",),
    keys=KEYS,
    heads=KeyMap(QUANTIZER),
    read_config=wave_config,
    write_config=partial(write_trunk, "unispeech-sat"),
    extractor=wave_extractor,
    to_own=to_own,
    to_foreign=to_foreign,
    padding_note=padding_note,
    beside=("adapter.",),
)
