"""Self-attention that knows distances: Transformer-XL's, rotary, and learned keys for clipped distances, on packed streams."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.nn.attention import packed_attention
from isogloss.nn.dropout import scaled_keep_mask
from isogloss.nn.product import Linear, linear

Positions = Literal["relative", "rotary", "relative_key", "none"]
_QUERIES = 256  # in a block, where no gradient is wanted: H×Q×S weights are held at a time, not H×S×S


class RelativeAttention(nn.Module):
    """Multi-head self-attention within utterances, in which the distance of two frames enters.

    relative
        (q_i + u)·k_j + (q_i + v)·W r_{i−j}, with sinusoids r and learned u, v (Transformer-XL, arXiv 1901.02860, §3.3).
    rotary
        Frames are turned by angles in proportion to their time *before* the projections to queries and keys: so it is in
        fairseq's and Hugging Face's Conformer, unlike arXiv 2104.09864, which turns queries and keys.
    relative_key
        q_i·k_j + q_i·e_{clip(j−i)}, a learned vector for every distance from −left to +right (Shaw et al., arXiv 1803.02155).
    none
        Plain attention.
    """

    def __init__(
        self, width: int, num_heads: int, dropout: float, *, positions: Positions, left: int, right: int
    ) -> None:
        super().__init__()
        self.num_heads, self.dropout, self.positions = num_heads, dropout, positions
        self.left, self.right = left, right
        head_width = width // num_heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        if positions == "relative":
            self.distance = Linear(width, width, bias=False)
            self.content_bias_Hd = nn.Parameter(torch.empty(num_heads, head_width))
            self.distance_bias_Hd = nn.Parameter(torch.empty(num_heads, head_width))
            nn.init.xavier_uniform_(self.content_bias_Hd)
            nn.init.xavier_uniform_(self.distance_bias_Hd)
        if positions == "relative_key":
            self.distance_keys_Pd = nn.Parameter(torch.empty(left + right + 1, head_width))
            nn.init.normal_(self.distance_keys_Pd, std=0.02)

    def forward(self, values_ND: Tensor, sizes_B: list[int], table: Tensor | None) -> Tensor:
        """Attend within utterances of `sizes_B` frames, N×D to N×D; `table` is what `position_table` made for them."""
        dropout = self.dropout if self.training else 0.0
        q_NHd, k_NHd, v_NHd = (part.unflatten(1, (self.num_heads, -1)) for part in self._project(values_ND, table))
        if self.positions in ("rotary", "none"):
            mixed_NHd = packed_attention(q_NHd, k_NHd, v_NHd, sizes_B, dropout)
        else:
            mixed_NHd = self._attend_with_bias(q_NHd, k_NHd, v_NHd, sizes_B, table, dropout)
        mixed_ND: Tensor = self.out(mixed_NHd.flatten(1))
        return mixed_ND

    def _project(self, values_ND: Tensor, table: Tensor | None) -> tuple[Tensor, ...]:
        width = values_ND.shape[1]
        if self.positions != "rotary" or table is None:
            q_ND, k_ND, v_ND = self.qkv(values_ND).split(width, dim=1)
            return q_ND, k_ND, v_ND
        weight, bias = self.qkv.used_weight(), self.qkv.bias
        turned_ND = _turn(values_ND.unflatten(1, (self.num_heads, -1)), table).flatten(1).to(values_ND.dtype)
        q_ND, k_ND = linear(turned_ND, weight[: 2 * width], bias[: 2 * width]).split(width, dim=1)
        return q_ND, k_ND, linear(values_ND, weight[2 * width :], bias[2 * width :])

    def _attend_with_bias(
        self, q_NHd: Tensor, k_NHd: Tensor, v_NHd: Tensor, sizes_B: list[int], table: Tensor | None, dropout: float
    ) -> Tensor:
        keys_HdR = None
        if self.positions == "relative":
            assert table is not None
            keys_HdR = self.distance(table).unflatten(1, (self.num_heads, -1)).permute(1, 2, 0)
        mixed = []
        for q_SHd, k_SHd, v_SHd in zip(*(part.split(sizes_B) for part in (q_NHd, k_NHd, v_NHd)), strict=True):
            if not len(q_SHd):
                continue
            q_HSd, k_HSd, v_HSd = (part.transpose(0, 1) for part in (q_SHd, k_SHd, v_SHd))
            biased = self._with_distance_keys(q_HSd) if keys_HdR is None else self._with_sinusoids(q_HSd, keys_HdR)
            blocks = [_attend(q_HQd.to(k_HSd.dtype), k_HSd, v_HSd, bias, dropout) for q_HQd, bias in biased]
            mixed.append(torch.cat(blocks, dim=1).transpose(0, 1))
        # An empty batch still reaches every parameter: processes of a group expect a gradient for each of them.
        return torch.cat(mixed) if mixed else v_NHd + 0.0 * sum(p.sum() for p in self.parameters())

    def _with_sinusoids(self, q_HSd: Tensor, keys_HdR: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield blocks of queries with u added, and what their logits get from the distances, H×Q×S."""
        num_frames, middle = q_HSd.shape[1], keys_HdR.shape[2] // 2  # the column of distance 0
        for start, end in _blocks(num_frames):
            # Columns run from distance end − 1 down to start − num_frames + 1.
            block_HdW = keys_HdR[:, :, middle - end + 1 : middle - start + num_frames]
            scores_HQW = (q_HSd[:, start:end] + self.distance_bias_Hd[:, None]).to(block_HdW.dtype) @ block_HdW
            # Row r of the block needs the S columns that begin at end − start − 1 − r: a view with a shorter stride.
            scores_HQW = scores_HQW.contiguous()
            rows, columns = end - start, scores_HQW.shape[2]
            shape, strides = (self.num_heads, rows, num_frames), (rows * columns, columns - 1, 1)
            yield (
                q_HSd[:, start:end] + self.content_bias_Hd[:, None],
                scores_HQW.as_strided(shape, strides, scores_HQW.storage_offset() + rows - 1),
            )

    def _with_distance_keys(self, q_HSd: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        frames_S = torch.arange(q_HSd.shape[1], device=q_HSd.device)
        scores_HSP = q_HSd @ self.distance_keys_Pd.to(q_HSd.dtype).t()
        for start, end in _blocks(q_HSd.shape[1]):
            distances_QS = (frames_S - frames_S[start:end, None]).clamp(-self.left, self.right) + self.left
            yield (
                q_HSd[:, start:end],
                scores_HSP[:, start:end].gather(2, distances_QS.expand(len(q_HSd), -1, -1)),
            )


def position_table(
    positions: Positions, width: int, num_heads: int, sizes_B: list[int], device: torch.device, base: float = 10_000.0
) -> Tensor | None:
    """Return what all layers of a stack share, float32.

    "relative": sinusoids of the distances S−1 … −(S−1) of the longest utterance, (2S−1)×width. "rotary": cosines and sines for
    each frame of the stream, 2×N×1×(width/num_heads). Otherwise None.
    """
    if positions == "relative":
        longest = max([*sizes_B, 1])
        distances_R1 = torch.arange(longest - 1, -longest, -1, device=device, dtype=torch.float32)[:, None]
        rates = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * -(math.log(base) / width))
        return torch.stack([torch.sin(distances_R1 * rates), torch.cos(distances_R1 * rates)], dim=2).flatten(1)
    if positions == "rotary":
        head_width = width // num_heads
        rates = base ** -(torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
        times_N1 = torch.cat([torch.arange(n, device=device, dtype=torch.float32) for n in sizes_B])[:, None]
        angles_Nd = torch.cat([times_N1 * rates] * 2, dim=1)
        return torch.stack([angles_Nd.cos(), angles_Nd.sin()])[:, :, None]
    return None


def _turn(values_NHd: Tensor, table_2N1d: Tensor) -> Tensor:
    half = values_NHd.shape[2] // 2
    turned_NHd = torch.cat([-values_NHd[..., half:], values_NHd[..., :half]], dim=2)
    return values_NHd * table_2N1d[0] + turned_NHd * table_2N1d[1]


def _blocks(num_frames: int) -> Iterator[tuple[int, int]]:
    step = num_frames if torch.is_grad_enabled() else _QUERIES
    for start in range(0, num_frames, step):
        yield start, min(start + step, num_frames)


def _attend(q_HQd: Tensor, k_HSd: Tensor, v_HSd: Tensor, bias_HQS: Tensor, dropout: float) -> Tensor:
    """Return softmax((q kᵀ + bias)/√d) v."""
    scale = q_HQd.shape[2] ** -0.5
    if dropout and q_HQd.device.type == "cpu":
        weights_HQS = ((q_HQd @ k_HSd.transpose(1, 2) + bias_HQS) * scale).softmax(-1)
        mixed_HQd: Tensor = (weights_HQS * scaled_keep_mask(weights_HQS.shape, dropout).to(weights_HQS.dtype)) @ v_HSd
        return mixed_HQd
    bias_HQS = (bias_HQS * scale).to(q_HQd.dtype)
    # A batch of one: torch's kernels want four dimensions.
    q_1HQd, k_1HSd, v_1HSd = q_HQd.unsqueeze(0), k_HSd.unsqueeze(0), v_HSd.unsqueeze(0)
    return F.scaled_dot_product_attention(
        q_1HQd, k_1HSd, v_1HSd, attn_mask=bias_HQS.unsqueeze(0), dropout_p=dropout
    ).squeeze(0)
