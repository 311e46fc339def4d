"""wav2vec and vq-wav2vec against slow oracles and closed forms; what a saved model keeps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from isogloss.core.errors import ConfigError
from isogloss.core.rng import utterance_generators
from isogloss.core.types import Packed, SpeechBatch
from isogloss.encoders.presets import build_encoder, preset
from isogloss.encoders.wav2vec import Wav2VecEncoder
from isogloss.encoders.wave import WaveConfig
from isogloss.hub.load import load_model
from isogloss.hub.save import save_model
from isogloss.losses.binary_nce import binary_nce
from isogloss.losses.negatives import draw_within_utterances
from isogloss.objectives.base import build_objective
from isogloss.objectives.vq_wav2vec import VqWav2Vec
from isogloss.objectives.wav2vec import Wav2Vec
from isogloss.training.watchdog import Watchdog
from objective_cases import speech

SIZES = [4000, 2100, 700, 300]


def pair(name: str, **tree: object) -> tuple[Wav2Vec | VqWav2Vec, Wav2VecEncoder, SpeechBatch]:
    torch.manual_seed(2)
    config = preset("wav2vec-tiny" if name == "wav2vec" else "vq-wav2vec-tiny")
    changes = {key: tree.pop(key) for key in ("quantizer", "num_codes") if key in tree}
    encoder = build_encoder(config.model_copy(update=changes))
    objective = build_objective({"name": name, **tree}, encoder)
    assert isinstance(encoder, Wav2VecEncoder)
    assert isinstance(objective, (Wav2Vec, VqWav2Vec))
    with torch.no_grad():
        objective.predictor.weight_KDE.mul_(30)
    return objective.train(), encoder.train(), speech(SIZES)


def slow_loss(
    objective: Wav2Vec | VqWav2Vec, context: Packed, targets: Packed, seeds_B: torch.Tensor
) -> tuple[torch.Tensor, int, int]:
    """One utterance, one step, one frame at a time; the guesses from torch's transposed convolution."""
    predictor, weight = objective.predictor, objective.config.negative_weight
    generators = utterance_generators(seeds_B, "negatives")
    drawn = draw_within_utterances(targets.sizes, objective.config.num_negatives, generators, torch.device("cpu"))
    total, pairs, correct = torch.zeros(()), 0, 0
    for c, z, negatives in zip(context.split(), targets.split(), drawn, strict=True):
        if not len(z):
            continue
        guesses = F.conv_transpose2d(
            c.t()[None, :, :, None], predictor.weight_KDE.permute(1, 2, 0)[:, :, None], predictor.bias_E
        )
        for k, lag in enumerate(predictor.lags()):
            for t in range(len(z) - lag):
                h = guesses[0, :, t, k]
                positive = z[t + lag] @ h
                others = torch.stack([z[j] @ h for j in negatives[t + lag].tolist()])
                total = total - F.logsigmoid(positive) - weight * F.logsigmoid(-others).sum()
                pairs += 1
                correct += int(positive > others.max())
    return total, pairs, correct


@pytest.mark.parametrize("tree", [{}, {"offset": 1, "num_steps": 4, "negative_weight": 0.3}])
def test_wav2vec_equals_the_slow_oracle(tree: dict[str, object]) -> None:
    objective, encoder, batch = pair("wav2vec", **tree)
    terms = objective(encoder, batch)
    latents = encoder.frontend(batch.audio).latents
    total, pairs, correct = slow_loss(objective, encoder.context(latents).last, latents, batch.seeds_B)
    assert terms.num_targets == pairs > 0
    torch.testing.assert_close(terms.total, total, rtol=1e-5, atol=0)
    assert terms.metrics["accuracy"] == (correct, pairs)


@pytest.mark.parametrize("quantizer", ["gumbel", "kmeans"])
def test_vq_wav2vec_equals_the_slow_oracle(quantizer: str) -> None:
    objective, encoder, batch = pair("vq_wav2vec", quantizer=quantizer)
    terms = objective(encoder, batch)
    z = encoder.convolve(batch.audio)
    noise = utterance_generators(batch.seeds_B, "codes") if quantizer == "gumbel" else None
    rows = encoder.quantize(z, noise, 2.0)
    quantized = z.with_values(rows.values_ND)
    total, pairs, _ = slow_loss(objective, encoder.context(quantized).last, quantized, batch.seeds_B)
    if quantizer == "kmeans":
        for dense, codes in zip(z.with_values(rows.projected_ND).split(), quantized.split(), strict=True):
            own = sum(max(len(dense) - lag, 0) for lag in objective.predictor.lags())
            total = total + (1.25 * own * F.mse_loss(dense, codes) if len(dense) else 0.0)
    assert terms.num_targets == pairs
    torch.testing.assert_close(terms.total, total, rtol=1e-5, atol=0)


def test_scores_of_zero_cost_eleven_times_ln_2() -> None:
    objective, encoder, batch = pair("wav2vec")
    with torch.no_grad():
        objective.predictor.weight_KDE.zero_()
        objective.predictor.bias_E.zero_()
    terms = objective(encoder, batch)
    assert float(terms.total.detach()) / terms.num_targets == pytest.approx(11 * math.log(2), rel=1e-6)
    assert float(terms.metrics["accuracy"][0]) == 0  # a tie is no success
    loss, _ = binary_nce(torch.zeros(5, 11), 0.5)
    assert float(loss) == pytest.approx(5 * 6 * math.log(2))


def test_the_released_offset_shares_no_sample_with_the_context() -> None:
    objective, encoder, _ = pair("wav2vec")
    assert objective.predictor.lags()[0] == 3
    assert encoder.geometry.receptive_field == 465
    assert objective.predictor.lags()[-1] == 14


def test_codes_learn_only_from_what_draws_them_to_the_latents() -> None:
    objective, encoder, batch = pair("vq_wav2vec", quantizer="kmeans", kmeans_weight=0.0)
    objective(encoder, batch).total.backward()
    assert not encoder.quantizer.codebook.grad.any()
    assert encoder.convs[0].weight.grad.any()


def test_temperature_follows_progress_and_evaluation_draws_nothing() -> None:
    objective, encoder, batch = pair("vq_wav2vec")
    objective.after_step(0.35)
    assert float(objective.gumbel_temperature) == pytest.approx(1.0)
    objective.after_step(0.9)
    assert float(objective.gumbel_temperature) == pytest.approx(0.5)
    objective.eval()
    codes = encoder.codes(batch.audio)
    expected = encoder.quantizer.codebook[0][codes.values_ND].flatten(1)
    seen = {}
    handle = encoder.context_convs[0].register_forward_pre_hook(lambda _, args: seen.update(rows=args[0]))
    objective(encoder, batch)
    handle.remove()
    torch.testing.assert_close(seen["rows"][1 : 1 + codes.sizes[0]], expected[: codes.sizes[0]])


@pytest.mark.parametrize("quantizer", ["gumbel", "kmeans"])
def test_a_saved_model_gives_codes_and_context_without_the_objective(tmp_path: Path, quantizer: str) -> None:
    objective, encoder, batch = pair("vq_wav2vec", quantizer=quantizer)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_model(tmp_path / "model", encoder, objective, {})
    loaded = load_model(tmp_path / "model")
    assert isinstance(loaded.encoder, Wav2VecEncoder)
    encoder.eval()
    assert torch.equal(loaded.encoder.codes(batch.audio).values_ND, encoder.codes(batch.audio).values_ND)
    assert torch.equal(loaded.encoder(batch.audio).last.values_ND, encoder(batch.audio).last.values_ND)
    again = build_objective(loaded.objective_tree or {}, loaded.encoder)
    with torch.no_grad():
        assert again.take_heads(loaded.head_tensors).fresh == []


def test_a_collapsed_codebook_is_named() -> None:
    objective, encoder, batch = pair("vq_wav2vec")
    with torch.no_grad():
        encoder.quantizer.logits.weight.zero_()
        encoder.quantizer.logits.bias.copy_(torch.tensor([100.0] + [0.0] * 39).repeat(2))
    terms = objective(encoder, batch)
    perplexity = float(terms.metrics["code_perplexity"][0])
    assert perplexity == pytest.approx(2.0)
    dog, warnings = Watchdog(objective.watches), []
    for step in range(1000, 1300):
        warnings += dog.observe(step, {"code_perplexity": perplexity, "accuracy": 0.5})
    assert len(warnings) == 1
    assert "collapsed" in warnings[0]


def test_encoders_that_cannot_learn_it_are_refused() -> None:
    wave = build_encoder(WaveConfig(conv_channels=(8,) * 7, width=8, num_layers=1, num_heads=1, position_groups=1))
    with pytest.raises(ConfigError, match="causal"):
        build_objective({"name": "wav2vec"}, wave)
    with pytest.raises(ConfigError, match="quantizer"):
        build_objective({"name": "vq_wav2vec"}, build_encoder(preset("wav2vec-tiny")))
    with pytest.raises(ConfigError, match="does not train a quantizer"):
        build_objective({"name": "wav2vec"}, build_encoder(preset("vq-wav2vec-tiny")))
    with pytest.raises(ConfigError, match="diversity_weight"):
        pair("vq_wav2vec", quantizer="kmeans", diversity_weight=0.1)
    with pytest.raises(ConfigError, match="gumbel_temperature_end"):
        pair("vq_wav2vec", gumbel_temperature_end=3.0)
    with pytest.raises(ConfigError, match="commitment` has no effect with"):
        pair("vq_wav2vec", commitment=0.5)
    with pytest.raises(ConfigError, match="gumbel_temperature_end` has no effect with"):
        pair("vq_wav2vec", quantizer="kmeans", gumbel_temperature_end=1.0)
    with pytest.raises(ConfigError, match="gumbel_temperature_start` has no effect with"):
        pair("vq_wav2vec", quantizer="kmeans", gumbel_temperature_start=3.0)
    pair("vq_wav2vec", quantizer="kmeans", gumbel_temperature_start=0.5)  # a model that goes on starts at the end
