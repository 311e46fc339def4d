"""The linear phone probe on a learned mixture of all layers (SUPERB's featuriser), beside the probe of the best layer.

A mixture may use what several layers know; its weights say where it looked, the states being brought to one size first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isogloss.core.errors import ConfigError
from isogloss.evaluation.features import FeatureSource
from isogloss.evaluation.labels import Inventory, phone_sequence
from isogloss.evaluation.layer_weights import LayerMixture, fit_layer_mixture
from isogloss.evaluation.probes import PhoneProbe, ProbeSplits, SearchBudget, gather_frames, score_probe

ALL_LAYERS = -1  # what `PhoneProbe.layer` says of a mixture


@dataclass(frozen=True)
class WeightedProbe:
    """The result, and the share of each layer in the mixture."""

    probe: PhoneProbe
    weights: dict[int, float]

    @property
    def told(self) -> str:
        """Return the weights for people, the layers in their order."""
        return ", ".join(f"{layer}: {share:.2f}" for layer, share in self.weights.items())


def probe_weighted(source: FeatureSource, splits: ProbeSplits, *, budget: SearchBudget | None = None) -> WeightedProbe:
    """Fit weights of layers and a linear classifier together; the weight decay is chosen on the development split.

    Raises `ConfigError` for a source with one layer, or with layers of several widths.
    """
    budget = budget or SearchBudget()
    layers = tuple(sorted(source.layers))  # `fit_layer_mixture` has this order too, however the user named them
    if len(layers) < 2:
        raise ConfigError(f"{source.name} has one layer only, which leaves nothing to weigh; take more with `--layer`")
    side_by_side = _SideBySide(source, layers)
    inventory = Inventory.of(phone_sequence(cut, keep_silence=budget.keep_silence) for cut in splits.train)
    parts = [
        gather_frames(side_by_side, cuts, ALL_LAYERS, inventory, most, budget.keep_silence, budget.seed)
        for cuts, most in ((splits.train, budget.max_train_frames), (splits.dev, budget.max_dev_frames))
    ]
    (train_NE, train_N), (dev_NE, dev_N) = parts
    train = _by_layer(train_NE, layers)
    fitted = []
    for decay in budget.weight_decays:
        model = _Model(fit_layer_mixture(train, train_N, len(inventory), weight_decay=decay, seed=budget.seed), decay)
        fitted.append((float((model.predict(dev_NE) == dev_N.numpy()).mean()), model))
    on_dev, best = max(fitted, key=lambda pair: pair[0])
    probe = score_probe(side_by_side, splits, ALL_LAYERS, inventory, best, on_dev, len(train_N), budget)
    return WeightedProbe(probe, dict(zip(layers, map(float, best.mixture.weights_L), strict=True)))


class _SideBySide:
    """A source whose one layer is some layers of another side by side, S×(L·D), so that frames are gathered as of any layer."""

    def __init__(self, source: FeatureSource, mixed: tuple[int, ...]) -> None:
        self._source, self._mixed = source, mixed
        self.name = f"{source.name}, weighted layers"
        self.frame_rate_hz, self.first_center_seconds = source.frame_rate_hz, source.first_center_seconds
        self.layers = (ALL_LAYERS,)

    def features(self, cut: Any) -> Mapping[int, npt.NDArray[Any]]:
        states = self._source.features(cut)
        parts = [np.asarray(states[layer]) for layer in self._mixed]
        if len({part.shape for part in parts}) > 1:
            raise ConfigError(
                f"the layers of {self._source.name} differ in width or rate, so they cannot be mixed; choose some that do not with "
                "`--layer`"
            )
        return {ALL_LAYERS: np.concatenate(parts, axis=1)}


@dataclass(frozen=True)
class _Model:
    mixture: LayerMixture
    weight_decay: float
    is_converged: bool = True  # a fixed number of passes

    def predict(self, values_ND: torch.Tensor) -> npt.NDArray[Any]:
        return self.mixture.predict(_by_layer(values_ND, self.mixture.layers))


def _by_layer(values_NE: torch.Tensor, layers: tuple[int, ...]) -> dict[int, torch.Tensor]:
    return dict(zip(layers, values_NE.chunk(len(layers), dim=1), strict=True))
