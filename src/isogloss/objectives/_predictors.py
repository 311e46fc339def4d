"""The K heads of CPC: from the context of frame t to its guess of the latents of frames t+1 … t+K."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.core.types import Packed
from isogloss.nn.dropout import Dropout


class LinearPredictors(nn.Module):
    """K linear maps without bias (arXiv 1807.03748, eq. 3: z_{t+k}ᵀ W_k c_t)."""

    def __init__(self, num_steps: int, width: int, latent_width: int) -> None:
        super().__init__()
        self.weight_KDE = _uniform(num_steps, width, latent_width, fan_in=width)

    def forward(self, context: Packed) -> Tensor:
        """Return guesses, K×N×E."""
        guesses_KNE: Tensor = context.values_ND @ self.weight_KDE
        return guesses_KNE


class TransformerPredictors(nn.Module):
    """K causal transformer layers with relative positions, computed together (arXiv 2002.02848 and its released code).

    Post-norm, ReLU of `ffn_width`, queries, keys, values and output without bias, and a learned key for each distance back
    in time, shared by the heads of a layer. A frame attends to itself and the `reach` − 1 frames before it in its utterance:
    for windows of at most `reach` frames that is plain causal attention, and longer utterances cost time in proportion to
    their length. Attention runs over the packed stream in blocks of `reach` queries against two blocks of keys.
    """

    def __init__(
        self, num_steps: int, width: int, *, num_heads: int, ffn_width: int, reach: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.reach = reach
        self.qkv_KDE = _uniform(num_steps, width, 3 * width, fan_in=width)
        self.out_KDE = _uniform(num_steps, width, width, fan_in=width)
        self.distance_keys_KRd = _uniform(num_steps, reach, width // num_heads, fan_in=width // num_heads)
        self.up_KDE = _uniform(num_steps, width, ffn_width, fan_in=width)
        self.up_bias_K1E = _uniform(num_steps, 1, ffn_width, fan_in=width)
        self.down_KDE = _uniform(num_steps, ffn_width, width, fan_in=ffn_width)
        self.down_bias_K1E = _uniform(num_steps, 1, width, fan_in=ffn_width)
        self.attention_gain_K1D = nn.Parameter(torch.ones(num_steps, 1, width))
        self.attention_bias_K1D = nn.Parameter(torch.zeros(num_steps, 1, width))
        self.ffn_gain_K1D = nn.Parameter(torch.ones(num_steps, 1, width))
        self.ffn_bias_K1D = nn.Parameter(torch.zeros(num_steps, 1, width))
        self.dropout = Dropout(dropout)

    def forward(self, context: Packed) -> Tensor:
        """Return guesses, K×N×D."""
        values_ND = context.values_ND
        attended_KND = self._attend(context)
        hidden_KND = _norm(values_ND + self.dropout(attended_KND), self.attention_gain_K1D, self.attention_bias_K1D)
        inner_KNE = torch.baddbmm(self.up_bias_K1E, hidden_KND, self.up_KDE).relu()
        mapped_KND = torch.baddbmm(self.down_bias_K1E, self.dropout(inner_KNE), self.down_KDE)
        return _norm(hidden_KND + self.dropout(mapped_KND), self.ffn_gain_K1D, self.ffn_bias_K1D)

    def _attend(self, context: Packed) -> Tensor:
        num_frames, width = context.values_ND.shape
        reach, num_blocks = self.reach, -(-num_frames // self.reach)
        padding = num_blocks * reach - num_frames
        qkv_KND = F.pad(context.values_ND @ self.qkv_KDE, (0, 0, 0, padding))
        # K × steps, C blocks, H heads, R rows in a block, d
        q, k, v = qkv_KND.view(len(qkv_KND), num_blocks, reach, 3, self.num_heads, -1).permute(3, 0, 1, 4, 2, 5)
        q = q * (width // self.num_heads) ** -0.5
        k, v = _with_previous_block(k), _with_previous_block(v)
        scores = q @ k.transpose(-1, -2) + _skew(q @ self.distance_keys_KRd.flip(1)[:, None, None].transpose(-1, -2))
        scores = scores.masked_fill(self._is_hidden(context, num_blocks, padding)[:, None], float("-inf"))
        weights = self.dropout(scores.softmax(-1))
        mixed = (weights @ v).transpose(2, 3).reshape(len(qkv_KND), num_blocks * reach, width)
        attended_KND: Tensor = mixed[:, :num_frames] @ self.out_KDE
        return attended_KND

    def _is_hidden(self, context: Packed, num_blocks: int, padding: int) -> Tensor:
        """Say which of the 2R keys each of the R queries of a block must not see, C×R×2R."""
        reach, device = self.reach, context.values_ND.device
        row_R = torch.arange(reach, device=device)
        distance_RR = row_R[:, None] + reach - torch.arange(2 * reach, device=device)
        # Rows of padding see each other, so that no softmax is over nothing.
        utterance_CR = F.pad(context.utterance_N, (0, padding), value=-1).view(num_blocks, reach)
        key_utterance_CR = torch.cat([F.pad(utterance_CR[:-1], (0, 0, 1, 0), value=-2), utterance_CR], dim=1)
        is_other_CRR = utterance_CR[:, :, None] != key_utterance_CR[:, None]
        return is_other_CRR | (distance_RR < 0) | (distance_RR >= reach)


def _with_previous_block(values: Tensor) -> Tensor:
    """Put each block behind the one before it: K×C×H×R×d to K×C×H×2R×d."""
    return torch.cat([F.pad(values[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)), values], dim=3)


def _skew(by_distance: Tensor) -> Tensor:
    """Move row i (…×R×R, last distance first) to the right by i+1 places: …×R×2R, zero where no distance applies."""
    reach = by_distance.shape[-1]
    shifted = F.pad(by_distance, (1, reach))
    skewed: Tensor = shifted.flatten(-2)[..., : 2 * reach * reach].unflatten(-1, (reach, 2 * reach))
    return skewed


def _norm(values_KND: Tensor, gain_K1D: Tensor, bias_K1D: Tensor) -> Tensor:
    normed: Tensor = F.layer_norm(values_KND, values_KND.shape[-1:]) * gain_K1D + bias_K1D
    return normed


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    # torch's default for linear layers.
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))
