"""The Conformer block (arXiv 2005.08100) on packed streams, in all the shapes that speech models gave it."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.nn.anchor import zero_of
from isogloss.nn.batch_norm import FrameBatchNorm
from isogloss.nn.depthwise import DepthwiseConv
from isogloss.nn.dropout import Dropout
from isogloss.nn.product import Linear
from isogloss.nn.relative import Positions, RelativeAttention
from isogloss.nn.transformer import FeedForward

Activation = Literal["swish", "gelu"]


class ConvolutionModule(nn.Module):
    """Norm, pointwise convolution with gate, depthwise convolution, norm, activation, pointwise convolution (§2.2)."""

    def __init__(
        self, width: int, kernel: int, *, norm: str, is_causal: bool, activation: Activation, dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.activation = activation
        self.input_norm = nn.LayerNorm(width, eps=eps)
        self.expand = Linear(width, 2 * width, bias=False)
        self.depthwise = DepthwiseConv(width, kernel, is_causal=is_causal)
        self.norm = FrameBatchNorm(width) if norm == "batch" else nn.LayerNorm(width, eps=eps)
        self.project = Linear(width, width, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, values_ND: Tensor, sizes_B: list[int]) -> Tensor:
        """Return what the block adds to its input, N×D."""
        gated_ND = F.glu(self.expand(self.input_norm(values_ND)), dim=1)
        values_ND = self.norm(self.depthwise(gated_ND, sizes_B))
        values_ND = F.silu(values_ND) if self.activation == "swish" else F.gelu(values_ND)
        out_ND: Tensor = self.dropout(self.project(values_ND))
        return out_ND


class ConformerFeedForward(FeedForward):
    """Two linear maps with swish or GELU between them."""

    def __init__(self, width: int, inner_width: int, inner_dropout: float, activation: Activation) -> None:
        super().__init__(width, inner_width, inner_dropout)
        self.activation = activation

    def forward(self, values_ND: Tensor) -> Tensor:
        """Map each frame by itself."""
        if self.activation == "gelu":
            return super().forward(values_ND)
        out_ND: Tensor = self.down(self.dropout(F.silu(self.up(values_ND))))
        return out_ND


class ConformerLayer(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm (arXiv 2005.08100, eq. 1).

    `positions` says how attention knows distances (`RelativeAttention`), `conv_norm` is "batch" or "layer", and `is_causal`
    pads the depthwise convolution at the left only; attention sees the whole utterance in any case.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        ffn_width: int,
        *,
        positions: Positions,
        distance_left: int,
        distance_right: int,
        kernel: int,
        conv_norm: str,
        is_causal: bool,
        activation: Activation,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        conv_dropout: float,
        eps: float,
    ) -> None:
        super().__init__()
        self.ffn1_norm = nn.LayerNorm(width, eps=eps)
        self.ffn1 = ConformerFeedForward(width, ffn_width, activation_dropout, activation)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.attention = RelativeAttention(
            width,
            num_heads,
            attention_dropout,
            positions=positions,
            left=distance_left,
            right=distance_right,
        )
        self.conv = ConvolutionModule(
            width,
            kernel,
            norm=conv_norm,
            is_causal=is_causal,
            activation=activation,
            dropout=conv_dropout,
            eps=eps,
        )
        self.ffn2_norm = nn.LayerNorm(width, eps=eps)
        self.ffn2 = ConformerFeedForward(width, ffn_width, activation_dropout, activation)
        self.final_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = Dropout(dropout)
        self.attended_dropout = Dropout(attention_dropout)

    def forward(self, values_ND: Tensor, sizes_B: list[int], table: Tensor | None, is_dropped: bool = False) -> Tensor:
        """Return the next state, N×D; a layer that layer drop left out returns its input and gives zero gradients."""
        if is_dropped:
            return values_ND + zero_of(self.parameters())
        values_ND = values_ND + 0.5 * self.dropout(self.ffn1(self.ffn1_norm(values_ND)))
        attended_ND = self.attention(self.attention_norm(values_ND), sizes_B, table)
        values_ND = values_ND + self.attended_dropout(attended_ND)
        values_ND = values_ND + self.conv(values_ND, sizes_B)
        values_ND = values_ND + 0.5 * self.dropout(self.ffn2(self.ffn2_norm(values_ND)))
        out_ND: Tensor = self.final_norm(values_ND)
        return out_ND
