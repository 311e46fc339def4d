"""Depthwise convolution within each utterance of a packed stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv(nn.Module):
    """One filter per channel, as many rows out as in (the Conformer's, arXiv 2005.08100, §2.2; `weight` is width×1×kernel).

    Row t sees rows t − (kernel−1)/2 … t + (kernel−1)/2 of its own utterance, or t − kernel + 1 … t where `is_causal`. What lies
    beyond the utterance is zero: utterances are set as many rows of zeros apart as the kernel reaches to the left.
    """

    def __init__(self, width: int, kernel: int, *, is_causal: bool) -> None:
        super().__init__()
        if kernel % 2 == 0 and not is_causal:
            raise ValueError(f"`kernel` must be odd where the convolution is symmetric, but is {kernel}")
        self.gap = kernel - 1 if is_causal else (kernel - 1) // 2
        self.is_causal = is_causal
        self.weight = nn.Parameter(torch.empty(width, 1, kernel))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, values_ND: Tensor, sizes_B: list[int]) -> Tensor:
        """Convolve utterances of `sizes_B` rows, N×D to N×D."""
        gap_GD = values_ND.new_zeros(self.gap, values_ND.shape[1])
        pieces = [part for utterance in values_ND.split(sizes_B) for part in (gap_GD, utterance)]
        if not self.is_causal:
            pieces.append(gap_GD)
        stream_DR = torch.cat(pieces).t().unsqueeze(0)
        if stream_DR.shape[2] < self.weight.shape[2]:  # no rows at all
            return values_ND + 0.0 * self.weight.sum()
        out_RD = F.conv1d(stream_DR, self.weight, groups=len(self.weight)).squeeze(0).t()
        kept, start = [], 0
        for size in sizes_B:
            kept.append(out_RD[start : start + size])
            start += size + self.gap
        return torch.cat(kept)
