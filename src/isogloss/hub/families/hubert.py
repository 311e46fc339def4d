"""HubertModel: the trunk itself."""

from __future__ import annotations

from functools import partial

from isogloss.core.keymap import KeyMap
from isogloss.hub.families._wave import (
    CONTEXT,
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
    model_type="hubert",
    model_class="HubertModel",
    objectives=frozenset({"hubert"}),
    prefixes=("hubert.",),
    keys=KEYS,
    heads=KeyMap(QUANTIZER + CONTEXT),
    read_config=wave_config,
    write_config=partial(write_trunk, "hubert"),
    extractor=wave_extractor,
    to_own=to_own,
    to_foreign=to_foreign,
    padding_note=padding_note,
    beside=("adapter.",),
)
