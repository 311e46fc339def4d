"""Matrix products at the rate of the machine.

On a CPU torch hands fp32 products to MKL, which on processors of other makers than its own reaches half of what oneDNN does (measured on
an AMD EPYC of 2024: 97 against 208 GFLOP/s on one core). oneDNN is part of torch's CPU build, but torch asks it only in
inference, after freezing; here it computes forward and backward products. Everywhere else (other devices and types, small
products, a torch without oneDNN) these functions are torch's own.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALL = 1 << 20  # multiplications; below, the call costs more than the product


class Linear(nn.Linear):
    """`nn.Linear` with products from `linear`; an `edit` (nn/edits.py) maps the weight to the one that is used."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.edit: nn.Module | None = None

    def used_weight(self) -> Tensor:
        """Return the weight of the product: `weight` itself, or what the edit makes of it."""
        if self.edit is None:
            return self.weight
        edited: Tensor = self.edit(self.weight)
        return edited

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that nn.Linear has
        """Return input · weightᵀ + bias."""
        return linear(input, self.used_weight(), self.bias)


def linear(values_RD: Tensor, weight_OD: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Return values · weightᵀ (+ bias), as `F.linear`, for a matrix of rows."""
    if not is_fast(values_RD, weight_OD) or values_RD.dim() != 2:
        return F.linear(values_RD, weight_OD, bias_O)
    result: Tensor = _Linear.apply(values_RD, weight_OD, bias_O)  # type: ignore[no-untyped-call]
    return result


def linear_gelu(values_RD: Tensor, weight_OD: Tensor, bias_O: Tensor) -> Tensor:
    """Return gelu(values · weightᵀ + bias); without a gradient the GELU is computed while the product is still in the cache."""
    if torch.is_grad_enabled() or not is_fast(values_RD, weight_OD):
        return F.gelu(linear(values_RD, weight_OD, bias_O))
    out: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(values_RD), weight_OD, bias_O, "gelu", [], "none")
    return out


def multiply(left_RK: Tensor, right_OK: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Return left · rightᵀ (+ bias) without a gradient; either may be a transposed view."""
    if is_fast(left_RK, right_OK):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(_dense(left_RK), _dense(right_OK), bias_O, "none", [], "")
        return out
    return left_RK @ right_OK.t() if bias_O is None else torch.addmm(bias_O, left_RK, right_OK.t())


def is_fast(values_RD: Tensor, weight_OD: Tensor) -> bool:
    """Whether oneDNN is asked for this product."""
    return (
        values_RD.dtype == torch.float32
        and weight_OD.dtype == torch.float32
        and values_RD.device.type == "cpu"
        and values_RD.numel() * weight_OD.shape[0] >= _SMALL
        and not torch.is_autocast_enabled("cpu")
        and _has_onednn()
    )


def _dense(matrix: Tensor) -> Tensor:
    # oneDNN takes no overlapping or expanded rows, and for rows with gaps, transposed, it has nothing but a slow reference.
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


@functools.cache
def _has_onednn() -> bool:
    """Whether this build of torch has oneDNN's product, and it is right; asked once."""
    if not torch.backends.mkldnn.is_available():
        return False
    left, right, bias = torch.arange(12.0).view(3, 4), torch.arange(20.0).view(4, 5).t(), torch.arange(5.0)
    try:
        out = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(out, left @ right.t() + bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_RD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(values_RD, weight_OD)
        return multiply(values_RD, weight_OD, bias_O)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        values_RD, weight_OD = ctx.saved_tensors
        gradient_RO = gradients[0]
        needs_values, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            multiply(gradient_RO, weight_OD.t()) if needs_values else None,
            multiply(gradient_RO.t(), values_RD.t()) if needs_weight else None,
            gradient_RO.sum(0) if needs_bias else None,
        )
