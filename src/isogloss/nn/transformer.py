"""The transformer layer of wav2vec 2.0 and its relatives, on packed streams."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from isogloss.nn.anchor import zero_of
from isogloss.nn.attention import PackedAttention
from isogloss.nn.dropout import Dropout
from isogloss.nn.position_bias import PositionBias
from isogloss.nn.product import Linear, linear_gelu


class FeedForward(nn.Module):
    """Two linear maps with a GELU between them."""

    def __init__(self, width: int, inner_width: int, inner_dropout: float) -> None:
        super().__init__()
        self.up = Linear(width, inner_width)
        self.down = Linear(inner_width, width)
        self.dropout = Dropout(inner_dropout)

    def forward(self, values_ND: Tensor) -> Tensor:
        """Map each frame by itself."""
        out: Tensor = self.down(self.dropout(linear_gelu(values_ND, self.up.used_weight(), self.up.bias)))
        return out


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with a residual; `norm_first` puts the norms before them (pre-LN) or after the sums."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        ffn_width: int,
        *,
        norm_first: bool,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        eps: float,
        relative: PositionBias | None = None,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = PackedAttention(width, num_heads, attention_dropout, relative, qkv_bias=qkv_bias)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.ffn = FeedForward(width, ffn_width, activation_dropout)
        self.ffn_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = Dropout(dropout)

    def forward(self, values_ND: Tensor, sizes_B: list[int], is_dropped: bool = False, shared: Any = None) -> Tensor:
        """Return the next state, N×D; a layer that layer drop left out returns its input and gives zero gradients.

        Zero, not none: every process of a group then has a gradient for every parameter, whichever layers it left out.
        `shared` is what the relative positions of all layers read.
        """
        if is_dropped:
            return values_ND + zero_of(self.parameters())
        if self.norm_first:
            values_ND = values_ND + self.dropout(self.attention(self.attention_norm(values_ND), sizes_B, shared))
            values_ND = values_ND + self.dropout(self.ffn(self.ffn_norm(values_ND)))
        else:
            values_ND = self.attention_norm(values_ND + self.dropout(self.attention(values_ND, sizes_B, shared)))
            values_ND = self.ffn_norm(values_ND + self.dropout(self.ffn(values_ND)))
        return values_ND
