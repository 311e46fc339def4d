"""Linear biases: attention falls off with the distance in time, in each head at its own rate (arXiv 2108.12409; both directions)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from isogloss.nn.position_bias import PositionBias


def alibi_slopes(num_heads: int) -> list[float]:
    """Return 2^(−8h/H) for heads h = 1 … H where H is a power of two.

    Otherwise those of the next lower power of two, filled up with every other one of the next higher (the released code of
    arXiv 2108.12409).
    """
    lower = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (h + 1) / lower) for h in range(lower)]
    between = [2.0 ** (-8.0 * (h + 1) / (2 * lower)) for h in range(0, 2 * lower, 2)]
    return slopes + between[: num_heads - lower]


class AlibiTable(nn.Module):
    """A learned factor for the slope of each head, shared by the layers (data2vec 2.0, arXiv 2212.07525); below 0 it counts as 0."""

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_heads, 1))

    def forward(self, sizes_B: list[int], times_N: Tensor | None = None) -> AlibiTerms:
        """Return the terms of a batch whose frames lie at these times (their places in the utterance, unless some were left out)."""
        if times_N is None:
            longest = torch.arange(max([*sizes_B, 0]), device=self.weight.device)
            times_B = [longest[:size] for size in sizes_B]
        else:
            times_B = list(times_N.split(sizes_B))
        slopes_H = self.weight.new_tensor(alibi_slopes(len(self.weight)))
        return AlibiTerms(-slopes_H * self.weight.squeeze(1).clamp(min=0.0), times_B)


class AlibiTerms:
    """−slope_h · |time_i − time_j|, in blocks; the same in all layers."""

    def __init__(self, falls_H: Tensor, times_B: list[Tensor]) -> None:
        self.falls_H, self.times_B = falls_H, times_B

    def rows(self, utterance: int, heads: slice, queries: slice) -> Tensor:
        """Return the terms of some heads and queries of an utterance with all its keys, heads×queries×keys."""
        times_S = self.times_B[utterance].to(self.falls_H.dtype)
        distances_QS = (times_S[queries].unsqueeze(1) - times_S).abs()
        return self.falls_H[heads].view(-1, 1, 1) * distances_QS


class AlibiPosition(PositionBias):
    """Passes the shared terms on: no parameters of its own."""

    def forward(self, inputs_ND: Tensor, q_NHd: Tensor, shared: Any) -> AlibiTerms:
        """Return the shared terms."""
        terms: AlibiTerms = shared
        return terms
