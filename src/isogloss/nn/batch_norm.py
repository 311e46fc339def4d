"""Batch norm over packed frames, whose stored statistics do not depend on how an update was divided."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.core.dist import sum_over_ranks


class FrameBatchNorm(nn.Module):
    """Batch norm over the rows of a packed stream (arXiv 1502.03167): there is no padding, so every row is a real frame.

    In evaluation the stored statistics are used, and a frame does not depend on its batch. In training each channel is
    normalised by the mean and variance of all frames of the micro-batch. The stored statistics move once an update
    (`step_statistics`), with `momentum`, to those of all frames that it had on all ranks: so they are the same on every rank, the
    same for one process, two processes and two accumulation steps, and a block that is recomputed in the backward pass moves
    them no further. A stream of fewer than two rows has no variance and takes the stored ones in training too, and so does a
    norm whose weight is frozen: what is frozen does not change. A pass without gradients (a head that learns alone) moves nothing.
    """

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        # Rows of this update on this rank, and sums over them: distance from the stored mean, variance about it. No buffer: a
        # model that is built without memory and then loaded would lack it.
        self._seen_E: Tensor | None = None

    def forward(self, values_ND: Tensor) -> Tensor:
        """Normalise each channel."""
        if not self.training or not self.weight.requires_grad or len(values_ND) < 2:
            return F.batch_norm(
                values_ND, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        # With a momentum of 1 they become those of the micro-batch.
        mean_D, variance_D = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        normed_ND = F.batch_norm(values_ND, mean_D, variance_D, self.weight, self.bias, True, 1.0, self.eps)
        if torch.is_grad_enabled():
            self._collect(len(values_ND), mean_D, variance_D)
        return normed_ND

    @torch.no_grad()
    def _collect(self, num_rows: int, mean_D: Tensor, variance_D: Tensor) -> None:
        shift_D = mean_D - self.running_mean
        sums_E = num_rows * torch.cat([mean_D.new_ones(1), shift_D, variance_D + shift_D.square()])
        # Frames that are not finite are left out: the loop skips their update.
        self._seen_E = self.seen() + torch.where(torch.isfinite(sums_E).all(), sums_E, 0.0)

    def seen(self) -> Tensor:
        """Return what was collected on this rank since the last step, 1 + 2·width sums."""
        return self.running_mean.new_zeros(1 + 2 * len(self.running_mean)) if self._seen_E is None else self._seen_E

    @torch.no_grad()
    def step(self, seen_E: Tensor) -> None:
        """Move the stored statistics by what all ranks collected; without rows nothing moves."""
        shift_D, squares_D = (seen_E[1:] / seen_E[0].clamp(min=1)).chunk(2)
        share = self.momentum * (seen_E[0] > 0)
        self.running_mean.add_(share * shift_D)
        self.running_var.add_(share * (squares_D - shift_D.square() - self.running_var))
        self.forget()

    def forget(self) -> None:
        """Drop what was collected since the last step."""
        self._seen_E = None


def step_statistics(module: nn.Module) -> None:
    """Move the stored statistics of all batch norms in a module by the update that is done; every rank must call it."""
    norms = _norms(module)
    if not norms:
        return
    parts = [norm.seen() for norm in norms]
    for norm, seen_E in zip(norms, sum_over_ranks(torch.cat(parts)).split([len(part) for part in parts]), strict=True):
        norm.step(seen_E)


def forget_statistics(module: nn.Module) -> None:
    """Drop what the batch norms in a module collected for an update that is left out."""
    for norm in _norms(module):
        norm.forget()


def _norms(module: nn.Module) -> list[FrameBatchNorm]:
    return [part for part in module.modules() if isinstance(part, FrameBatchNorm)]
