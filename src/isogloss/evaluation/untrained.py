"""The encoder before training: what its architecture alone makes of speech."""

from __future__ import annotations

from typing import cast

import torch

from isogloss.core.rng import derive_seed
from isogloss.encoders.base import Encoder
from isogloss.encoders.presets import EncoderConfig, build_encoder


def untrained_like(encoder: Encoder, seed: int = 0) -> Encoder:
    """Return an encoder of the same configuration with fresh weights, a function of the seed, in eval mode on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "untrained"))
        return build_encoder(cast("EncoderConfig", encoder.config)).eval()
