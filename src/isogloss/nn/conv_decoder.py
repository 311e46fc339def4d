"""The small decoder of data2vec 2.0: convolutions over time that fill in what the encoder did not see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.nn.dropout import Dropout
from isogloss.nn.position import conv_apart
from isogloss.nn.product import Linear


class ConvDecoder(nn.Module):
    """Grouped convolutions, each followed by a layer norm without weights, a GELU and a residual, then a linear map.

    arXiv 2212.07525 and its released settings (4 layers, kernel 7, 384 channels, 16 groups). The first layer has no
    residual where it changes the width.
    """

    def __init__(
        self, width: int, inner_width: int, *, num_layers: int, kernel: int, groups: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width if depth == 0 else inner_width, inner_width, kernel, groups=groups)
            for depth in range(num_layers)
        )
        self.project = Linear(inner_width, width)

    def forward(self, values_ND: Tensor, sizes_B: list[int]) -> Tensor:
        """Return N×D for frames N×D; no utterance of `sizes_B` frames sees another."""
        values_ND = self.dropout(values_ND)
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv1d)
            assert convolution.bias is not None
            out_ND = conv_apart(values_ND, sizes_B, convolution.weight, convolution.bias, convolution.groups)
            out_ND = F.gelu(F.layer_norm(out_ND, out_ND.shape[1:]))
            values_ND = values_ND + out_ND if values_ND.shape == out_ND.shape else out_ND
        projected_ND: Tensor = self.project(values_ND)
        return projected_ND


def fill_in(states_KD: Tensor, is_masked_N: Tensor, noise_ND: Tensor) -> Tensor:
    """Return all N frames: the states of the kept ones in their places, noise where they were masked."""
    rows_K = (~is_masked_N).nonzero().squeeze(1).to(states_KD.device)
    return noise_ND.to(states_KD.dtype).index_copy(0, rows_K, states_KD)


def seeded_noise(
    sizes_B: list[int], num_copies: int, width: int, std: float, generators: list[torch.Generator], device: torch.device
) -> Tensor:
    """Return N(0, std²) for every frame of M copies of a batch, (M·N)×D, copy by copy; `generators[i]` gives utterance i its numbers."""
    parts = [
        torch.randn(num_copies, size, width, generator=generator, device=device)
        for size, generator in zip(sizes_B, generators, strict=True)
    ]
    return std * torch.cat(parts, dim=1).flatten(0, 1)
