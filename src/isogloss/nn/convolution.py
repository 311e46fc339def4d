"""Strided convolution over a stream of rows (channels last) as a few matrix products, without im2col."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.nn.precision import to_product_dtype
from isogloss.nn.product import is_fast, linear, multiply


class StridedConv(nn.Module):
    """A convolution without padding: R rows of `in_channels` become ⌊(R − kernel)/stride⌋ + 1 rows of `out_channels`.

    `weight` is out×kernel×in, so that the taps that share a stride lie together. Weights start as in fairseq: Kaiming
    normal, bias as in torch.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, *, bias: bool) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(out_channels, kernel, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kaiming normal weights (He et al. 2015), as wav2vec 2.0's feature encoder has them."""
        nn.init.kaiming_normal_(self.weight.view(len(self.weight), -1))
        self.reset_bias()

    def reset_bias(self) -> None:
        """Draw the bias from U(±1/√(kernel·in)), torch's default."""
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, values_RD: Tensor) -> Tensor:
        """Convolve the rows of a stream."""
        return strided_conv(values_RD, self.weight, self.bias, self.stride)


def strided_conv(values_RD: Tensor, weight_OKD: Tensor, bias_O: Tensor | None, stride: int) -> Tensor:
    """Return the rows Σ_k W[:, k] · values[stride·r + k] (+ bias) for r = 0 … ⌊(R − K)/stride⌋."""
    values_RD, weight_OKD = to_product_dtype(values_RD), to_product_dtype(weight_OKD)
    bias_O = None if bias_O is None else to_product_dtype(bias_O)
    out_channels, kernel, in_channels = weight_OKD.shape
    if in_channels == 1:
        # One channel: copying the windows costs little, and one product reads each of them once.
        windows_RK = values_RD.squeeze(1).unfold(0, kernel, stride)
        return linear(windows_RK, weight_OKD.view(out_channels, kernel), bias_O)
    result: Tensor = _StridedConv.apply(  # type: ignore[no-untyped-call]
        values_RD.contiguous(), weight_OKD, bias_O, stride
    )
    return result


def _tap_groups(values_RD: Tensor, weight_OKD: Tensor, stride: int) -> list[tuple[Tensor, Tensor]]:
    """Pair views of the rows with slices of the weight, so that the convolution is the sum of their products.

    Taps j·stride … (j+1)·stride − 1 of all windows are disjoint pieces of the stream: a plain strided matrix that BLAS
    multiplies in place. Kernel 3, stride 2 is two products: a pair of rows, and every second row.
    """
    out_channels, kernel, width = weight_OKD.shape
    num_out = (values_RD.shape[0] - kernel) // stride + 1
    groups = []
    for first in range(0, kernel, stride):
        taps = min(stride, kernel - first)
        rows = values_RD.as_strided(
            (num_out, taps * width), (stride * width, 1), values_RD.storage_offset() + first * width
        )
        groups.append((rows, weight_OKD[:, first : first + taps].reshape(out_channels, taps * width)))
    return groups


class _StridedConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values_RD: Tensor, weight_OKD: Tensor, bias_O: Tensor | None, stride: int) -> Tensor:
        ctx.save_for_backward(values_RD, weight_OKD)
        ctx.stride = stride
        if is_fast(values_RD, weight_OKD):
            # oneDNN convolves rows with channels last as fast as it multiplies, in one call for all taps.
            image, kernel = _as_image(values_RD), _as_kernel(weight_OKD)
            return F.conv2d(image, kernel, bias_O, (1, stride)).squeeze((0, 2)).t()
        (rows, weight), *others = _tap_groups(values_RD, weight_OKD, stride)
        out_RO = torch.mm(rows, weight.t()) if bias_O is None else torch.addmm(bias_O, rows, weight.t())
        for rows, weight in others:
            out_RO.addmm_(rows, weight.t())
        return out_RO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        values_RD, weight_OKD = ctx.saved_tensors
        gradient_RO = gradients[0].contiguous()
        grad_values = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_values = _gradient_of_values(gradient_RO, values_RD, weight_OKD, ctx.stride)
        if ctx.needs_input_grad[1]:
            transposed_OR = gradient_RO.t().contiguous()  # once for all groups
            groups = _tap_groups(values_RD, weight_OKD, ctx.stride)
            parts = [multiply(transposed_OR, rows.t()) for rows, _ in groups]
            grad_weight = torch.cat(parts, dim=1).view_as(weight_OKD)
        if ctx.needs_input_grad[2]:
            grad_bias = gradient_RO.sum(0)
        return grad_values, grad_weight, grad_bias, None


def _gradient_of_values(gradient_RO: Tensor, values_RD: Tensor, weight_OKD: Tensor, stride: int) -> Tensor:
    if is_fast(values_RD, weight_OKD):
        image, kernel = _as_image(values_RD), _as_kernel(weight_OKD)
        gradient, _, _ = torch.ops.aten.convolution_backward(
            _as_image(gradient_RO),
            image,
            kernel,
            None,
            (1, stride),
            (0, 0),
            (1, 1),
            False,
            (0, 0),
            1,
            (True, False, False),
        )
        values: Tensor = gradient.squeeze((0, 2)).t()
        return values
    grad_values = torch.empty_like(values_RD)
    # The first group writes its rows, so only the rows that it does not reach need zeros.
    grad_values[len(gradient_RO) * stride if weight_OKD.shape[1] >= stride else 0 :].zero_()
    for index, (rows, weight) in enumerate(_tap_groups(grad_values, weight_OKD, stride)):
        rows.addmm_(gradient_RO, weight, beta=0 if index == 0 else 1)
    return grad_values


def _as_image(values_RD: Tensor) -> Tensor:
    return values_RD.t().unsqueeze(0).unsqueeze(2)  # 1×D×1×R, channels last


def _as_kernel(weight_OKD: Tensor) -> Tensor:
    return weight_OKD.permute(0, 2, 1).unsqueeze(2)  # O×D×1×K, channels last


def grouped_rows_product(values_RK: Tensor, matrices_BKO: Tensor, rows_B: list[int]) -> Tensor:
    """Multiply consecutive groups of rows (`rows_B` of them) each with a matrix of its own, R×K to R×O."""
    result: Tensor = _GroupedRowsProduct.apply(  # type: ignore[no-untyped-call]
        to_product_dtype(values_RK).contiguous(), to_product_dtype(matrices_BKO).contiguous(), rows_B
    )
    return result


class _GroupedRowsProduct(torch.autograd.Function):
    """One output for all groups: writing each product in place saves the copy that concatenation would make."""

    @staticmethod
    def forward(ctx: Any, values_RK: Tensor, matrices_BKO: Tensor, rows_B: list[int]) -> Tensor:
        ctx.save_for_backward(values_RK, matrices_BKO)
        ctx.rows_B = rows_B
        out_RO = values_RK.new_empty(len(values_RK), matrices_BKO.shape[2])
        for rows, matrix, out in zip(values_RK.split(rows_B), matrices_BKO, out_RO.split(rows_B), strict=True):
            torch.mm(rows, matrix, out=out)
        return out_RO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values_RK, matrices_BKO = ctx.saved_tensors
        parts = gradients[0].contiguous().split(ctx.rows_B)
        grad_values = grad_matrices = None
        if ctx.needs_input_grad[0]:
            grad_values = torch.empty_like(values_RK)
            for part, matrix, out in zip(parts, matrices_BKO, grad_values.split(ctx.rows_B), strict=True):
                torch.mm(part, matrix.t(), out=out)
        if ctx.needs_input_grad[1]:
            pairs = zip(values_RK.split(ctx.rows_B), parts, strict=True)
            grad_matrices = torch.stack([multiply(rows.t(), part.t()) for rows, part in pairs])
        return grad_values, grad_matrices, None
