"""SpeechT5's speech encoder: the trunk with sinusoids and clipped relative keys, inside an encoder-decoder.

The decoder and the other pre- and post-nets come along as heads under their own names; nothing here computes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from isogloss.core.config import Config
from isogloss.core.keymap import KeyMap, Rule
from isogloss.encoders.wave import ClippedRelative, WaveConfig
from isogloss.hub.families._wave import (
    POSITION,
    TRUNK,
    padding_note,
    read_wave,
    to_foreign,
    to_own,
    wave_extractor,
    write_wave,
)
from isogloss.hub.families.base import Family

_PLACES = {
    "masked_spec_embed": "prenet.masked_spec_embed",
    "feature_extractor.": "prenet.feature_encoder.",
    "feature_projection.": "prenet.feature_projection.",
    "encoder.pos_conv_embed.": "prenet.pos_conv_embed.",
    "encoder.": "wrapped_encoder.",
}
_RENAMED = {
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim",
    "layerdrop": "encoder_layerdrop",
    "do_stable_layer_norm": "do_stable_layer_norm",
}
_USE = """from transformers import AutoFeatureExtractor
from transformers.models.speecht5.modeling_speecht5 import SpeechT5EncoderWithSpeechPrenet

model = SpeechT5EncoderWithSpeechPrenet.from_pretrained("FOLDER").eval()
extractor = AutoFeatureExtractor.from_pretrained("FOLDER")
inputs = extractor(waveform, sampling_rate=16_000, return_tensors="pt")  # mono, 16 kHz
states = model(**inputs, output_hidden_states=True).hidden_states"""


def _placed(rule: Rule) -> Rule:
    old, new = next((old, new) for old, new in _PLACES.items() if rule.foreign.startswith(old))
    return Rule(new + rule.foreign.removeprefix(old), rule.own)


def _read(tree: dict[str, Any], folder: Path) -> WaveConfig:
    tree = {"activation_dropout": 0.1, "feat_proj_dropout": 0.0, "encoder_layerdrop": 0.1} | tree
    inner = tree | {inner: tree[outer] for inner, outer in _RENAMED.items() if outer in tree}
    fixed = {
        "norm_first": False,
        "position": "conv_sinusoid",
        "relative": {"kind": "clipped", "max_distance": tree.get("encoder_max_relative_position", 160)},
    }
    return read_wave(inner, folder, fixed)


def _write(config: Config) -> dict[str, Any] | None:
    if not isinstance(config, WaveConfig) or config.position != "conv_sinusoid" or config.norm_first:
        return None
    if not isinstance(config.relative, ClippedRelative):
        return None
    tree = write_wave(config, "speecht5")
    renamed = {outer: tree.pop(inner) for inner, outer in _RENAMED.items()}
    renamed.pop("do_stable_layer_norm")
    # The sinusoids count from behind the padding index, which must be 1 to give positions from 2.
    return tree | renamed | {"encoder_max_relative_position": config.relative.max_distance, "pad_token_id": 1}


def _to_own(plain: Mapping[str, Tensor], config: WaveConfig, notes: list[str]) -> dict[str, Tensor]:
    notes.append("the speech encoder was taken; the decoder and the other nets of SpeechT5 are among the heads")
    return to_own(plain, config, notes)


FAMILY = Family(
    model_type="speecht5",
    model_class="SpeechT5EncoderWithSpeechPrenet",
    prefixes=("speecht5.encoder.", "encoder."),
    keys=KeyMap(
        [_placed(rule) for rule in TRUNK + POSITION]
        + [Rule("wrapped_encoder.embed_positions.pe_k.weight", "relative.weight")]
    ),
    read_config=_read,
    write_config=_write,
    extractor=wave_extractor,
    to_own=_to_own,
    to_foreign=to_foreign,
    use=_USE,
    padding_note=padding_note,
)
