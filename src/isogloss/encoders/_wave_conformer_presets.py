"""The published sizes of the wave Conformer, and a small one of ours."""

from __future__ import annotations

from isogloss.encoders.wave_conformer import WaveConformerConfig

PRESETS: dict[str, WaveConformerConfig] = {
    # fairseq's releases "rel pos" and "rope": 618.5 M with a positional convolution that is never used, 610.1 M without.
    "wav2vec2-conformer-large": WaveConformerConfig(),
    "wav2vec2-conformer-rope-large": WaveConformerConfig(positions="rotary"),
    # The base size of transformers' class: 179.7 M with that positional convolution, 175.0 M without.
    "wav2vec2-conformer-base": WaveConformerConfig(
        conv_bias=False,
        conv_features_norm="group",
        normalize_waveform=False,
        width=768,
        num_layers=12,
        num_heads=12,
        ffn_width=3072,
        activation="gelu",
        activation_dropout=0.1,
        layerdrop=0.1,
    ),
    # Ours: seconds on two cores.
    "wave-conformer-tiny": WaveConformerConfig(
        conv_channels=(64,) * 7,
        width=64,
        num_layers=2,
        num_heads=4,
        ffn_width=128,
        kernel=15,
        conv_norm="layer",
        dropout=0.0,
        attention_dropout=0.0,
        conv_dropout=0.0,
    ),
}
