"""UniSpeech's replacement and balance of terms; UniSpeech-SAT's candidates, both forms of its loss, its area under the curve."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isogloss.core.errors import ConfigError
from isogloss.core.rng import utterance_generators
from isogloss.core.types import Packed
from isogloss.corruption.spans import mask_spans
from isogloss.encoders.base import Encoder
from isogloss.encoders.presets import build_encoder
from isogloss.losses.same_utterance import (
    area_under_curve,
    draw_from_all,
    same_utterance_logits,
    same_utterance_loss,
)
from isogloss.objectives.base import build_objective
from objective_cases import BATCH, WAVE, speech
from objective_cases.unispeech import SMALL
from objective_cases.unispeech_sat import SMALL as SAT


def build(tree: dict[str, Any]) -> tuple[Any, Encoder]:
    torch.manual_seed(3)
    encoder = build_encoder(WAVE).train()
    return build_objective(tree, encoder).train(), encoder


def gradient(objective: Any, encoder: Encoder, parameter: Tensor) -> float:
    terms = objective(encoder, speech(BATCH))
    parameter.grad = None
    terms.total.backward()
    assert parameter.grad is not None
    return float(parameter.grad.abs().max())


def test_ctc_sees_states_or_codes_as_it_was_told() -> None:
    """With α = 1 the only loss is CTC: over codes alone nothing reaches the layers, over states alone nothing the codes."""
    for probability, reaches_codes, reaches_layers in ((0.0, False, True), (0.5, True, True), (1.0, True, False)):
        tree = SMALL | {"ctc_weight": 1.0, "diversity_weight": 0.0, "replace_probability": probability}
        objective, encoder = build(tree)
        assert (gradient(objective, encoder, objective.lift_targets.weight) > 0) == reaches_codes
        layer = encoder.get_parameter("layers.1.ffn.up.weight")
        assert (gradient(objective, encoder, layer) > 0) == reaches_layers


def test_each_term_is_a_mean_of_its_own() -> None:
    objective, encoder = build(SMALL | {"ctc_weight": 0.3, "diversity_weight": 0.0, "replace_probability": 0.0})
    batch = speech([16000, 9000, 16000])
    batch = replace(batch, text=["abcd", "ab", None])
    terms = objective(encoder, batch)
    latents = encoder.frontend(batch.audio).latents
    mask_N = mask_spans(latents.sizes, utterance_generators(batch.seeds_B, "masks"), probability=0.5, span=10)
    states = encoder.context(latents, mask_N).last
    expected = 0.7 * terms.metrics["contrastive_loss"][0]
    labels = [[2, 3, 4, 5], [2, 3]]
    for states_SD, mask, symbols in zip(states.split(), mask_N.split(latents.sizes), labels, strict=False):
        scores = objective.project_ctc(states_SD).log_softmax(1)
        loss = F.ctc_loss(scores, torch.tensor(symbols), [len(scores)], [len(symbols)], blank=0, reduction="sum")
        expected = expected + 0.3 * int(mask.sum()) * loss / len(symbols)
    torch.testing.assert_close(terms.total, expected, rtol=1e-5, atol=0)
    assert terms.num_targets == int(mask_N.sum())
    assert terms.metrics["unlabelled"] == (1, 3)


def test_without_labels_nothing_is_required_and_no_output_layer_made() -> None:
    objective, encoder = build(SMALL | {"ctc_weight": 0.0, "labels": {}})
    assert objective.requires == frozenset()
    assert not any(name.startswith("project_ctc") for name in objective.state_dict())
    batch = replace(speech(BATCH), text=None)
    assert torch.isfinite(objective(encoder, batch).total)


def test_candidates_are_any_row_but_the_own_and_do_not_depend_on_the_order() -> None:
    seeds = torch.tensor([9, 4, 7])
    sizes = [3, 0, 5]

    def draw(order: list[int]) -> list[Tensor]:
        generators = utterance_generators(seeds[order], "candidates")
        rows = draw_from_all([sizes[i] for i in order], seeds[order], 4000, generators, torch.device("cpu"))
        first, name = 0, {}
        for i in order:
            name |= {first + r: 10 * i + r for r in range(sizes[i])}
            first += sizes[i]
        named = rows.clone().apply_(lambda row: name[row])
        return [part for _, part in sorted(zip(order, named.split([sizes[i] for i in order]), strict=True))]

    for one, other in zip(draw([0, 1, 2]), draw([2, 0, 1]), strict=True):
        assert torch.equal(one, other)
    rows = draw_from_all(sizes, seeds, 4000, utterance_generators(seeds, "candidates"), torch.device("cpu"))
    for row in range(8):
        counts = torch.bincount(rows[row], minlength=8)
        assert counts[row] == 0
        assert counts.sum() == 4000
        others = torch.cat([counts[:row], counts[row + 1 :]]).float()
        assert float((others - 4000 / 7).abs().max()) < 130  # six standard deviations
    assert draw_from_all([1], seeds[:1], 3, utterance_generators(seeds[:1], "c"), torch.device("cpu")).tolist() == [
        [0, 0, 0]
    ]


def test_both_forms_of_the_loss_equal_their_equations() -> None:
    torch.manual_seed(0)
    anchors = Packed.from_list([torch.randn(2, 6), torch.randn(3, 6)])
    instances, rows = torch.randn(5, 6), torch.tensor([[1, 2], [3, 3], [0, 4], [1, 2], [0, 1]])
    logits, is_same = same_utterance_logits(anchors, instances, rows, temperature=0.1)
    owner = [0, 0, 1, 1, 1]
    binary = softmax = 0.0
    for t in range(5):
        candidates = [t, *rows[t].tolist()]
        scores = [float(torch.cosine_similarity(anchors.values_ND[t], instances[s], dim=0)) / 0.1 for s in candidates]
        same = [owner[s] == owner[t] for s in candidates]
        chance = [float(torch.sigmoid(torch.tensor(score, dtype=torch.float64))) for score in scores]
        binary += sum(
            -float(torch.tensor(p if yes else 1 - p).log()) for p, yes in zip(chance, same, strict=True)
        ) / len(candidates)
        shares = torch.tensor(scores).log_softmax(0)
        softmax += -float(sum(share for share, yes in zip(shares, same, strict=True) if yes)) / sum(same)
    assert float(same_utterance_loss(logits, is_same, "binary")) == pytest.approx(binary, rel=1e-4)
    assert float(same_utterance_loss(logits, is_same, "softmax")) == pytest.approx(softmax, rel=1e-4)


def test_area_under_the_curve_equals_counting_pairs() -> None:
    torch.manual_seed(0)
    scores, is_same = torch.randn(7, 9).mul(2).round(), torch.rand(7, 9) < 0.4
    area, weight = area_under_curve(scores, is_same)
    yes, no = scores[:, 1:][is_same[:, 1:]], scores[:, 1:][~is_same[:, 1:]]
    pairs = (yes[:, None] > no).float() + 0.5 * (yes[:, None] == no)
    assert area == pytest.approx(float(pairs.mean()), abs=1e-6)
    assert weight == 1.0
    assert area_under_curve(torch.zeros(3, 4), torch.arange(12).view(3, 4) % 2 == 0)[0] == pytest.approx(0.5)
    assert area_under_curve(scores, torch.ones(7, 9, dtype=torch.bool)) == (0.0, 0.0)


def test_states_that_are_the_utterance_s_own_are_told_apart() -> None:
    """A planted optimum: instances and anchors name the utterance, so the loss is small and the area 1."""
    utterance = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    directions = F.one_hot(utterance, 3).float()
    anchors = Packed(directions, torch.tensor([3, 3, 2]))
    seeds = torch.tensor([1, 2, 3])
    rows = draw_from_all([3, 3, 2], seeds, 50, utterance_generators(seeds, "c"), torch.device("cpu"))
    logits, is_same = same_utterance_logits(anchors, directions - 0.5, rows, temperature=0.1)
    assert area_under_curve(logits, is_same) == (1.0, 1.0)
    assert float(same_utterance_loss(logits, is_same, "binary")) / 8 < 0.05


def test_the_middle_layer_is_half_way_or_stated() -> None:
    objective, _ = build({key: value for key, value in SAT.items() if key != "speaker_layer"})
    assert objective.speaker_layer == 1  # of two
    with pytest.raises(ConfigError, match="at most 2"):
        build(SAT | {"speaker_layer": 3})


def test_temperatures_follow_progress_and_stay_at_their_end() -> None:
    for tree in (SMALL, SAT):
        objective, _ = build(tree)
        objective.after_step(1.0)
        end = objective.config.gumbel_temperature_end
        assert float(objective.gumbel_temperature) == pytest.approx(end)
        assert objective.config.continued().gumbel_temperature_start == end
    with pytest.raises(ConfigError, match="at most gumbel_temperature_start"):
        build(SMALL | {"gumbel_temperature_end": 3.0})
