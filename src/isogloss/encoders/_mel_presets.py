"""The published sizes of Mockingjay, TERA and APC, and small ones of ours."""

from __future__ import annotations

from isogloss.encoders.apc import ApcConfig
from isogloss.encoders.mel import MelConfig

PRESETS: dict[str, MelConfig | ApcConfig] = {
    # arXiv 1910.12638 in s3prl's present form: 21.3 M parameters, and 85.1 M as SUPERB has it.
    "mockingjay-base": MelConfig(),
    "mockingjay-large": MelConfig(num_layers=12),
    # LARGE of the paper: 80 bins with slopes, three frames side by side.
    "mockingjay-large-2019": MelConfig(num_layers=12, num_deltas=1, stack=3),
    "tera-base": MelConfig(),  # arXiv 2007.06028
    "apc": ApcConfig(),  # arXiv 1904.03240
    # Ours: seconds and minutes on two cores.
    "mel-tiny": MelConfig(width=64, num_layers=2, num_heads=4, ffn_width=128),
    "mel-small": MelConfig(width=192, num_layers=6, num_heads=4, ffn_width=768),
    "apc-tiny": ApcConfig(width=64, num_layers=2),
    "apc-small": ApcConfig(width=256),
}
