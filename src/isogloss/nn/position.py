"""Position embeddings over a packed stream: convolutions, and sinusoids."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.nn.precision import to_product_dtype
from isogloss.nn.product import is_fast


class PositionalConv(nn.Module):
    """Grouped convolution with weight norm over its taps, then GELU (wav2vec 2.0, arXiv 2006.11477, §2 and appendix B).

    The effective weight of tap k is gain_k · v_k/‖v_k‖, norm over all channels. `direction` is out×in/groups×kernel. Utterances
    are set half a kernel of zeros apart, so none sees another. Starts as in fairseq: N(0, √(4/(kernel·width))), bias 0.
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.groups = kernel, groups
        self.direction = nn.Parameter(torch.empty(width, width // groups, kernel))
        self.gain_K = nn.Parameter(torch.empty(kernel))
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the directions and set each gain to its norm, so that the effective weight is what was drawn."""
        nn.init.normal_(self.direction, std=math.sqrt(4 / (self.kernel * len(self.direction))))
        nn.init.zeros_(self.bias)
        with torch.no_grad():
            self.gain_K.copy_(torch.linalg.vector_norm(self.direction, dim=(0, 1)))

    def weight(self) -> Tensor:
        """Return the effective weight, out×in/groups×kernel."""
        scale_K: Tensor = self.gain_K / torch.linalg.vector_norm(self.direction, dim=(0, 1))
        return self.direction * scale_K

    def forward(self, values_ND: Tensor, sizes_B: list[int]) -> Tensor:
        """Return the position embedding of each frame, N×D."""
        return F.gelu(conv_apart(values_ND, sizes_B, self.weight(), self.bias, self.groups))


class StackedPositionalConv(nn.Module):
    """Grouped convolutions one after another, each with a layer norm without weights and GELU (data2vec's audio model).

    arXiv 2202.03555's released code: five of kernel 19, no weight norm, torch's initial weights. What lies outside an
    utterance is zero before each of them.
    """

    def __init__(self, width: int, kernel: int, groups: int, num_layers: int) -> None:
        super().__init__()
        self.groups = groups
        self.weights = nn.ParameterList(torch.empty(width, width // groups, kernel) for _ in range(num_layers))
        self.biases = nn.ParameterList(torch.empty(width) for _ in range(num_layers))
        bound = 1 / math.sqrt(kernel * width // groups)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, values_ND: Tensor, sizes_B: list[int]) -> Tensor:
        """Return the position embedding of each frame, N×D."""
        for weight_DIK, bias_D in zip(self.weights, self.biases, strict=True):
            values_ND = conv_apart(values_ND, sizes_B, weight_DIK, bias_D, self.groups)
            values_ND = F.gelu(F.layer_norm(values_ND, values_ND.shape[1:]))
        return values_ND


def sinusoids(sizes_B: list[int], width: int, *, first: int, device: torch.device) -> Tensor:
    """Return sin(p·f_i), cos(p·f_i), f_i = 10000^(−i/(width/2 − 1)), p = first, first+1, … in each utterance; N×width.

    The variant of tensor2tensor and fairseq, which SpeechT5 adds (arXiv 2110.07205's code; there p begins at 2, behind the padding index).
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half).float() * (-math.log(10_000) / (half - 1)))
    positions = torch.arange(first, first + max(sizes_B, default=0)).float()
    angles = positions.unsqueeze(1) * frequencies
    table_SD = F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2)).to(device)
    return torch.cat([table_SD[:n] for n in sizes_B]) if sizes_B else table_SD


def conv_apart(values_ND: Tensor, sizes_B: list[int], weight_DIK: Tensor, bias_D: Tensor, groups: int) -> Tensor:
    """Convolve every utterance by itself, as if zeros lay around it; kernels of even length lose their last row."""
    if not len(values_ND):
        # Fewer rows than taps; the weights still get a (zero) gradient, as processes of a group expect.
        return values_ND.new_zeros(0, len(weight_DIK)) + 0.0 * (values_ND.sum() + weight_DIK.sum() + bias_D.sum())
    gap = values_ND.new_zeros(weight_DIK.shape[2] // 2, values_ND.shape[1])
    pieces = [gap]
    for part in values_ND.split(sizes_B):
        pieces += [part, gap]
    out_RD = grouped_conv(torch.cat(pieces), weight_DIK, bias_D, groups)
    kept, start = [], 0
    for size in sizes_B:
        kept.append(out_RD[start : start + size])
        start += size + len(gap)
    return torch.cat(kept)


def grouped_conv(values_RD: Tensor, weight_DIK: Tensor, bias_D: Tensor, groups: int) -> Tensor:
    """Convolve the rows of a stream without padding; channels last in and out, R rows to R − K + 1."""
    values_RD, weight_DIK, bias_D = (to_product_dtype(part) for part in (values_RD, weight_DIK, bias_D))
    if not is_fast(values_RD, weight_DIK):
        return F.conv1d(values_RD.t().unsqueeze(0), weight_DIK, bias_D, groups=groups).squeeze(0).t()
    result: Tensor = _GroupedConv.apply(values_RD, weight_DIK, bias_D, groups)  # type: ignore[no-untyped-call]
    return result


class _GroupedConv(torch.autograd.Function):
    """On a CPU oneDNN is quickest with channels last, but for the gradient of the weight, where it is quickest with them first."""

    @staticmethod
    def forward(ctx: Any, values_RD: Tensor, weight_DIK: Tensor, bias_D: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(values_RD, weight_DIK)
        ctx.groups = groups
        return F.conv2d(_as_image(values_RD), _as_kernel(weight_DIK), bias_D, groups=groups).squeeze((0, 2)).t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        values_RD, weight_DIK = ctx.saved_tensors
        gradient_RD = gradients[0].contiguous()
        needs_values, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_values = grad_weight = None
        if needs_values:
            grad_values, _, _ = torch.ops.aten.convolution_backward(
                _as_image(gradient_RD),
                _as_image(values_RD),
                _as_kernel(weight_DIK),
                None,
                (1, 1),
                (0, 0),
                (1, 1),
                False,
                (0, 0),
                ctx.groups,
                (True, False, False),
            )
            grad_values = grad_values.squeeze((0, 2)).t()
        if needs_weight:
            _, grad_weight, _ = torch.ops.aten.convolution_backward(
                gradient_RD.t().contiguous().unsqueeze(0),
                values_RD.t().contiguous().unsqueeze(0),
                weight_DIK,
                None,
                (1,),
                (0,),
                (1,),
                False,
                (0,),
                ctx.groups,
                (False, True, False),
            )
        return grad_values, grad_weight, gradient_RD.sum(0) if needs_bias else None, None


def _as_image(values_RD: Tensor) -> Tensor:
    return values_RD.t().unsqueeze(0).unsqueeze(2)  # 1×D×1×R, channels last


def _as_kernel(weight_DIK: Tensor) -> Tensor:
    return weight_DIK.unsqueeze(2).contiguous(memory_format=torch.channels_last)  # D×I×1×K
