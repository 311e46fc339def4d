"""The linear phone probe on a learned mixture of all layers (SUPERB's featuriser), beside the probe of the best layer.

A mixture may use what several layers know; its weights say where it looked, the states being brought to one size first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isogloss.core.errors import ConfigError
from isogloss.evaluation.features import FeatureSource
from isogloss.evaluation.labels import Inventory, phone_sequence
from isogloss.evaluation.layer_weights import LayerMixture, MixtureBudget, fit_layer_mixture, stack_layers
from isogloss.evaluation.probes import PhoneProbe, ProbeSplits, SearchBudget, gather_frames, score_probe

ALL_LAYERS = -1  # what `PhoneProbe.layer` says of a mixture


@dataclass(frozen=True)
class WeightedProbe:
    """The result, the share of each layer in the mixture, and how it was fitted.

    Of the result's search budget `max_iterations` was not used, and `is_converged` is false as that is not tested.
    """

    probe: PhoneProbe
    weights: dict[int, float]
    fitting: MixtureBudget

    @property
    def told(self) -> str:
        """Return the weights for people, the layers in their order."""
        return ", ".join(f"{layer}: {share:.2f}" for layer, share in self.weights.items())


def probe_weighted(source: FeatureSource, splits: ProbeSplits, *, budget: SearchBudget | None = None) -> WeightedProbe:
    """Fit weights of layers and a linear classifier together; the weight decay is chosen on the development split.

    Raises `ConfigError` for a source with one layer, or with layers of several widths.
    """
    budget = budget or SearchBudget()
    layers = tuple(sorted(source.layers))  # however the user named them, this is the order everywhere
    if len(layers) < 2:
        raise ConfigError(f"{source.name} has one layer only, which leaves nothing to weigh; take more with `--layer`")
    inventory = Inventory.of(phone_sequence(cut, keep_silence=budget.keep_silence) for cut in splits.train)
    train, dev = (
        _Frames(source, layers, cuts, inventory, most, budget)
        for cuts, most in ((splits.train, budget.max_train_frames), (splits.dev, budget.max_dev_frames))
    )
    train_LND = stack_layers(train, len(layers))
    dev_values = dict(zip(layers, dev, strict=True))
    fitting = MixtureBudget()
    fitted = []
    for decay in budget.weight_decays:
        mixture = fit_layer_mixture(
            train_LND, layers, train.labels_N, len(inventory), budget=fitting, weight_decay=decay, seed=budget.seed
        )
        on_dev = float((mixture.predict(dev_values) == dev.labels_N.numpy()).mean())
        fitted.append((on_dev, _Model(mixture, decay)))
    on_dev, best = max(fitted, key=lambda pair: pair[0])
    side_by_side = _SideBySide(source, layers)
    probe = score_probe(side_by_side, splits, ALL_LAYERS, inventory, best, on_dev, len(train.labels_N), budget)
    return WeightedProbe(probe, dict(zip(layers, map(float, best.mixture.weights_L), strict=True)), fitting)


class _Frames:
    """The sampled frames of one layer after another, the same of every layer: all labelled frames of all layers may not fit."""

    def __init__(
        self,
        source: FeatureSource,
        layers: tuple[int, ...],
        cuts: Sequence[Any],
        inventory: Inventory,
        most: int,
        budget: SearchBudget,
    ) -> None:
        self._source, self._layers, self._cuts = source, layers, cuts
        self._inventory, self._most, self._budget = inventory, most, budget
        self.labels_N = torch.empty(0, dtype=torch.int64)  # known once the frames were taken

    def __iter__(self) -> Iterator[torch.Tensor]:
        shape = None
        for layer in self._layers:
            values_ND, self.labels_N = gather_frames(
                self._source,
                self._cuts,
                layer,
                self._inventory,
                self._most,
                self._budget.keep_silence,
                self._budget.seed,
            )
            if values_ND.shape != (shape or values_ND.shape):
                raise _unlike(self._source)
            shape = values_ND.shape
            yield values_ND


class _SideBySide:
    """A source whose one layer is some layers of another side by side, S×(L·D), so that it is tested as any layer is."""

    def __init__(self, source: FeatureSource, mixed: tuple[int, ...]) -> None:
        self._source, self._mixed = source, mixed
        self.name = f"{source.name}, weighted layers"
        self.frame_rate_hz, self.first_center_seconds = source.frame_rate_hz, source.first_center_seconds
        self.layers = (ALL_LAYERS,)

    def features(self, cut: Any) -> Mapping[int, npt.NDArray[Any]]:
        states = self._source.features(cut)
        parts = [np.asarray(states[layer]) for layer in self._mixed]
        if len({part.shape for part in parts}) > 1:
            raise _unlike(self._source)
        return {ALL_LAYERS: np.concatenate(parts, axis=1)}


@dataclass(frozen=True)
class _Model:
    mixture: LayerMixture
    weight_decay: float
    is_converged: bool = False  # a fixed number of passes, whose end nobody looks at

    def predict(self, values_ND: torch.Tensor) -> npt.NDArray[Any]:
        return self.mixture.predict(_by_layer(values_ND, self.mixture.layers))


def _by_layer(values_NE: torch.Tensor, layers: tuple[int, ...]) -> dict[int, torch.Tensor]:
    return dict(zip(layers, values_NE.chunk(len(layers), dim=1), strict=True))


def _unlike(source: FeatureSource) -> ConfigError:
    return ConfigError(
        f"the layers of {source.name} differ in width or rate, so they cannot be mixed; choose some that do not with `--layer`"
    )
