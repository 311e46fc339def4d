"""Probes recover what was planted, equal independent solvers, and never look at what they must not."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from lhotse import MonoCut, SupervisionSegment
from scipy.special import log_softmax

from isogloss.core.errors import ConfigError, DataError
from isogloss.evaluation.labels import (
    UNKNOWN,
    UNLABELLED,
    Inventory,
    alignment_kind,
    frame_labels,
    ipa_segments,
    phone_sequence,
)
from isogloss.evaluation.layer_weights import fit_layer_mixture, stack_layers
from isogloss.evaluation.linear import fit_path
from isogloss.evaluation.probe_records import weighted_records
from isogloss.evaluation.probes import ProbeSplits, SearchBudget, best_on_dev, gather_frames, probe_phones, speaker_of
from isogloss.evaluation.spectral import SpectralSource
from isogloss.evaluation.weighted_probe import probe_weighted
from planted import PHONES, PlantedSource, make_cut, planted_splits, random_cuts


@pytest.fixture(scope="module")
def splits() -> ProbeSplits:
    return planted_splits()


def slow_logistic(x: np.ndarray, y: np.ndarray, num_classes: int, decay: float, weights: np.ndarray) -> np.ndarray:
    """Newton's method on the same objective, float64, with the full Hessian: shares no code with the probe."""
    x = (x - x.mean(0)) / x.std(0)
    n, d = x.shape
    design = np.hstack([x, np.ones((n, 1))])
    penalty = np.diag(np.r_[np.full(d, decay), 1e-9])
    weight = weights[y] / weights[y].sum()
    theta = np.zeros((d + 1, num_classes))
    for _ in range(30):
        p = np.exp(log_softmax(design @ theta, axis=1))
        gradient = design.T @ (weight[:, None] * (p - np.eye(num_classes)[y])) + penalty @ theta
        hessian = np.zeros(((d + 1) * num_classes,) * 2)
        for a in range(num_classes):
            for b in range(num_classes):
                block = (design * (weight * p[:, a] * ((a == b) - p[:, b]))[:, None]).T @ design
                block += penalty * (a == b)
                hessian[a * (d + 1) : (a + 1) * (d + 1), b * (d + 1) : (b + 1) * (d + 1)] = block
        step = np.linalg.lstsq(hessian, gradient.T.ravel(), rcond=None)[0]
        theta -= step.reshape(num_classes, d + 1).T
    return log_softmax(design @ theta, axis=1)


@pytest.mark.parametrize("weights", [None, (1.0, 5.0, 0.2)])
def test_logistic_regression_equals_newtons_method(weights: tuple[float, ...] | None) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=300)
    x = rng.normal(size=(300, 5)) * [1, 10, 0.1, 1, 1] + np.eye(3, 5)[y] * 0.8 + 4
    class_weights = None if weights is None else torch.tensor(weights)
    models = fit_path(
        torch.from_numpy(x),
        torch.from_numpy(y),
        3,
        (1e-2, 1e-1),
        class_weights_C=class_weights,
        max_iterations=500,
        tolerance=1e-5,
    )
    for model, decay in zip(models, (1e-2, 1e-1), strict=True):
        assert model.weight_decay == decay
        assert model.is_converged
        # A gradient of 1e-5 over a curvature of 1e-2 moves a weight by 1e-3, a score by a few times that.
        expected = slow_logistic(x, y, 3, decay, np.array(weights or (1.0, 1.0, 1.0)))
        np.testing.assert_allclose(model.log_probs(torch.from_numpy(x)).numpy(), expected, atol=1e-2)


def test_constant_features_do_not_matter() -> None:
    x = torch.cat([torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.full((50, 1), 7.0)], 1)
    (model,) = fit_path(x, (x[:, 0] > 0).long(), 2, (1e-3,))
    moved = x.clone()
    moved[:, 2] = -100.0
    torch.testing.assert_close(model.log_probs(moved), model.log_probs(x))


def test_phone_probe_finds_the_planted_layer(splits: ProbeSplits) -> None:
    results = probe_phones(PlantedSource(), splits)
    best = best_on_dev(results)
    assert best.layer == 1
    assert best.accuracy > 0.9
    assert results[0].accuracy < 0.45
    assert best.correct_B.sum() / best.total_B.sum() == pytest.approx(best.accuracy)
    assert best.labels == "gold"
    assert None not in best.speakers
    assert len(best.ids) == len(best.speakers) == len(splits.test)
    assert set(best.recalls) == set(PHONES)
    assert best.macro_accuracy == pytest.approx(np.mean(list(best.recalls.values())))


def test_probe_never_reads_test_labels_for_its_choices(splits: ProbeSplits) -> None:
    shuffled = [
        make_cut(
            c.id,
            [("t" if i.symbol != "SIL" else "SIL", i.start, i.duration) for i in c.supervisions[0].alignment["phone"]],
        )
        for c in splits.test
    ]

    class Fixed(PlantedSource):
        def features(self, cut: Any) -> Mapping[int, np.ndarray]:
            return super().features(next((c for c in splits.test if c.id == cut.id), cut))

    honest = probe_phones(Fixed(), splits, layers=[1])[0]
    other = probe_phones(Fixed(), ProbeSplits(splits.train, splits.dev, shuffled), layers=[1])[0]
    assert (honest.dev_accuracy, honest.weight_decay) == (other.dev_accuracy, other.weight_decay)
    assert other.accuracy < 0.5


def test_frame_cap_is_a_uniform_sample(splits: ProbeSplits) -> None:
    inventory = Inventory(PHONES)
    x, y = gather_frames(PlantedSource(), splits.train, 1, inventory, 10**6, False, 0)
    small_x, small_y = gather_frames(PlantedSource(), splits.train, 1, inventory, 500, False, 0)
    noise_x, noise_y = gather_frames(PlantedSource(), splits.train, 0, inventory, 500, False, 0)
    assert len(x) == len(y) > 1000
    assert len(small_x) == len(small_y) == len(noise_x) == 500
    assert torch.equal(small_y, noise_y)  # layers see the same frames
    shares = torch.bincount(y, minlength=4) / len(y) - torch.bincount(small_y, minlength=4) / 500
    assert shares.abs().max() < 0.08
    silent_x, _ = gather_frames(PlantedSource(), splits.train, 1, Inventory(("SIL", *PHONES)), 10**6, True, 0)
    assert len(silent_x) == len(x) + 30 * 10


def test_frame_labels_are_those_of_the_centre() -> None:
    cut = make_cut("c", [("a", 0.0, 0.1), ("SIL", 0.1, 0.1), ("q", 0.2, 0.1)])
    centers = np.array([0.0, 0.0999, 0.1, 0.25, 0.3])
    inventory = Inventory(("a",))
    assert frame_labels(cut, centers, inventory).tolist() == [0, 0, UNLABELLED, UNKNOWN, UNLABELLED]


def test_unknown_phones_are_errors(splits: ProbeSplits) -> None:
    strange = [make_cut("strange", [("ʘ", 0.0, 0.5), ("a", 0.5, 0.5)], kind="synthetic")]
    result = probe_phones(PlantedSource(), ProbeSplits(splits.train, splits.dev, strange), layers=[1])[0]
    assert result.total_B.tolist() == [100]
    assert result.accuracy <= 0.5
    assert result.labels == "synthetic"


def test_alignment_kind_is_that_of_the_weakest() -> None:
    gold, silver = make_cut("g", [("a", 0, 1)]), make_cut("s", [("a", 0, 1)], kind="silver")
    synthetic, untold = make_cut("y", [("a", 0, 1)], kind="synthetic"), make_cut("u", [("a", 0, 1)])
    untold.custom = None
    assert alignment_kind([gold]) == "gold"
    assert alignment_kind([gold, synthetic]) == "synthetic"
    assert alignment_kind([gold, silver]) == alignment_kind([gold, untold]) == "silver"


def test_splits_must_be_disjoint_and_filled(splits: ProbeSplits) -> None:
    with pytest.raises(DataError, match="in two splits"):
        ProbeSplits(splits.train, splits.dev, splits.dev)
    with pytest.raises(DataError, match="dev split is empty"):
        ProbeSplits(splits.train, [], splits.test)


def test_unaligned_corpora_are_refused(splits: ProbeSplits) -> None:
    bare = MonoCut("bare", 0.0, 1.0, 0, [SupervisionSegment("bare", "bare", 0, 1)])
    with pytest.raises(DataError, match="neither a phone alignment nor a text"):
        phone_sequence(bare)
    texts = [MonoCut("t", 0.0, 1.0, 0, [SupervisionSegment("t", "t", 0, 1, text="at", alignment={"phone": []})])]
    with pytest.raises(DataError, match="no frame|none of the 1 cuts"):
        probe_phones(PlantedSource(), ProbeSplits(texts, splits.dev, splits.test))


def test_ipa_segments() -> None:
    assert ipa_segments("ʔu˧˩t͡ɕʰi˧˩bo˧˩ɹa˧˩") == ["ʔ", "u", "t͡ɕʰ", "i", "b", "o", "ɹ", "a"]
    assert ipa_segments("ˈkaːt ɔ̃, n̩‿ⁿd") == ["k", "aː", "t", "ɔ̃", "n̩", "ⁿd"]


def test_learned_layer_weights_find_the_planted_layer() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (3000,), generator=rng)
    values = {layer: torch.randn(3000, 16, generator=rng) for layer in range(4)}
    values[2] = values[2] * 0.5 + torch.nn.functional.one_hot(labels, 16).float() * 3
    values[3] = values[3] * 50  # large and useless
    mixture = fit_layer_mixture(stack_layers(values.values(), 4), tuple(values), labels, 4)
    assert mixture.weights_L.sum() == pytest.approx(1.0)
    assert mixture.weights_L.argmax() == 2
    assert mixture.weights_L[2] > 0.7
    assert (mixture.predict(values) == labels.numpy()).mean() > 0.95


def test_a_weighted_probe_is_the_one_of_the_layer_that_it_chose(splits: ProbeSplits) -> None:
    """Layer 1 of the planted source has the phones: the mixture takes it, and is about as good on the same test frames."""
    source = PlantedSource()
    best = best_on_dev(probe_phones(source, splits))
    found = probe_weighted(source, splits)
    assert sum(found.weights.values()) == pytest.approx(1.0)
    assert max(found.weights, key=found.weights.__getitem__) == best.layer
    assert list(found.weights) == list(source.layers)
    assert found.probe.accuracy > best.accuracy - 0.05
    assert found.probe.source == f"{source.name}, weighted layers"
    assert np.array_equal(found.probe.total_B, best.total_B)
    assert f"{best.layer}: 0." in found.told
    with pytest.raises(ConfigError, match="one layer only"):
        probe_weighted(SpectralSource("mfcc"), splits)


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 0, 2), (1, 2, 0), (2, 1), (1, 0)])
def test_a_weighted_probe_does_not_depend_on_the_order_of_the_layers(
    splits: ProbeSplits, order: tuple[int, ...]
) -> None:
    """The planted layer is first, last or in the middle; the same layers in another order are the same probe."""
    source, ordered = PlantedSource(), PlantedSource()
    source.layers, ordered.layers = order, tuple(sorted(order))
    found, expected = probe_weighted(source, splits), probe_weighted(ordered, splits)
    assert max(found.weights, key=found.weights.__getitem__) == 1
    assert found.weights == expected.weights
    assert found.told == expected.told
    assert found.probe.accuracy == expected.probe.accuracy > 0.9


class Wide(PlantedSource):
    """The planted source eight times over, whose layers of noise may be of another width or rate."""

    layers = tuple(range(8))

    def __init__(self, odd: Callable[[np.ndarray], np.ndarray] = lambda values_SD: values_SD) -> None:
        super().__init__(width=64)
        self.odd = odd

    def features(self, cut: Any) -> Mapping[int, np.ndarray]:
        planted = super().features(cut)[1]
        return {layer: self.odd(planted) if layer == 7 else planted for layer in self.layers}


def test_a_weighted_probe_keeps_the_frames_of_one_layer_at_a_time(splits: ProbeSplits) -> None:
    """All labelled frames of all layers would be eight times those of one, which were kept before the sample was drawn."""
    budget = SearchBudget(weight_decays=(1e-3,), max_train_frames=50, max_dev_frames=50)

    def peak(probe: Callable[[], object]) -> int:
        tracemalloc.start()
        probe()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    probe_weighted(PlantedSource(), splits, budget=budget)  # what is imported for the first time is not counted
    one = peak(lambda: probe_phones(Wide(), splits, layers=[1], budget=budget))
    assert peak(lambda: probe_weighted(Wide(), splits, budget=budget)) < 2 * one


@pytest.mark.parametrize("odd", [lambda values_SD: values_SD[:, :5], lambda values_SD: values_SD[::2]])
def test_layers_of_several_widths_or_rates_are_not_mixed(
    splits: ProbeSplits, odd: Callable[[np.ndarray], np.ndarray]
) -> None:
    with pytest.raises(ConfigError, match="differ in width or rate"):
        probe_weighted(Wide(odd), splits)


def test_a_weighted_record_says_how_its_mixture_was_fitted(splits: ProbeSplits) -> None:
    budget = SearchBudget(weight_decays=(1e-3,), max_train_frames=200)
    found = probe_weighted(PlantedSource(), splits, budget=budget)
    assert not found.probe.is_converged
    (record,) = weighted_records(found, dataset="planted")
    said = record.meta["budget"]
    assert "max_iterations" not in said  # that is of the solver for one layer
    assert {key: said[key] for key in ("epochs", "max_train_frames")} == {"epochs": 20, "max_train_frames": 200}


def test_recordings_are_not_called_speakers(splits: ProbeSplits) -> None:
    for cut in (untold := random_cuts(4, 9, "untold")):
        cut.supervisions[0].speaker = None
    result = probe_phones(PlantedSource(), ProbeSplits(splits.train, splits.dev, untold), layers=[1])[0]
    assert result.speakers == [None] * 4
    assert len({speaker_of(cut) for cut in untold}) == 4
