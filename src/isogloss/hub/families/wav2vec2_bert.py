"""Wav2Vec2BertModel: w2v-BERT 2.0, Conformer blocks on stacked Kaldi filterbanks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from isogloss.core.config import Config, parse
from isogloss.core.errors import CheckpointError, ConfigError
from isogloss.core.keymap import KeyMap, Rule
from isogloss.encoders.conformer import ConformerConfig
from isogloss.hub.families import _conformer
from isogloss.hub.families.base import Family, read_json
from isogloss.hub.names import both

_KEYS = KeyMap(
    [
        Rule("masked_spec_embed", "mask_embedding_D"),
        *both("feature_projection.layer_norm", "latent_norm"),
        *both("feature_projection.projection", "projection"),
        *_conformer.BLOCK,
        *both("encoder.layers.{i}.conv_module.depthwise_layer_norm", "layers.{i}.conv.norm"),
    ]
)
_SHAPE = {
    "filterbank": "kaldi16",
    "subsampling": "stack",
    "normalization": "utterance",
    "num_deltas": 0,
    "conv_norm": "layer",
    "causal_convolution": True,
    "final_norm": False,
}
# Of transformers' class; what is not written in a file has these values.
_DEFAULTS: dict[str, Any] = {
    "num_heads": 16,
    "kernel": 31,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "layerdrop": 0.1,
}


def _read(tree: dict[str, Any], folder: Path) -> ConformerConfig:
    fields = _conformer.read_blocks(tree, folder, default_activation="swish", default_positions="relative_key")
    names = {"distance_left": "left_max_position_embeddings", "distance_right": "right_max_position_embeddings"}
    fields |= {own: tree[foreign] for own, foreign in names.items() if foreign in tree}
    extractor: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").exists():
        extractor = read_json(folder / "preprocessor_config.json")
    if extractor.get("sampling_rate", 16_000) != 16_000:
        raise CheckpointError(
            f"{folder}: the model expects {extractor['sampling_rate']!r} samples a second, and only 16000 are supported"
        )
    stride, width = extractor.get("stride", 2), tree.get("feature_projection_input_dim", 160)
    num_bins = extractor.get("num_mel_bins")
    if num_bins is None and isinstance(width, int) and isinstance(stride, int) and stride > 0:
        num_bins = width // stride
    if not isinstance(num_bins, int) or not isinstance(stride, int) or num_bins * stride != width:
        raise CheckpointError(
            f"{folder}: `feature_projection_input_dim` must be num_mel_bins·stride, but is {width!r} with {num_bins!r} bins "
            f"and stride {stride!r}"
        )
    fields |= {"num_bins": num_bins, "num_stacked": stride}
    try:
        return parse(ConformerConfig, _DEFAULTS | fields | _SHAPE, str(folder / "config.json"))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _write(config: Config) -> dict[str, Any] | None:
    if not isinstance(config, ConformerConfig) or any(getattr(config, key) != value for key, value in _SHAPE.items()):
        return None
    return {
        "model_type": "wav2vec2-bert",
        "feature_projection_input_dim": config.num_bins * config.num_stacked,
        "left_max_position_embeddings": config.distance_left,
        "right_max_position_embeddings": config.distance_right,
    } | _conformer.write_blocks(config)


def _to_own(plain: Mapping[str, Tensor], config: ConformerConfig, notes: list[str]) -> dict[str, Tensor]:
    return _conformer.to_own(plain)


def _to_foreign(own: Mapping[str, Tensor], config: ConformerConfig, notes: list[str]) -> dict[str, Tensor]:
    return _conformer.to_foreign(own)


def _extractor(config: ConformerConfig) -> dict[str, Any]:
    return {
        "feature_extractor_type": "SeamlessM4TFeatureExtractor",
        "feature_size": config.num_bins,
        "num_mel_bins": config.num_bins,
        "stride": config.num_stacked,
        "sampling_rate": 16_000,
        "padding_value": 0.0,
        "padding_side": "right",
        "return_attention_mask": True,
    }


def _padding_note(config: ConformerConfig) -> str:
    return (
        "Pass the attention mask that the feature extractor returns, always: without it the last frame of a recording with an odd\n"
        "number of filterbank frames is half padding. isogloss drops that frame."
    )


FAMILY = Family(
    model_type="wav2vec2-bert",
    model_class="Wav2Vec2BertModel",
    prefixes=("wav2vec2_bert.",),
    keys=_KEYS,
    read_config=_read,
    write_config=_write,
    extractor=_extractor,
    to_own=_to_own,
    to_foreign=_to_foreign,
    padding_note=_padding_note,
    beside=("adapter.", "intermediate_ffn."),
)
