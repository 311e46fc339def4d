"""What every objective must do; the files of the folder are listed, so a new one is held to it without being named twice."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from isogloss.core.lookup import names_in
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.encoders.base import Encoder
from isogloss.encoders.cpc import CpcConfig
from isogloss.encoders.presets import build_encoder
from isogloss.encoders.wave import WaveConfig
from isogloss.objectives.base import Objective, Trainable, build_objective

WAVE = WaveConfig(
    conv_channels=(32,) * 7,
    width=32,
    num_layers=2,
    num_heads=2,
    ffn_width=64,
    position_kernel=16,
    position_groups=4,
    dropout=0.0,
    attention_dropout=0.0,
    input_dropout=0.0,
    layerdrop=0.0,
    feature_gradient_scale=1.0,
)
CPC = CpcConfig(channels=32, width=32)
SMALL_WAV2VEC2 = {"name": "wav2vec2", "num_codes": 40, "target_width": 32, "final_width": 32, "feature_dropout": 0.0}
SMALL_CPC = {"name": "cpc", "num_heads": 4, "ffn_width": 64, "dropout": 0.0, "reach": 32}
# Small settings without dropout; each of an objective's switches that changes its course has a row.
CASES: dict[str, tuple[dict[str, Any], WaveConfig | CpcConfig]] = {
    "wav2vec2": (SMALL_WAV2VEC2, WAVE),
    "wav2vec2-additive": (SMALL_WAV2VEC2 | {"diversity_weight": 0.0}, WAVE),
    "wav2vec2-equalized": (SMALL_WAV2VEC2 | {"equalize_masks": True}, WAVE),
    "cpc": (SMALL_CPC, CPC),
    "cpc-reference": (SMALL_CPC | {"reference_negatives": True}, CPC),
    "cpc-original": (
        {"name": "cpc", "predictor": "linear"},
        CpcConfig(channels=48, width=32, norm="none", recurrent="gru"),
    ),
}
CHANCE_LOSS = {"wav2vec2": math.log(101), "cpc": math.log(129)}

every_case = pytest.mark.parametrize("case", CASES)


def build(case: str, **changes: Any) -> tuple[Objective, Encoder]:
    tree, config = CASES[case]
    torch.manual_seed(3)
    encoder = build_encoder(config)
    return build_objective(tree | changes, encoder).train(), encoder.train()


def speech(num_samples: list[int], seed: int = 0) -> SpeechBatch:
    """Noise whose colour and strength change every 20 ms: something to predict, and to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    waves = []
    for n in num_samples:
        gain = torch.rand(n // 320 + 1, generator=generator).repeat_interleave(320)[:n]
        pitch = (0.02 + 0.3 * torch.rand(n // 320 + 1, generator=generator)).repeat_interleave(320)[:n]
        waves.append(gain * torch.sin(pitch.cumsum(0)) + 0.1 * torch.randn(n, generator=generator))
    ids = [f"utterance-{i}" for i in range(len(waves))]
    seeds_B = torch.randint(2**62, (len(waves),), generator=generator)
    return SpeechBatch(Packed.from_list(waves), ids, [None] * len(waves), seeds_B, speakers=["one"] * len(waves))


def quotient(terms: LossTerms, metric: str) -> float:
    total, count = terms.metrics[metric]
    return float(total) / float(count)


BATCH = [9000, 16000, 5000, 12345]


def test_every_objective_has_a_case() -> None:
    assert {tree["name"] for tree, _ in CASES.values()} == set(names_in("isogloss.objectives"))


@every_case
def test_loss_is_a_finite_sum_and_every_parameter_gets_a_gradient(case: str) -> None:
    objective, encoder = build(case)
    assert isinstance(objective, Trainable)
    assert objective.config.name == CASES[case][0]["name"]
    terms = objective(encoder, speech(BATCH))
    assert terms.total.shape == ()
    assert torch.isfinite(terms.total)
    assert isinstance(terms.num_targets, int)
    assert terms.num_targets > 0
    terms.total.backward()
    for module in (objective, encoder):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name


@every_case
def test_loss_does_not_depend_on_the_order_in_the_batch(case: str) -> None:
    objective, encoder = build(case)
    batch = speech(BATCH)
    terms = objective(encoder, batch)
    shuffled = objective(encoder, batch.select([2, 0, 3, 1]))
    assert shuffled.num_targets == terms.num_targets
    torch.testing.assert_close(shuffled.total, terms.total, rtol=1e-5, atol=0)


@every_case
def test_loss_of_a_batch_is_the_sum_over_its_parts_where_it_is_said_to_be(case: str) -> None:
    objective, encoder = build(case)
    if not objective.additive:
        with torch.no_grad():  # at first some guesses are all but nought, and so is what a batch does to them
            for parameter in objective.parameters():
                parameter.mul_(1000.0)
    batch = speech(BATCH)
    terms = objective(encoder, batch)
    parts = objective(encoder, batch.select([0, 1])) + objective(encoder, batch.select([2, 3]))
    difference = abs(float(parts.total.detach() - terms.total.detach())) / abs(float(terms.total.detach()))
    if objective.additive:
        assert parts.num_targets == terms.num_targets
        assert difference < 1e-5
    else:
        assert difference > 1e-5  # or it should say that it is


def test_one_case_is_additive() -> None:
    assert build("wav2vec2-additive")[0].additive


@every_case
def test_bfloat16_autocast(case: str) -> None:
    objective, encoder = build(case)
    batch = speech(BATCH)
    expected = objective(encoder, batch)
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective(encoder, batch)
    assert terms.total.dtype == torch.float32
    torch.testing.assert_close(terms.total, expected.total, rtol=0.05, atol=0)
    terms.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)


@every_case
def test_state_goes_round(case: str) -> None:
    objective, encoder = build(case)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    objective.after_step(0.4)
    batch = speech(BATCH)
    expected = objective(encoder, batch).total
    torch.manual_seed(99)
    other = build_objective(CASES[case][0], encoder).train()
    assert float(other(encoder, batch).total.detach()) != float(expected.detach())
    other.load_state_dict(copy.deepcopy(objective.state_dict()))
    assert torch.equal(other(encoder, batch).total, expected)


@every_case
def test_heads_are_taken_by_name(case: str) -> None:
    objective, encoder = build(case)
    torch.manual_seed(98)
    other = build_objective(CASES[case][0], encoder)
    tensors = {name: value.clone() for name, value in objective.state_dict().items()}
    missing = next(iter(tensors))
    del tensors[missing]
    with torch.no_grad():
        report = other.take_heads(tensors)
    assert report.fresh == [missing]
    assert all(torch.equal(other.state_dict()[name], tensors[name]) for name in report.taken)


@every_case
def test_the_same_seeds_give_the_same_loss_and_others_another(case: str) -> None:
    objective, encoder = build(case)
    batch = speech(BATCH)
    first = objective(encoder, batch).total
    torch.manual_seed(12345)
    assert torch.equal(objective(encoder, batch).total, first)
    batch.seeds_B = batch.seeds_B + 1
    assert not torch.equal(objective(encoder, batch).total, first)


@every_case
@pytest.mark.parametrize("num_samples", [[300], [900, 100], [4000, 200], [3600], [3921]])
def test_very_short_utterances_are_defined(case: str, num_samples: list[int]) -> None:
    """No frame at all, frames but no target, and one target or a few beside them."""
    objective, encoder = build(case)
    terms = objective(encoder, speech(num_samples))
    terms.total.backward()
    assert torch.isfinite(terms.total)
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None, name
    for name, parameter in [*objective.named_parameters(), *encoder.named_parameters()]:
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    for name, (total, count) in terms.metrics.items():
        assert math.isfinite(float(total)), name
        assert float(count) >= 0


@every_case
def test_it_begins_at_chance(case: str) -> None:
    objective, encoder = build(case)
    terms = objective(encoder, speech([16000] * 4))
    chance = CHANCE_LOSS[CASES[case][0]["name"]]
    # InfoNCE of independent scores of standard deviation s starts about s²/2 above chance; cosines of 32 numbers over 0.1
    # have s = 1.8 at most before projections correlate them.
    assert quotient(terms, "contrastive_loss") == pytest.approx(chance, abs=0.01 if case.startswith("cpc") else 0.8)
    assert quotient(terms, "accuracy") < 0.06


@every_case
def test_metrics_are_sums_with_counts(case: str) -> None:
    objective, encoder = build(case)
    terms = objective(encoder, speech(BATCH))
    assert {watch.metric for watch in objective.watches} <= set(terms.metrics)
    for watch in objective.watches:
        assert watch.meaning
        assert watch.advice


@pytest.mark.parametrize("case", ["wav2vec2", "wav2vec2-additive", "cpc", "cpc-original"])
def test_it_overfits_eight_utterances(case: str) -> None:
    objective, encoder = build(case)
    batch = speech([4000] * 8)
    optimizer = torch.optim.Adam([*objective.parameters(), *encoder.parameters()], lr=3e-3)
    losses = []
    for step in range(60):
        terms = objective(encoder, batch)
        losses.append(quotient(terms, "contrastive_loss"))
        optimizer.zero_grad()
        (terms.total / terms.num_targets).backward()
        optimizer.step()
        objective.after_step(step / 60)
    assert losses[-1] < 0.85 * losses[0], losses[::10]
