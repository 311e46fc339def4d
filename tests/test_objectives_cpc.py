"""CPC: its predictors against a slow oracle, causality, negatives, and published counts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isogloss.core.errors import ConfigError
from isogloss.core.types import Packed
from isogloss.encoders.base import Encoder
from isogloss.encoders.cpc import CpcConfig
from isogloss.encoders.presets import build_encoder, preset
from isogloss.objectives._predictors import TransformerPredictors
from isogloss.objectives.base import Objective, build_objective
from objective_cases import BATCH, CPC, WAVE, speech
from objective_cases.cpc import SMALL
from test_objectives_contract import quotient


def build(**changes: Any) -> tuple[Objective, Encoder]:
    torch.manual_seed(3)
    encoder = build_encoder(CPC).train()
    return build_objective(SMALL | changes, encoder).train(), encoder


def slow_predictor(module: TransformerPredictors, k: int, values_SD: Tensor) -> Tensor:
    """One step's transformer layer on one utterance, a query and a head at a time (arXiv 2002.02848's released layer)."""
    size, width = values_SD.shape
    d = width // module.num_heads
    q, key, value = (values_SD @ module.qkv_KDE[k]).split(width, dim=1)
    mixed = torch.zeros(size, width)
    for head in range(module.num_heads):
        part = slice(head * d, (head + 1) * d)
        for i in range(size):
            seen = range(max(0, i - module.reach + 1), i + 1)
            scores = torch.stack(
                [q[i, part] @ (key[j, part] + module.distance_keys_KRd[k, i - j]) / math.sqrt(d) for j in seen]
            )
            mixed[i, part] = sum(w * value[j, part] for w, j in zip(scores.softmax(0), seen, strict=True))
    hidden = F.layer_norm(
        values_SD + mixed @ module.out_KDE[k],
        (width,),
        module.attention_gain_K1D[k, 0],
        module.attention_bias_K1D[k, 0],
    )
    inner = F.relu(hidden @ module.up_KDE[k] + module.up_bias_K1E[k])
    mapped = inner @ module.down_KDE[k] + module.down_bias_K1E[k]
    return F.layer_norm(hidden + mapped, (width,), module.ffn_gain_K1D[k, 0], module.ffn_bias_K1D[k, 0])


@pytest.mark.parametrize("sizes", [[5], [4, 0, 9, 1, 13], [8, 8], [23]])
def test_predictors_equal_a_loop_over_queries(sizes: list[int]) -> None:
    """Shorter than the reach, exactly as long, and longer; utterances that begin anywhere in a block."""
    torch.manual_seed(0)
    module = TransformerPredictors(3, 8, num_heads=2, ffn_width=12, reach=8, dropout=0.0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    values = [torch.randn(n, 8) for n in sizes]
    with torch.no_grad():
        guesses = module(Packed.from_list(values)).split(sizes, dim=1)
        for utterance, guess in zip(values, guesses, strict=True):
            for k in range(3):
                torch.testing.assert_close(guess[k], slow_predictor(module, k, utterance), atol=2e-5, rtol=1e-5)


def test_parameters_are_as_many_as_published() -> None:
    """12 heads of 256 with 116 distances: 15.8 M (arXiv 2002.02848's code); the encoder 1 843 456."""
    encoder = build_encoder(preset("modified-cpc"))
    objective = build_objective({"name": "cpc", "reach": 116}, encoder)
    each = 4 * 256**2 + 2 * 256 * 2048 + 2048 + 256 + 4 * 256 + 116 * 32
    assert sum(p.numel() for p in objective.parameters()) == 12 * each
    assert round(12 * each / 1e6, 1) == 15.8


def test_it_begins_at_58_3_summed_over_12_steps() -> None:
    objective, encoder = build()
    terms = objective(encoder, speech([20480] * 4))
    assert terms.num_targets == 4 * (128 - 12)
    assert float(terms.total.detach()) / terms.num_targets == pytest.approx(12 * math.log(129), abs=0.05)
    for k in range(1, 13):
        assert quotient(terms, f"contrastive_loss_{k}") == pytest.approx(math.log(129), abs=0.02)
        assert quotient(terms, f"accuracy_{k}") < 0.05


def test_loss_equals_a_loop_over_anchors() -> None:
    objective, encoder = build(num_steps=3, num_negatives=5)
    batch = speech([2000, 3000])
    latents = encoder.frontend(batch.audio).latents
    anchors, negatives = objective._draw(latents, batch.seeds_B)
    guesses = objective.predictors(encoder.context(latents).last)
    z, total = latents.values_ND, 0.0
    ends = [latents.offsets[i + 1] for i in range(2)]
    assert sorted(anchors.tolist()) == [t for i in range(2) for t in range(latents.offsets[i], ends[i] - 3)]
    for anchor, rows in zip(anchors.tolist(), negatives.tolist(), strict=True):
        assert not {anchor + 1, anchor + 2, anchor + 3} & set(rows)
        for k in (1, 2, 3):
            scores = [float((guesses[k - 1, anchor] * z[row]).mean().detach()) for row in [anchor + k, *rows]]
            total += math.log(sum(math.exp(s) for s in scores)) - scores[0]
    assert float(objective(encoder, batch).total.detach()) == pytest.approx(total, rel=1e-5)


def test_no_guess_sees_beyond_its_frame_or_its_utterance() -> None:
    """Gradient of the guesses at frame t: samples up to 160 t + 311 of the same utterance, and no further."""
    objective, encoder = build()
    waves = [torch.randn(4000, requires_grad=True), torch.randn(4000, requires_grad=True)]
    context = encoder.context(encoder.frontend(Packed.from_list(waves)).latents).last
    frame = 12
    objective.predictors(context)[:, frame].square().sum().backward()
    assert waves[0].grad is not None
    reached = waves[0].grad.nonzero().squeeze(1)
    assert int(reached.max()) <= 160 * frame + 311
    assert int(reached.max()) > 160 * frame
    assert waves[1].grad is None or not waves[1].grad.any()


def test_any_length_is_served_and_none_disturbs_another() -> None:
    objective, encoder = build(num_negatives=4)
    context = encoder.context(encoder.frontend(speech([30000, 900, 8000]).audio).latents).last
    together = objective.predictors(context).split(context.sizes, dim=1)
    for part, alone in zip(together, context.split(), strict=True):
        torch.testing.assert_close(objective.predictors(Packed.from_list([alone])), part, atol=1e-5, rtol=1e-4)


def test_reference_negatives_meet_the_positive_and_set_a_floor() -> None:
    batch = speech([20480] * 8)
    default, encoder = build()
    reference, _ = build(reference_negatives=True)
    latents = encoder.frontend(batch.audio).latents
    for objective, low, high in ((default, 0.0, 0.0), (reference, 0.09, 0.14)):
        anchors, negatives = objective._draw(latents, batch.seeds_B)
        met = [(negatives == (anchors + k)[:, None]).any(1).float().mean() for k in range(1, 13)]
        assert low <= float(torch.stack(met).mean()) <= high


def test_latents_of_one_value_are_a_collapse_that_is_named() -> None:
    objective, encoder = build()
    with torch.no_grad():
        encoder.norms[-1].weight.zero_()
        encoder.norms[-1].bias.fill_(1.0)
    terms = objective(encoder, speech(BATCH))
    assert quotient(terms, "accuracy") == 0.0
    (watch,) = [w for w in objective.watches if w.metric == "latent_std"]
    assert watch.low is not None
    assert quotient(terms, "latent_std") < watch.low


def test_grouping_is_the_speaker_by_default() -> None:
    assert build()[0].grouping == "speaker"
    assert build(grouping="none")[0].grouping is None


def test_an_encoder_that_sees_the_future_is_refused() -> None:
    with pytest.raises(ConfigError, match="causal"):
        build_objective({"name": "cpc"}, build_encoder(WAVE))


@pytest.mark.parametrize(
    ("tree", "encoder", "message"),
    [
        ({}, CpcConfig(channels=48, width=32), "equal"),
        ({"num_heads": 5}, CPC, "num_heads"),
        ({"predictor": "linear", "reach": 4}, CPC, "belong to predictor"),
        ({"grouping": "language"}, CPC, "grouping"),
    ],
)
def test_faults_of_the_configuration_are_told(tree: dict[str, Any], encoder: CpcConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_objective({"name": "cpc"} | tree, build_encoder(encoder))
