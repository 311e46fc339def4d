"""Learned layer weights (SUPERB's featuriser): one linear classifier over Σ_l softmax(w)_l · H_l.

With `normalize` every layer is brought to zero mean and unit variance per frame first; without it a layer of large values
gets a large share whatever it knows, so weights are not a measure of importance then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from isogloss.core.rng import generator


@dataclass(frozen=True)
class MixtureBudget:
    """How long a mixture is fitted: a fixed number of passes, without a test of convergence."""

    epochs: int = 20
    batch_size: int = 1024
    learning_rate: float = 5e-3


@dataclass(frozen=True)
class LayerMixture:
    """The learned weights (a distribution over `layers`) and the linear classifier on the mixture."""

    layers: tuple[int, ...]
    weights_L: npt.NDArray[Any]
    mean_D: Tensor
    scale_D: Tensor
    weight_DC: Tensor
    bias_C: Tensor
    normalize: bool

    def predict(self, values: Mapping[int, Tensor]) -> npt.NDArray[Any]:
        """Return the most probable class of each row, given N×D values per layer."""
        mixed_ND = torch.zeros(())
        for layer, share in zip(self.layers, self.weights_L.tolist(), strict=True):  # one at a time: all may not fit
            mixed_ND = mixed_ND + share * _sized(values[layer], self.normalize)
        scores_NC = (mixed_ND - self.mean_D) / self.scale_D @ self.weight_DC + self.bias_C
        result: npt.NDArray[Any] = scores_NC.argmax(1).cpu().numpy()
        return result


def stack_layers(values: Iterable[Tensor], num_layers: int, *, normalize: bool = True) -> Tensor:
    """Return layers of one shape N×D as a float32 tensor L×N×D, each brought to one size as it comes and then let go."""
    states_LND = torch.empty(0)
    for row, values_ND in enumerate(values):
        if row == 0:
            states_LND = torch.empty(num_layers, *values_ND.shape, device=values_ND.device)
        states_LND[row] = _sized(values_ND, normalize)
    return states_LND


def fit_layer_mixture(
    states_LND: Tensor,
    layers: Sequence[int],
    labels_N: Tensor,
    num_classes: int,
    *,
    normalize: bool = True,
    budget: MixtureBudget | None = None,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> LayerMixture:
    """Fit weights (from equal ones) and classifier together by Adam on rows of `stack_layers`, made with the same `normalize`."""
    budget = budget or MixtureBudget()
    device = states_LND.device
    labels_N = labels_N.to(device)
    width = states_LND.shape[2]
    # Standardised as the equal mixture is, so that the step size suits every encoder.
    equal_ND = states_LND.mean(0)
    mean_D, scale_D = equal_ND.mean(0), equal_ND.std(0) + 1e-5
    logits_L = torch.zeros(len(states_LND), device=device, requires_grad=True)
    weight_DC = torch.zeros(width, num_classes, device=device, requires_grad=True)
    bias_C = torch.zeros(num_classes, device=device, requires_grad=True)
    # The few layer weights see averaged gradients of all rows and may move faster than the classifier.
    groups: list[dict[str, Any]] = [
        {"params": [logits_L], "lr": 10 * budget.learning_rate},
        {"params": [weight_DC, bias_C]},
    ]
    optimizer = torch.optim.Adam(groups, lr=budget.learning_rate)
    for epoch in range(budget.epochs):
        order_N = torch.randperm(len(labels_N), generator=generator(seed, "layer mixture", epoch)).to(device)
        for rows in order_N.split(budget.batch_size):
            mixed_ND = torch.einsum("l,lnd->nd", logits_L.softmax(0), states_LND[:, rows])
            scores_NC = (mixed_ND - mean_D) / scale_D @ weight_DC + bias_C
            loss = F.cross_entropy(scores_NC, labels_N[rows]) + 0.5 * weight_decay * weight_DC.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weights_L = logits_L.detach().softmax(0).cpu().numpy().astype(np.float64)
    return LayerMixture(tuple(layers), weights_L, mean_D, scale_D, weight_DC.detach(), bias_C.detach(), normalize)


def _sized(values_ND: Tensor, normalize: bool) -> Tensor:
    return F.layer_norm(values_ND.float(), values_ND.shape[1:]) if normalize else values_ND.float()
