"""Learned layer weights (SUPERB's featuriser): one linear classifier over Σ_l softmax(w)_l · H_l.

With `normalize` every layer is brought to zero mean and unit variance per frame first; without it a layer of large values
gets a large share whatever it knows, so weights are not a measure of importance then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from isogloss.core.rng import generator


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
        states_LND = _stack(values, self.layers, self.normalize)
        mixed_ND = torch.einsum("l,lnd->nd", torch.from_numpy(self.weights_L).to(states_LND), states_LND)
        scores_NC = (mixed_ND - self.mean_D) / self.scale_D @ self.weight_DC + self.bias_C
        result: npt.NDArray[Any] = scores_NC.argmax(1).cpu().numpy()
        return result


def fit_layer_mixture(
    values: Mapping[int, Tensor],
    labels_N: Tensor,
    num_classes: int,
    *,
    normalize: bool = True,
    epochs: int = 20,
    batch_size: int = 1024,
    learning_rate: float = 5e-3,
    weight_decay: float = 1e-3,
    seed: int = 0,
) -> LayerMixture:
    """Fit weights (from equal ones) and classifier together by Adam on rows N×D per layer."""
    layers = tuple(sorted(values))
    states_LND = _stack(values, layers, normalize)
    device = states_LND.device
    labels_N = labels_N.to(device)
    width = states_LND.shape[2]
    # Standardised as the equal mixture is, so that the step size suits every encoder.
    equal_ND = states_LND.mean(0)
    mean_D, scale_D = equal_ND.mean(0), equal_ND.std(0) + 1e-5
    logits_L = torch.zeros(len(layers), device=device, requires_grad=True)
    weight_DC = torch.zeros(width, num_classes, device=device, requires_grad=True)
    bias_C = torch.zeros(num_classes, device=device, requires_grad=True)
    # The few layer weights see averaged gradients of all rows and may move faster than the classifier.
    groups: list[dict[str, Any]] = [
        {"params": [logits_L], "lr": 10 * learning_rate},
        {"params": [weight_DC, bias_C]},
    ]
    optimizer = torch.optim.Adam(groups, lr=learning_rate)
    for epoch in range(epochs):
        order_N = torch.randperm(len(labels_N), generator=generator(seed, "layer mixture", epoch)).to(device)
        for rows in order_N.split(batch_size):
            mixed_ND = torch.einsum("l,lnd->nd", logits_L.softmax(0), states_LND[:, rows])
            scores_NC = (mixed_ND - mean_D) / scale_D @ weight_DC + bias_C
            loss = F.cross_entropy(scores_NC, labels_N[rows]) + 0.5 * weight_decay * weight_DC.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weights_L = logits_L.detach().softmax(0).cpu().numpy().astype(np.float64)
    return LayerMixture(layers, weights_L, mean_D, scale_D, weight_DC.detach(), bias_C.detach(), normalize)


def _stack(values: Mapping[int, Tensor], layers: tuple[int, ...], normalize: bool) -> Tensor:
    states_LND = torch.stack([values[layer].float() for layer in layers])
    return F.layer_norm(states_LND, states_LND.shape[2:]) if normalize else states_LND
