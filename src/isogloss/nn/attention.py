"""Self-attention within each utterance of a packed stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.nn.dropout import scaled_keep_mask


class PackedAttention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, §3.2), one product for queries, keys and values."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, values_ND: Tensor, sizes_B: list[int]) -> Tensor:
        """Attend within utterances of `sizes_B` frames; N×D to N×D."""
        width = values_ND.shape[1]
        q_NHd, k_NHd, v_NHd = (
            part.unflatten(1, (self.num_heads, -1)) for part in self.qkv(values_ND).split(width, dim=1)
        )
        mixed_NHd = packed_attention(q_NHd, k_NHd, v_NHd, sizes_B, self.dropout if self.training else 0.0)
        mixed_ND: Tensor = self.out(mixed_NHd.flatten(1))
        return mixed_ND


def packed_attention(q_NHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, sizes_B: list[int], dropout: float) -> Tensor:
    """Return softmax(q kᵀ/√d) v of each utterance by itself, N×H×d."""
    sizes_B = [n for n in sizes_B if n]
    if not sizes_B:
        return v_NHd
    if min(sizes_B) == max(sizes_B):
        q_BSHd, k_BSHd, v_BSHd = (part.unflatten(0, (len(sizes_B), -1)) for part in (q_NHd, k_NHd, v_NHd))
        return _attend(q_BSHd, k_BSHd, v_BSHd, dropout).flatten(0, 1)
    if q_NHd.device.type == "cuda":
        return jagged_attention(q_NHd, k_NHd, v_NHd, sizes_B, dropout)
    splits = [part.split(sizes_B) for part in (q_NHd, k_NHd, v_NHd)]
    return torch.cat(
        [
            _attend(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), dropout).squeeze(0)
            for q, k, v in zip(*splits, strict=True)
        ]
    )


def jagged_attention(q_NHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, sizes_B: list[int], dropout: float) -> Tensor:
    """Compute the same in one kernel for all lengths, where the device has one (flash or memory-efficient attention)."""
    lengths = torch.tensor([0, *sizes_B])
    offsets = lengths.cumsum(0).to(q_NHd.device)
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(
            part.contiguous(), offsets, min_seqlen=min(sizes_B), max_seqlen=max(sizes_B)
        ).transpose(1, 2)
        for part in (q_NHd, k_NHd, v_NHd)
    )
    mixed: Tensor = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2).values()
    return mixed


def _attend(q_BSHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, dropout: float) -> Tensor:
    q, k, v = (part.transpose(1, 2) for part in (q_BSHd, k_BSHd, v_BSHd))
    if dropout and q.device.type == "cpu":
        # torch's CPU kernel has no dropout: it would fall back to this product, with a dearer mask.
        weights_BHSS = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        mixed: Tensor = (weights_BHSS * scaled_keep_mask(weights_BHSS.shape, dropout).to(weights_BHSS.dtype)) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return mixed.transpose(1, 2)
