"""Fixed sinusoidal positions, counted from the beginning of each utterance."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor


def sinusoidal_positions(sizes_B: list[int], width: int, device: torch.device) -> Tensor:
    """Return sin(t/10000^(2i/D)) and cos of the same in turn for the frames 0 … n−1 of every utterance, N×D (arXiv 1706.03762, §3.5)."""
    longest = max(sizes_B, default=0)
    # Powers of two, so that few tables are kept however lengths vary.
    table_SD = _table(1 << max(longest - 1, 0).bit_length(), width, device)
    return torch.cat([table_SD[:n] for n in sizes_B]) if sizes_B else table_SD[:0]


@cache
def _table(num_positions: int, width: int, device: torch.device) -> Tensor:
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10_000.0) / width))
    angles = torch.arange(num_positions, dtype=torch.float64)[:, None] * rates
    interleaved: Tensor = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]
    return interleaved.float().to(device)
