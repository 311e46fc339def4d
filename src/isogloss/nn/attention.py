"""Self-attention within each utterance of a packed stream."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.nn.dropout import scaled_keep_mask
from isogloss.nn.position_bias import AttentionBias, PositionBias
from isogloss.nn.product import Linear, is_fast, multiply

_LONG = 300  # frames from which one's own blocks are quicker than torch's kernel
_QUERIES = 256  # in a block: its weights stay in the cache
_BIASED_QUERIES = 1024  # in a block of torch's kernel with terms of relative positions


class PackedAttention(nn.Module):
    """Multi-head self-attention (arXiv 1706.03762, §3.2), one product for queries, keys and values.

    `relative`, where there is one, adds terms of relative positions to the logits.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        dropout: float,
        relative: PositionBias | None = None,
        *,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)
        self.out = Linear(width, width)
        self.relative = relative

    def forward(self, values_ND: Tensor, sizes_B: list[int], shared: Any = None) -> Tensor:
        """Attend within utterances of `sizes_B` frames; N×D to N×D. `shared` is what the layers' `relative` reads."""
        width = values_ND.shape[1]
        q_NHd, k_NHd, v_NHd = (
            part.unflatten(1, (self.num_heads, -1)) for part in self.qkv(values_ND).split(width, dim=1)
        )
        bias = None
        if self.relative is not None:
            bias = self.relative(values_ND, q_NHd * q_NHd.shape[2] ** -0.5, shared)
        mixed_NHd = packed_attention(q_NHd, k_NHd, v_NHd, sizes_B, self.dropout if self.training else 0.0, bias)
        if self.relative is not None and not len(values_ND):
            # No logit was made: the gates still get a (zero) gradient, as processes of a group expect.
            mixed_NHd = mixed_NHd + 0.0 * sum(parameter.sum() for parameter in self.relative.parameters())
        mixed_ND: Tensor = self.out(mixed_NHd.flatten(1))
        return mixed_ND


def packed_attention(
    q_NHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, sizes_B: list[int], dropout: float, bias: AttentionBias | None = None
) -> Tensor:
    """Return softmax(q kᵀ/√d + bias) v of each utterance by itself, N×H×d."""
    if not any(sizes_B):
        return v_NHd
    filled_B = [n for n in sizes_B if n]
    if bias is None and min(filled_B) == max(filled_B):
        q_BSHd, k_BSHd, v_BSHd = (part.unflatten(0, (len(filled_B), -1)) for part in (q_NHd, k_NHd, v_NHd))
        return _attend(q_BSHd, k_BSHd, v_BSHd, dropout).flatten(0, 1)
    if bias is None and not dropout and _has_one_kernel_for_all_lengths(q_NHd):
        return _attend_in_one_kernel(q_NHd, k_NHd, v_NHd, filled_B)
    parts = zip(*(part.split(sizes_B) for part in (q_NHd, k_NHd, v_NHd)), strict=True)
    return torch.cat(
        [
            _attend(q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0), dropout, bias, utterance).squeeze(0)
            for utterance, (q, k, v) in enumerate(parts)
            if len(q)
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


def _attend(
    q_BSHd: Tensor,
    k_BSHd: Tensor,
    v_BSHd: Tensor,
    dropout: float,
    bias: AttentionBias | None = None,
    utterance: int = 0,
) -> Tensor:
    if not dropout and not torch.is_grad_enabled() and len(q_BSHd) == 1 and q_BSHd.shape[1] >= _LONG:
        q_SHd, k_SHd, v_SHd = (part.squeeze(0) for part in (q_BSHd, k_BSHd, v_BSHd))
        if is_fast(q_SHd[:, 0], k_SHd[:, 0]):
            return _attend_by_blocks(q_SHd, k_SHd, v_SHd, bias, utterance).unsqueeze(0)
    q, k, v = (part.transpose(1, 2) for part in (q_BSHd, k_BSHd, v_BSHd))
    if bias is not None and not dropout and not torch.is_grad_enabled():
        # The terms of a long utterance are made for some queries at a time: their memory grows with its length, not its square.
        blocks = [
            F.scaled_dot_product_attention(
                q[:, :, start : start + _BIASED_QUERIES],
                k,
                v,
                attn_mask=bias.rows(utterance, slice(None), slice(start, start + _BIASED_QUERIES)).to(q.dtype),
            )
            for start in range(0, q.shape[2], _BIASED_QUERIES)
        ]
        return torch.cat(blocks, dim=2).transpose(1, 2)
    terms_HSS = None if bias is None else bias.rows(utterance, slice(None), slice(None)).to(q.dtype)
    if dropout and q.device.type == "cpu":
        # torch's CPU kernel has no dropout: it would fall back to this product, with a dearer mask.
        logits_BHSS = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        weights_BHSS = (logits_BHSS if terms_HSS is None else logits_BHSS + terms_HSS).softmax(-1)
        mixed: Tensor = (weights_BHSS * scaled_keep_mask(weights_BHSS.shape, dropout).to(weights_BHSS.dtype)) @ v
    else:
        mask_1HSS = None if terms_HSS is None else terms_HSS.unsqueeze(0)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_1HSS, dropout_p=dropout)
    return mixed.transpose(1, 2)


def _attend_by_blocks(
    q_SHd: Tensor, k_SHd: Tensor, v_SHd: Tensor, bias: AttentionBias | None, utterance: int
) -> Tensor:
    """Compute the same for one long utterance, some queries at a time: torch's kernel multiplies at the rate of MKL."""
    mixed_SHd = torch.empty_like(q_SHd)
    scale = q_SHd.shape[-1] ** -0.5
    for head in range(q_SHd.shape[1]):
        q_Sd, k_Sd = q_SHd[:, head] * scale, k_SHd[:, head].contiguous()
        v_dS = v_SHd[:, head].t().contiguous()
        for start in range(0, len(q_Sd), _QUERIES):
            block = slice(start, start + _QUERIES)
            logits_QS = multiply(q_Sd[block], k_Sd)
            if bias is not None:
                logits_QS += bias.rows(utterance, slice(head, head + 1), block).squeeze(0)
            mixed_SHd[block, head] = multiply(logits_QS.softmax(-1), v_dS)
    return mixed_SHd
