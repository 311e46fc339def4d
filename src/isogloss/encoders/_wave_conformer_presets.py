"""The published sizes of the wave Conformer, and a small one of ours."""

from __future__ import annotations

from isogloss.encoders.wave_conformer import WaveConformerConfig

PRESETS: dict[str, WaveConformerConfig] = {
    # fairseq's releases "rel pos" and "rope": 618.5 M with a positional convolution that is never used, 610.1 M without.
    "wav2vec2-conformer-large": WaveConformerConfig(),
    "wav2vec2-conformer-rope-large": WaveConformerConfig(positions="rotary"),
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
