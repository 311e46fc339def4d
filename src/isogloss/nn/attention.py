"""Self-attention within each utterance of a packed stream."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.nn.dropout import scaled_keep_mask
from isogloss.nn.product import Linear, is_fast, multiply

_LONG = 300  # frames from which one's own blocks are quicker than torch's kernel
_QUERIES = 256  # in a block: its weights stay in the cache


class PackedAttention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, §3.2), one product for queries, keys and values."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

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
    if not dropout and _has_one_kernel_for_all_lengths(q_NHd):
        return _attend_in_one_kernel(q_NHd, k_NHd, v_NHd, sizes_B)
    splits = [part.split(sizes_B) for part in (q_NHd, k_NHd, v_NHd)]
    return torch.cat(
        [
            _attend(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), dropout).squeeze(0)
            for q, k, v in zip(*splits, strict=True)
        ]
    )


def _has_one_kernel_for_all_lengths(q_NHd: Tensor) -> bool:
    # Flash attention: half precision, Ampere or later, no dropout. All else takes one call per utterance.
    return (
        q_NHd.device.type == "cuda"
        and q_NHd.dtype in (torch.bfloat16, torch.float16)
        and torch.cuda.get_device_capability(q_NHd.device) >= (8, 0)
    )


def _attend_in_one_kernel(q_NHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, sizes_B: list[int]) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    offsets = torch.tensor([0, *sizes_B]).cumsum(0).to(q_NHd.device, torch.int32, non_blocking=True)
    longest = max(sizes_B)
    mixed = varlen_attn(q_NHd, k_NHd, v_NHd, offsets, offsets, longest, longest)
    assert isinstance(mixed, Tensor)
    return mixed


def _attend(q_BSHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, dropout: float) -> Tensor:
    if not dropout and not torch.is_grad_enabled() and len(q_BSHd) == 1 and q_BSHd.shape[1] >= _LONG:
        q_SHd, k_SHd, v_SHd = (part.squeeze(0) for part in (q_BSHd, k_BSHd, v_BSHd))
        if is_fast(q_SHd[:, 0], k_SHd[:, 0]):
            return _attend_by_blocks(q_SHd, k_SHd, v_SHd).unsqueeze(0)
    q, k, v = (part.transpose(1, 2) for part in (q_BSHd, k_BSHd, v_BSHd))
    if dropout and q.device.type == "cpu":
        # torch's CPU kernel has no dropout: it would fall back to this product, with a dearer mask.
        weights_BHSS = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        mixed: Tensor = (weights_BHSS * scaled_keep_mask(weights_BHSS.shape, dropout).to(weights_BHSS.dtype)) @ v
    else:
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return mixed.transpose(1, 2)


def _attend_by_blocks(q_SHd: Tensor, k_SHd: Tensor, v_SHd: Tensor) -> Tensor:
    """Compute the same for one long utterance, some queries at a time: torch's kernel multiplies at the rate of MKL."""
    mixed_SHd = torch.empty_like(q_SHd)
    scale = q_SHd.shape[-1] ** -0.5
    for head in range(q_SHd.shape[1]):
        q_Sd, k_Sd = q_SHd[:, head] * scale, k_SHd[:, head].contiguous()
        v_dS = v_SHd[:, head].t().contiguous()
        for start in range(0, len(q_Sd), _QUERIES):
            block = slice(start, start + _QUERIES)
            mixed_SHd[block, head] = multiply(multiply(q_Sd[block], k_Sd).softmax(-1), v_dS)
    return mixed_SHd
