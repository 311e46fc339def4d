"""Convolutional position embedding over a packed stream."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionalConv(nn.Module):
    """Grouped convolution with weight norm over its taps, then GELU (wav2vec 2.0, arXiv 2006.11477, §2 and appendix B).

    The effective weight of tap k is gain_k · v_k/‖v_k‖, norm over all channels. `direction` is out×in/groups×kernel. Utterances
    are set half a kernel of zeros apart, so none sees another. Starts as in fairseq: N(0, √(4/(kernel·width))), bias 0.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.direction = nn.Parameter(torch.empty(width, width // groups, kernel))
        self.gain_K = nn.Parameter(torch.empty(kernel))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the directions and set each gain to its norm, so that the effective weight is what was drawn."""
        nn.init.normal_(self.direction, std=math.sqrt(4 / (self.kernel * len(self.direction))))
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.gain_K.copy_(torch.linalg.vector_norm(self.direction, dim=(0, 1)))

    def weight(self) -> Tensor:
        """Return the effective weight, out×in/groups×kernel."""
        scale_K: Tensor = self.gain_K / torch.linalg.vector_norm(self.direction, dim=(0, 1))
        return self.direction * scale_K

    def forward(self, values_ND: Tensor, sizes_B: list[int]) -> Tensor:
        """Return the position embedding of each frame, N×D."""
        gap = values_ND.new_zeros(self.kernel // 2, values_ND.shape[1])
        pieces = [gap]
        for part in values_ND.split(sizes_B):
            pieces += [part, gap]
        stream_1DR = torch.cat(pieces).t().unsqueeze(0)
        out_RD = F.conv1d(stream_1DR, self.weight(), self.bias, groups=self.groups).squeeze(0).t()
        kept, start = [], 0
        for size in sizes_B:
            kept.append(out_RD[start : start + size])
            start += size + len(gap)
        return F.gelu(torch.cat(kept))
