"""Group norm whose statistics run over channels *and* time, taken per utterance on a packed stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class TimeGroupNorm(nn.Module):
    """Normalise each group of channels over all rows of an utterance (arXiv 1904.05862; one group in wav2vec), in fp32.

    The statistics look at the whole utterance: a frame then depends, a little, on frames after it. Rows that belong to no
    utterance (borders of a stream) are only scaled by the weight.
    """

    def __init__(self, num_channels: int, num_groups: int = 1, eps: float = 1e-5) -> None:
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(
                f"`num_channels` must be a multiple of `num_groups`, but {num_channels} is not one of {num_groups}"
            )
        self.num_groups = num_groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, values_RD: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Normalise rows `start` to `end` of each span with statistics of their own, R×D to R×D."""
        values_RGd = values_RD.float().unflatten(1, (self.num_groups, -1))
        filled = [(start, end) for start, end in spans if end > start]
        if not filled:
            return values_RD * self.weight + self.bias
        statistics = [torch.var_mean(values_RGd[start:end], dim=(0, 2), correction=0) for start, end in filled]
        identity_1G = values_RGd.new_zeros(1, self.num_groups)
        shift_BG = torch.cat([torch.stack([mean for _, mean in statistics]), identity_1G])
        scale_BG = torch.cat([torch.rsqrt(torch.stack([var for var, _ in statistics]) + self.eps), identity_1G + 1])
        owner_R = _owners(len(values_RD), filled).to(values_RD.device)
        centered = values_RGd - shift_BG[owner_R].unsqueeze(2)
        normalised_RD: Tensor = (centered * scale_BG[owner_R].unsqueeze(2)).flatten(1) * self.weight + self.bias
        return normalised_RD


def _owners(num_rows: int, spans: Sequence[tuple[int, int]]) -> Tensor:
    owner_R = torch.full((num_rows,), len(spans))
    for index, (start, end) in enumerate(spans):
        owner_R[start:end] = index
    return owner_R
