"""Small settings under which the contract tests try each objective: one module per objective, with its name and `CASES`.

A module maps a variant ("" for the plain one) to a `Case`; each of the objective's switches that changes its course has one. Its
docstring says whether the objective is additive (the loss of a micro-batch is the sum of the losses of its parts), and why.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any

import torch

from isogloss.core.lookup import names_in
from isogloss.core.types import Packed, SpeechBatch
from isogloss.encoders.base import Encoder
from isogloss.encoders.conformer import ConformerConfig
from isogloss.encoders.cpc import CpcConfig
from isogloss.encoders.presets import EncoderConfig
from isogloss.encoders.wave import WaveConfig

WAVE = WaveConfig(
    conv_channels=(32,) * 7,
    width=32,
    num_layers=2,
    num_heads=2,
    ffn_width=64,
    position_kernel=16,
    position_groups=4,
    dropout=0.0,
    attention_dropout=0.0,
    input_dropout=0.0,
    layerdrop=0.0,
    feature_gradient_scale=1.0,
)
CPC = CpcConfig(channels=32, width=32)
CONFORMER = ConformerConfig(
    num_bins=20,
    subsampling="stack",
    width=32,
    num_layers=2,
    num_heads=2,
    ffn_width=64,
    positions="relative",
    kernel=5,
    conv_norm="layer",
    dropout=0.0,
    attention_dropout=0.0,
    conv_dropout=0.0,
)
BATCH_NORM = CONFORMER.model_copy(update={"conv_norm": "batch"})
NUM_UNITS = 12
BATCH = [9000, 16000, 5000, 12345]


@dataclass(frozen=True)
class Case:
    """An objective's settings (without dropout) and an encoder for it.

    `begins` says what metrics are at first, as (value, tolerance), on four noises of a second. After 60 updates on eight
    noises of a quarter of a second, `learns` (a metric, "loss" for the total per target) must be below `to` times what it was;
    None leaves that test out where another case of the objective covers it. `idle` names the beginnings of parameters that
    rightly have no gradient in this case. `draws` is False where nothing is random, so that other seeds change nothing.
    `not_additive` is the sentence of the objective's page that says why the loss of a batch is not the sum over its parts; "" where
    it is.
    """

    tree: dict[str, Any]
    encoder: EncoderConfig
    begins: dict[str, tuple[float, float]] = field(default_factory=dict)
    learns: str | None = "loss"
    to: float = 0.85
    lr: float = 3e-3
    idle: tuple[str, ...] = ()
    draws: bool = True
    not_additive: str = ""


def all_cases() -> dict[str, Case]:
    """Return the cases of every objective in the package's folder, as NAME or NAME-VARIANT."""
    return {
        f"{name}{'-' * bool(variant)}{variant}": case
        for name in names_in("isogloss.objectives")
        for variant, case in importlib.import_module(f"objective_cases.{name}").CASES.items()
    }


def speech(num_samples: list[int], seed: int = 0, encoder: Encoder | None = None) -> SpeechBatch:
    """Noise whose colour and strength change every 20 ms: something to predict, and to tell apart.

    With an encoder the batch has units as well, one per frame of it, which follow the colour; the text is always there.
    """
    generator = torch.Generator().manual_seed(seed)
    waves, units, texts = [], [], []
    for n in num_samples:
        gain = torch.rand(n // 320 + 1, generator=generator).repeat_interleave(320)[:n]
        colour = torch.rand(n // 320 + 1, generator=generator)
        pitch = (0.02 + 0.3 * colour).repeat_interleave(320)[:n]
        waves.append(gain * torch.sin(pitch.cumsum(0)) + 0.1 * torch.randn(n, generator=generator))
        texts.append("".join("abcd"[i % 4] for i in range(n // 4000)))
        if encoder is not None:
            hops = torch.arange(encoder.num_frames(n)) * encoder.geometry.hop // 320
            units.append((colour[hops.clamp(max=len(colour) - 1)] * NUM_UNITS).long())
    ids = [f"utterance-{i}" for i in range(len(waves))]
    seeds_B = torch.randint(2**62, (len(waves),), generator=generator)
    return SpeechBatch(
        Packed.from_list(waves),
        ids,
        [None] * len(waves),
        seeds_B,
        speakers=["one"] * len(waves),
        text=list(texts),
        units=Packed.from_list(units) if units else None,
    )
