"""The encoders that can be named: every published size, and small ones for tests and demonstrations."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from isogloss.core.errors import ConfigError
from isogloss.core.lookup import find_class, find_module, nearest
from isogloss.encoders import (
    _conformer_presets,
    _cpc_presets,
    _mel_presets,
    _text_presets,
    _wav2vec_presets,
    _wave_conformer_presets,
    _wave_presets,
)
from isogloss.encoders.apc import ApcConfig
from isogloss.encoders.base import Encoder
from isogloss.encoders.conformer import ConformerConfig
from isogloss.encoders.cpc import CpcConfig
from isogloss.encoders.mel import MelConfig
from isogloss.encoders.text import TextConfig
from isogloss.encoders.wav2vec import Wav2VecConfig
from isogloss.encoders.wave import WaveConfig
from isogloss.encoders.wave_conformer import WaveConformerConfig

# A new kind of encoder adds its configuration here, and its `_<kind>_presets.PRESETS` below.
EncoderConfig = Annotated[
    WaveConfig | CpcConfig | ConformerConfig | WaveConformerConfig | Wav2VecConfig | MelConfig | ApcConfig | TextConfig,
    Field(discriminator="kind"),
]

_PRESETS: dict[str, EncoderConfig] = {
    **_wave_presets.PRESETS,
    **_cpc_presets.PRESETS,
    **_wav2vec_presets.PRESETS,
    **_mel_presets.PRESETS,
    **_conformer_presets.PRESETS,
    **_wave_conformer_presets.PRESETS,
    **_text_presets.PRESETS,
}


def preset_names() -> list[str]:
    """Return the names that `preset` knows."""
    return list(_PRESETS)


def preset(name: str) -> EncoderConfig:
    """Return the configuration of a named encoder; an unknown name is a `ConfigError` that names the nearest one."""
    if name not in _PRESETS:
        raise ConfigError(f"there is no encoder `{name}`; {nearest(name, preset_names())}")
    return _PRESETS[name]


def build_encoder(config: EncoderConfig) -> Encoder:
    """Build the encoder that a configuration describes (`config.kind` is its file), with fresh weights (torch's generator)."""
    build: Any = find_class(find_module("isogloss.encoders", config.kind), Encoder)
    encoder: Encoder = build(config)
    return encoder
