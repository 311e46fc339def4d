"""The encoders that can be named: every published size, and small ones for tests and demonstrations."""

from __future__ import annotations

from typing import Annotated, assert_never

from pydantic import Field

from isogloss.core.errors import ConfigError
from isogloss.core.lookup import nearest
from isogloss.encoders.base import Encoder
from isogloss.encoders.cpc import CpcConfig, CpcEncoder
from isogloss.encoders.wave import WaveConfig, WaveEncoder

EncoderConfig = Annotated[WaveConfig | CpcConfig, Field(discriminator="kind")]

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


_BASE = WaveConfig()
_TINY_CONVOLUTIONS = {"conv_channels": (64,) * 7, "position_kernel": 32, "position_groups": 4}

_PRESETS: dict[str, EncoderConfig] = {
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
    "hubert-large": _large().model_copy(update={"conv_bias": False}),
    "hubert-xlarge": _large(1280, 48).model_copy(update={"conv_bias": False}),
    "cpc": CpcConfig(channels=512, norm="none", recurrent="gru"),  # arXiv 1807.03748, §3.1
    "modified-cpc": CpcConfig(),  # arXiv 2002.02848
    # Ours: seconds and minutes on two cores.
    "wave-tiny": WaveConfig.model_validate(
        {"width": 64, "num_layers": 2, "num_heads": 4, "ffn_width": 128, "layerdrop": 0.0} | _TINY_CONVOLUTIONS
    ),
    "wave-small": WaveConfig.model_validate(
        {"conv_channels": (128,) * 7, "width": 192, "num_layers": 6, "num_heads": 4, "ffn_width": 768, "layerdrop": 0.0}
        | {"position_kernel": 64, "position_groups": 8}
    ),
    "cpc-tiny": CpcConfig(channels=32, width=32),
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
    """Build the encoder that a configuration describes, with fresh weights (from torch's global generator)."""
    if isinstance(config, WaveConfig):
        return WaveEncoder(config)
    if isinstance(config, CpcConfig):
        return CpcEncoder(config)
    assert_never(config)
