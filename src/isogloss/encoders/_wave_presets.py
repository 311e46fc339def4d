"""The published sizes of the wave transformer, and small ones of ours."""

from __future__ import annotations

from typing import Any

from isogloss.encoders.wave import AlibiRelative, ClippedRelative, GatedRelative, WaveConfig

_NO_DROPOUT = {
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "input_dropout": 0.0,
    "layerdrop": 0.0,
}


def _large(width: int = 1024, num_layers: int = 24, input_dropout: float = 0.0) -> WaveConfig:
    """LARGE LV-60k and what derives from it: layer norm in the convolutions, with bias, norms first, 16 heads, FFN 4·width."""
    return WaveConfig.model_validate(
        _NO_DROPOUT
        | {
            "conv_norm": "layer",
            "conv_bias": True,
            "norm_first": True,
            "normalize_waveform": True,
            "feature_gradient_scale": 1.0,
            "width": width,
            "num_layers": num_layers,
            "num_heads": 16,
            "ffn_width": 4 * width,
            "input_dropout": input_dropout,
        }
    )


def _with(config: WaveConfig, **changes: Any) -> WaveConfig:
    return WaveConfig.model_validate(config.model_dump() | changes)


_BASE = WaveConfig()
_HUBERT_LARGE = _with(_large(), conv_bias=False)
# arXiv 2202.03555 and its released configuration: five convolutions of 95/5 taps for positions, norms last at every size.
_DATA2VEC = _with(
    _BASE,
    conv_norm="layer",
    position="conv_stack",
    position_kernel=19,
    position_layers=5,
    input_dropout=0.0,
    feature_gradient_scale=1.0,
    normalize_waveform=True,
)
_TINY_CONVOLUTIONS = {"conv_channels": (64,) * 7, "position_kernel": 32, "position_groups": 4}

PRESETS: dict[str, WaveConfig] = {
    # arXiv 2006.11477, §4.2 and the released configurations.
    "wav2vec2-base": _BASE,
    "wav2vec2-large": WaveConfig(
        width=1024,
        num_layers=24,
        num_heads=16,
        ffn_width=4096,
        dropout=0.0,
        input_dropout=0.1,
        layerdrop=0.2,
    ),
    "wav2vec2-large-lv60k": _large(),
    "xlsr-53": _large(),  # arXiv 2006.13979
    # arXiv 2111.09296; its table prints 1024/4096 for 1B, which would be 620 M parameters: every release has 1280/5120.
    "xls-r-300m": _large(),
    "xls-r-1b": _large(1280, 48, input_dropout=0.1),
    "xls-r-2b": _large(1920, 48, input_dropout=0.1),
    # arXiv 2106.07447, table I and the released configurations.
    "hubert-base": _BASE,
    "hubert-large": _HUBERT_LARGE,
    "hubert-xlarge": _with(_large(1280, 48), conv_bias=False),
    # arXiv 2110.13900, table 1 (which prints 8 and 12 heads) and the released configurations (12 and 16).
    "wavlm-base": _with(_BASE, relative=GatedRelative().model_dump()),
    "wavlm-base-plus": _with(_BASE, relative=GatedRelative().model_dump()),
    "wavlm-large": _with(_HUBERT_LARGE, relative=GatedRelative().model_dump()),
    "data2vec-base": _DATA2VEC,
    "data2vec-large": _with(_DATA2VEC, width=1024, num_layers=24, num_heads=16, ffn_width=4096),
    # arXiv 2212.07525: data2vec's encoder with ALiBi; its "prenet" blocks are the first of these layers.
    "data2vec2-base": _with(_DATA2VEC, relative=AlibiRelative().model_dump()),
    "data2vec2-large": _with(
        _DATA2VEC, width=1024, num_layers=24, num_heads=16, ffn_width=4096, relative=AlibiRelative().model_dump()
    ),
    "dinosr-base": _DATA2VEC,  # arXiv 2305.10005: data2vec's
    "spidr-base": _with(_DATA2VEC, qkv_bias=False, layerdrop=0.0),  # arXiv 2512.20308
    "unispeech-large": _large(),  # arXiv 2101.07597: LARGE LV-60k
    # arXiv 2110.05752: HuBERT's sizes.
    "unispeech-sat-base": _BASE,
    "unispeech-sat-base-plus": _BASE,
    "unispeech-sat-large": _HUBERT_LARGE,
    # arXiv 2110.07205, §3.1: the speech encoder with its pre-net; the large one is described there, and was not released.
    "speecht5-encoder-base": _with(_BASE, position="conv_sinusoid", relative=ClippedRelative().model_dump()),
    "speecht5-encoder-large": _with(
        _large(), conv_bias=False, position="conv_sinusoid", relative=ClippedRelative().model_dump()
    ),
    # Ours: seconds and minutes on two cores.
    "wave-tiny": WaveConfig.model_validate(
        {"width": 64, "num_layers": 2, "num_heads": 4, "ffn_width": 128, "layerdrop": 0.0} | _TINY_CONVOLUTIONS
    ),
    "wavlm-tiny": WaveConfig.model_validate(
        {
            "width": 64,
            "num_layers": 2,
            "num_heads": 4,
            "ffn_width": 128,
            "layerdrop": 0.0,
            "relative": {"kind": "gated"},
        }
        | _TINY_CONVOLUTIONS
    ),
    "wavlm-small": WaveConfig.model_validate(
        {"conv_channels": (128,) * 7, "width": 192, "num_layers": 6, "num_heads": 4, "ffn_width": 768, "layerdrop": 0.0}
        | {"position_kernel": 64, "position_groups": 8, "relative": {"kind": "gated"}}
    ),
    "data2vec2-tiny": WaveConfig.model_validate(
        {
            "width": 64,
            "num_layers": 2,
            "num_heads": 4,
            "ffn_width": 128,
            "layerdrop": 0.0,
            "relative": {"kind": "alibi"},
        }
        | {**_TINY_CONVOLUTIONS, "position": "conv_stack", "position_kernel": 9, "position_layers": 3}
    ),
    "data2vec2-small": WaveConfig.model_validate(
        {"conv_channels": (128,) * 7, "width": 192, "num_layers": 6, "num_heads": 4, "ffn_width": 768, "layerdrop": 0.0}
        | {"position": "conv_stack", "position_kernel": 19, "position_groups": 8, "position_layers": 3}
        | {"relative": {"kind": "alibi"}}
    ),
    "spidr-tiny": WaveConfig.model_validate(
        {"width": 64, "num_layers": 2, "num_heads": 4, "ffn_width": 128, "layerdrop": 0.0, "qkv_bias": False}
        | _TINY_CONVOLUTIONS
    ),
    "wave-small": WaveConfig.model_validate(
        {"conv_channels": (128,) * 7, "width": 192, "num_layers": 6, "num_heads": 4, "ffn_width": 768, "layerdrop": 0.0}
        | {"position_kernel": 64, "position_groups": 8}
    ),
}
