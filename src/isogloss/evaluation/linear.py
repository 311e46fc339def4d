"""Multinomial logistic regression on standardised features: the linear probe, solved to its optimum, not trained by luck."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor

from isogloss.core.threads import one_thread

Array = npt.NDArray[Any]
MANY = 2e9  # multiplications in one look at the data, from which on several threads bring more than they cost


def _threads_for(values_ND: Tensor, num_classes: int) -> AbstractContextManager[None]:
    return one_thread() if values_ND.numel() * num_classes < MANY else nullcontext()


@dataclass(frozen=True)
class LinearClassifier:
    """log p(c|x) = log softmax(((x − mean) / scale) · W + b)."""

    mean_D: Tensor
    scale_D: Tensor
    weight_DC: Tensor
    bias_C: Tensor
    weight_decay: float
    iterations: int
    is_converged: bool

    def log_probs(self, values_ND: Tensor) -> Tensor:
        """Return log-probabilities N×C."""
        with _threads_for(values_ND, len(self.bias_C)):
            standard_ND = (values_ND.float().to(self.mean_D.device) - self.mean_D) / self.scale_D
            return F.log_softmax(standard_ND @ self.weight_DC + self.bias_C, dim=-1)

    def predict(self, values_ND: Tensor) -> Array:
        """Return the most probable class of each row."""
        result: Array = self.log_probs(values_ND).argmax(dim=-1).cpu().numpy()
        return result


def fit_path(
    values_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    weight_decays: Sequence[float],
    *,
    class_weights_C: Tensor | None = None,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
) -> list[LinearClassifier]:
    """Fit one classifier per weight decay λ, in the order given: minimise mean cross-entropy + λ/2·‖W‖² by L-BFGS.

    With `class_weights_C` the mean is weighted by each row's class. The bias is not penalised; features are standardised
    with this data's mean and deviation (constant ones are left at zero). Each fit starts from the next stronger decay's, so
    a grid costs little more than one fit. `tolerance` bounds the largest component of the gradient at the end.
    """
    with _threads_for(values_ND, num_classes):
        return _fit_path(
            values_ND.float(), labels_N, num_classes, weight_decays, class_weights_C, max_iterations, tolerance
        )


def _fit_path(
    values_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    weight_decays: Sequence[float],
    class_weights_C: Tensor | None,
    max_iterations: int,
    tolerance: float,
) -> list[LinearClassifier]:
    mean_D = values_ND.mean(0)
    scale_D = values_ND.std(0, unbiased=False)
    scale_D = torch.where(scale_D > 1e-6, scale_D, torch.full_like(scale_D, float("inf")))
    standard_ND = (values_ND - mean_D) / scale_D
    labels_N = labels_N.to(values_ND.device)
    row_weights_N = torch.ones(len(labels_N), device=values_ND.device)
    if class_weights_C is not None:
        row_weights_N = class_weights_C.to(row_weights_N)[labels_N]
    row_weights_N = row_weights_N / row_weights_N.sum()
    rows_N = torch.arange(len(labels_N), device=values_ND.device)
    width = values_ND.shape[1]
    start = np.zeros((width + 1) * num_classes)
    fitted: dict[float, LinearClassifier] = {}
    for decay in sorted(set(weight_decays), reverse=True):

        def loss_and_gradient(flat: Array, decay: float = decay) -> tuple[float, Array]:
            both = torch.from_numpy(flat).to(standard_ND.device, torch.float32).view(width + 1, num_classes)
            weight_DC, bias_C = both[:-1], both[-1]
            log_probs_NC = F.log_softmax(torch.addmm(bias_C, standard_ND, weight_DC), dim=-1)
            loss = -(log_probs_NC[rows_N, labels_N] * row_weights_N).sum() + 0.5 * decay * weight_DC.square().sum()
            error_NC = log_probs_NC.exp_()
            error_NC[rows_N, labels_N] -= 1
            error_NC *= row_weights_N[:, None]
            gradient = torch.cat([standard_ND.T @ error_NC + decay * weight_DC, error_NC.sum(0, keepdim=True)])
            return float(loss), gradient.flatten().double().cpu().numpy()

        found = scipy.optimize.minimize(
            loss_and_gradient,
            start,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": max_iterations, "gtol": tolerance, "ftol": 0.0, "maxcor": 10},
        )
        start = found.x
        both = torch.from_numpy(found.x).to(standard_ND.device, torch.float32).view(width + 1, num_classes)
        largest = float(np.abs(found.jac).max())
        fitted[decay] = LinearClassifier(
            mean_D, scale_D, both[:-1], both[-1], decay, int(found.nit), largest <= 10 * tolerance
        )
    return [fitted[decay] for decay in weight_decays]
