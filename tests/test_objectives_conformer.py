"""w2v-Conformer, w2v-BERT, BEST-RQ: masks, noise, random projections, what each loss reaches, and the signs of collapse."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isogloss.core.errors import ConfigError, TrainingError
from isogloss.core.rng import generator, utterance_generators
from isogloss.core.types import Packed
from isogloss.corruption.bernoulli import fill_with_noise, mask_bernoulli
from isogloss.encoders.base import Encoder
from isogloss.encoders.presets import build_encoder
from isogloss.encoders.spectral import SpectralEncoder
from isogloss.objectives.base import Objective, build_objective
from isogloss.targets.random_projection import RandomProjectionQuantizer
from isogloss.training.watchdog import Watchdog
from objective_cases import BATCH, CONFORMER, WAVE, best_rq, speech, w2v_bert
from test_objectives_contract import quotient


def build(tree: dict[str, Any], config: Any = CONFORMER) -> tuple[Any, Encoder]:
    torch.manual_seed(3)
    encoder = build_encoder(config).train()
    return build_objective(tree, encoder).train(), encoder


def metrics_of(objective: Objective, encoder: Encoder, batch: Any) -> dict[str, float]:
    terms = objective(encoder, batch)
    return {name: quotient(terms, name) for name in terms.metrics if float(terms.metrics[name][1])}


def outside(objective: Objective, metrics: dict[str, float]) -> set[str]:
    """Which watches a state of the run violates, whatever their patience."""
    return {
        watch.metric
        for watch in objective.watches
        if (watch.low is not None and metrics[watch.metric] <= watch.low)
        or (watch.high is not None and metrics[watch.metric] >= watch.high)
    }


def watch_for(dog: Watchdog, metrics: dict[str, float], num_updates: int) -> None:
    for step in range(1, num_updates + 1):
        dog.observe(step, metrics)


@pytest.mark.parametrize(("probability", "span"), [(0.065, 10), (0.01, 40), (0.02, 30)])
def test_bernoulli_masks_cover_what_the_formula_says(probability: float, span: int) -> None:
    """1 − (1 − p)^span: .49, .33 and .45; the first span − 1 frames of each utterance less."""
    mask_N = mask_bernoulli(
        [400] * 1000, [generator("test", i) for i in range(1000)], start_probability=probability, span=span
    )
    rows = mask_N.view(1000, 400)
    assert float(rows[:, span:].float().mean()) == pytest.approx(1 - (1 - probability) ** span, abs=0.02)
    assert float(rows[:, 0].float().mean()) == pytest.approx(probability, abs=0.02)


def test_bernoulli_masks_equal_a_slow_oracle_and_never_cross_a_border() -> None:
    lengths = [50, 0, 3, 120]
    got = mask_bernoulli(lengths, [generator("oracle", i) for i in range(4)], start_probability=0.1, span=7)
    expected = []
    for i, n in enumerate(lengths):
        starts = torch.rand(n, generator=generator("oracle", i)) < 0.1
        expected += [any(bool(starts[s]) for s in range(max(t - 6, 0), t + 1)) for t in range(n)]
    assert got.tolist() == expected


def test_noise_fills_masked_rows_alone_with_its_deviation() -> None:
    values = Packed(torch.full((4000, 5), 9.0), torch.tensor([1500, 2500]))
    mask_N = torch.arange(4000) % 2 == 0
    filled = fill_with_noise(values, mask_N, [generator("noise", i) for i in range(2)], std=0.1).values_ND
    assert torch.equal(filled[~mask_N], values.values_ND[~mask_N])
    assert float(filled[mask_N].std()) == pytest.approx(0.1, rel=0.03)
    assert len(filled[mask_N].unique()) > 9000  # no vector is repeated


def test_random_projection_equals_a_slow_oracle_and_is_frozen() -> None:
    torch.manual_seed(0)
    quantizer = RandomProjectionQuantizer(24, num_codebooks=2, num_codes=50, code_width=6)
    frames_MD = torch.randn(30, 24, requires_grad=True)
    codes_MG = quantizer(frames_MD)
    for g in range(2):
        projected = F.normalize(frames_MD @ quantizer.projections_GDd[g], dim=1)
        distances = torch.cdist(projected, F.normalize(quantizer.codes_GCd[g], dim=1))
        assert torch.equal(codes_MG[:, g], distances.argmin(1))
    assert not list(quantizer.parameters())
    assert not codes_MG.requires_grad
    assert set(quantizer.state_dict()) == {"projections_GDd", "codes_GCd"}
    torch.manual_seed(0)
    again = RandomProjectionQuantizer(24, num_codebooks=2, num_codes=50, code_width=6)
    assert torch.equal(again(frames_MD), codes_MG)
    assert quantizer(frames_MD[:0]).shape == (0, 2)


def test_prediction_reaches_no_quantizer_and_the_contrast_no_layer_above_it() -> None:
    for weights, idle in (
        ({"contrastive_weight": 0.0}, ("quantizer.logits.weight", "quantizer.codebook", "project_targets.weight")),
        ({"prediction_weight": 0.0}, ("predictions.weight",)),
    ):
        objective, encoder = build(w2v_bert.SMALL | weights)
        objective(encoder, speech(BATCH)).total.backward()
        for name in idle:
            assert not objective.get_parameter(name).grad.any(), name
        top = encoder.get_parameter("layers.1.ffn2.up.weight").grad
        assert (top is not None and bool(top.any())) == ("contrastive_weight" in weights)
        assert encoder.get_parameter("layers.0.ffn2.up.weight").grad.any()


def test_the_context_sees_noise_and_the_quantizer_what_was_there() -> None:
    objective, encoder = build(w2v_bert.SMALL)
    batch, seen = speech(BATCH), []
    context = encoder.context

    def spy(latents: Any, is_masked_N: Tensor | None = None) -> Any:
        assert is_masked_N is None
        seen.append(latents.values_ND.detach())
        return context(latents)

    encoder.context = spy  # type: ignore[method-assign]
    objective(encoder, batch)
    latents = encoder.frontend(batch.audio).latents
    is_masked_N = mask_bernoulli(
        latents.sizes, utterance_generators(batch.seeds_B, "masks"), start_probability=0.1, span=4
    )
    assert torch.equal(seen[0][~is_masked_N], latents.values_ND[~is_masked_N])
    assert float(seen[0][is_masked_N].std()) == pytest.approx(0.1, rel=0.05)


def test_best_rq_hides_the_spectrum_and_quantizes_it_unhidden() -> None:
    objective, encoder = build(best_rq.SMALL)
    assert isinstance(encoder, SpectralEncoder)
    batch, embedded, quantized = speech(BATCH), [], []
    embed = encoder.embed
    encoder.embed = lambda spectrum: (embedded.append(spectrum), embed(spectrum))[1]  # type: ignore[method-assign, func-returns-value]
    objective.quantizer.register_forward_pre_hook(lambda module, inputs: quantized.append(inputs[0]))
    terms = objective(encoder, batch)
    spectrum = encoder.spectrum(batch.audio)
    is_changed_R = (embedded[0].values_ND != spectrum.values_ND).any(1)
    num_targets = 0
    for part, n in zip(is_changed_R.split(spectrum.sizes), batch.audio.sizes, strict=True):
        frames = encoder.num_frames(n)
        num_targets += int(part[: 2 * frames].view(frames, 2).all(1).sum())
    assert terms.num_targets == num_targets > 0
    first = encoder.num_frames(batch.audio.sizes[0])
    torch.testing.assert_close(quantized[0][:first].view(-1, 20), spectrum.values_ND[: 2 * first])


def test_best_rq_without_normalisation_is_named_by_the_watchdog() -> None:
    """Negative control. The recording is quiet here and loud there, above a floor, as real ones are."""
    found = {}
    batch = speech([32000] * 2)
    batch.audio.values_ND *= 0.01
    for normalization in ("utterance", "none"):
        config = CONFORMER.model_copy(update={"num_bins": 80, "normalization": normalization})
        objective, encoder = build({"name": "best_rq", "start_probability": 0.04, "mask_span": 16}, config)
        metrics = metrics_of(objective, encoder, batch)
        found[normalization] = metrics["code_entropy_share"]
        dog = Watchdog(
            [replace(watch, patience=2) for watch in objective.watches if watch.metric == "code_entropy_share"]
        )
        # A warning and no stop: a sound corpus of quiet field recordings has as few codes.
        warnings = [warning for step in range(1, 6) for warning in dog.observe(step, metrics)]
        if normalization == "none":
            assert len(warnings) == 1
            assert re.search(r"few distinct codes.*normalization", warnings[0])
        else:
            assert not outside(objective, metrics) - {"predicted_ratio"}
            assert not warnings
    assert found["utterance"] > found["none"] + 0.2


def test_a_collapsed_codebook_of_w2v_bert_is_named() -> None:
    """What a run without the contrastive term ends in: one code, which is predicted without fail."""
    objective, encoder = build(w2v_bert.SMALL | {"contrastive_weight": 0.0})
    fresh = metrics_of(objective, encoder, speech(BATCH))
    assert not outside(objective, fresh) - {"accuracy"}
    largest = min(objective(encoder, speech(BATCH)).num_targets, objective.config.num_codes)
    assert fresh["code_entropy_share"] == pytest.approx(
        math.log(fresh["code_perplexity"]) / math.log(largest), abs=1e-5
    )
    with torch.no_grad():
        objective.quantizer.logits.bias[7] = 1e4
        objective.predictions.bias[7] = 1e4
    collapsed = metrics_of(objective, encoder, speech(BATCH))
    assert collapsed["prediction_accuracy"] == 1.0
    assert outside(objective, collapsed) == {"majority_share", "code_entropy_share", "prediction_loss", "accuracy"}
    dog = Watchdog([replace(watch, patience=1, grace=0) for watch in objective.watches])
    with pytest.raises(TrainingError, match=r"the codebook has collapsed.*contrastive_weight"):
        watch_for(dog, collapsed, 3)


def test_targets_of_w2v_conformer_that_point_one_way_are_named() -> None:
    objective, encoder = build({"name": "w2v_conformer", "final_width": 32, "start_probability": 0.1, "mask_span": 4})
    assert "target_spread" not in outside(objective, metrics_of(objective, encoder, speech(BATCH)))
    with torch.no_grad():
        objective.project_targets.weight.zero_()
    assert "target_spread" in outside(objective, metrics_of(objective, encoder, speech(BATCH)))


def test_best_rq_wants_a_spectrum() -> None:
    with pytest.raises(ConfigError, match="spectrum"):
        build(best_rq.SMALL, WAVE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrastive_layer": 2}, "below the encoder's 2 layers"),
        ({"gumbel_temperature_end": 3.0}, "at most gumbel_temperature_start"),
        ({"num_codebooks": 3}, "multiple of num_codebooks"),
        ({"fill": "learned", "noise_std": 0.2}, 'noise_std belongs to fill = "noise"'),
    ],
)
def test_faults_of_w2v_bert_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(w2v_bert.SMALL | changes)
