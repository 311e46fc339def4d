"""Normalisations that are not in torch: per channel over an utterance's own rows, and over channels as modified CPC has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.nn.convolution import grouped_rows_product


class ChannelNorm(nn.Module):
    """Mean and *unbiased* variance over the channels of each row (modified CPC, arXiv 2002.02848; its released code).

    `nn.LayerNorm` divides by the biased variance, so its outputs are √(C/(C−1)) larger. With v_u = v_b·C/(C−1), the quotient
    (x−μ)/√(v_u+ε) is √((C−1)/C) · (x−μ)/√(v_b + ε(C−1)/C), which is a layer norm with a smaller weight and ε.
    """

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, values_RD: Tensor) -> Tensor:
        """Normalise each row."""
        ratio = (len(self.weight) - 1) / len(self.weight)
        return F.layer_norm(values_RD, self.weight.shape, self.weight * ratio**0.5, self.bias, self.eps * ratio)


class UtteranceNorm(nn.Module):
    """The affine part of wav2vec 2.0's group norm (one channel per group: statistics over the time of one utterance)."""

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))
        self.eps = eps


@dataclass
class FirstConv:
    """First convolution (one channel, no bias) and group norm of each utterance, in a single product per utterance.

    The convolution is linear in the window of samples, so the mean and variance of its output over time follow from the
    mean and covariance (kernel×kernel, float64) of the windows: mean_o = w_o·m, var_o = w_oᵀ C w_o. Normalising is then part
    of the weight, w_o · γ_o/√(var_o+ε), applied to windows without their mean, so the 512-channel output is written once and
    never read for statistics. A row of ones stands for the bias: its gradient then needs no second pass either.
    """

    means_BK: Tensor
    matrices_BKO: Tensor  # K+1 rows, the last the bias
    stride: int

    @classmethod
    def of(cls, windows_B: Sequence[Tensor], weight_OK: Tensor, norm: UtteranceNorm, stride: int) -> FirstConv:
        """Take the statistics from each utterance's own windows (rows×kernel)."""
        means, matrices = [], []
        weight_64, gain_64 = weight_OK.double(), norm.weight.double()
        for windows_RK in windows_B:
            windows_64 = windows_RK.double()
            mean_K = windows_64.mean(0)
            centered_RK = windows_64 - mean_K
            covariance_KK = centered_RK.t() @ centered_RK / len(windows_RK)
            variance_O = ((weight_64 @ covariance_KK) * weight_64).sum(1)
            means.append(mean_K)
            matrices.append((weight_64 * (gain_64 / torch.sqrt(variance_O + norm.eps)).unsqueeze(1)).t())
        bias_B1O = norm.bias.double().expand(len(matrices), 1, -1)
        matrices_BKO = torch.cat([torch.stack(matrices), bias_B1O], dim=1)
        return cls(torch.stack(means).to(weight_OK.dtype), matrices_BKO.to(weight_OK.dtype), stride)

    def __call__(self, stream_T: Tensor, rows_B: list[int]) -> Tensor:
        """Return rows×channels: the first `rows_B[0]` rows of the stream as the first utterance's, and so on, borders included."""
        kernel, num_rows = self.means_BK.shape[1], sum(rows_B)
        # A stream may end before its last windows do; those see zeros and are borders.
        padded_T = F.pad(stream_T, (0, max((num_rows - 1) * self.stride + kernel - len(stream_T), 0)))
        counts_B = torch.tensor(rows_B, device=stream_T.device)
        windows_RK = padded_T.unfold(0, kernel, self.stride)[:num_rows]
        values_RK = windows_RK - self.means_BK.repeat_interleave(counts_B, dim=0)
        values_RK = torch.cat([values_RK, values_RK.new_ones(num_rows, 1)], dim=1)
        return grouped_rows_product(values_RK, self.matrices_BKO, rows_B)
