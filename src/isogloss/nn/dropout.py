"""Dropout that costs little on a CPU, and the gradient scale of wav2vec 2.0's feature encoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(values: Tensor, p: float, training: bool) -> Tensor:
    """Zero each value with probability p and divide the others by 1 − p.

    On a CPU torch draws one number per value, which makes dropout the dearest element-wise operation of a transformer;
    four values share a 64-bit draw here, so p is rounded to a multiple of 1/65536. Randomness comes from torch's global generator.
    """
    if not training or p == 0.0:
        return values
    if values.device.type != "cpu":
        return F.dropout(values, p)
    return values * scaled_keep_mask(values.shape, p).to(values.dtype)


def scaled_keep_mask(shape: torch.Size | tuple[int, ...], p: float) -> Tensor:
    """Return a CPU float32 tensor that is 0 with probability p (to 1/65536) and 1/(1−p) elsewhere."""
    count = torch.Size(shape).numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    dropped = round(p * 65536)
    is_kept = draws.view(torch.int16)[:count] >= dropped - 32768
    return is_kept.to(torch.float32).mul_(65536 / (65536 - dropped)).view(shape)


class Dropout(nn.Module):
    """`dropout` as a module that follows train() and eval()."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        """Apply dropout in training."""
        return dropout(values, self.p, self.training)

    def extra_repr(self) -> str:
        """Show p."""
        return f"p={self.p}"


def scale_gradient(values: Tensor, scale: float) -> Tensor:
    """Return the values; their gradient is multiplied by `scale` (wav2vec 2.0 base: 0.1 for the feature encoder)."""
    if scale == 1.0:
        return values
    result: Tensor = _ScaleGradient.apply(values, scale)  # type: ignore[no-untyped-call]
    return result


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None
