"""Cosine cross-entropy over units against fairseq's way of writing it, and its metrics (arXiv 2106.07447, eq. 3)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from isogloss.losses.prediction import METRICS, unit_cross_entropy, unit_logits, unit_metrics


def concatenated_loss(context_MF: torch.Tensor, embeddings_CF: torch.Tensor, units_M: torch.Tensor) -> torch.Tensor:
    """The positive first, then all C with the positive's copy at −∞; cosine by torch's own function; class 0 is right."""
    total = torch.zeros((), dtype=torch.float64)
    for context, unit in zip(context_MF.double(), units_M, strict=True):
        candidates = torch.cat([embeddings_CF[unit][None], embeddings_CF]).double()
        logits = F.cosine_similarity(context[None], candidates, dim=1) / 0.1
        logits[1 + int(unit)] = -math.inf
        total += F.cross_entropy(logits[None], torch.zeros(1, dtype=torch.int64))
    return total


def test_concatenated_logits_are_plain_cross_entropy() -> None:
    draws = torch.Generator().manual_seed(0)
    context_MF, embeddings_CF = torch.randn(50, 16, generator=draws), torch.rand(23, 16, generator=draws)
    units_M = torch.randint(23, (50,), generator=draws)
    ours = unit_cross_entropy(unit_logits(context_MF, embeddings_CF, temperature=0.1), units_M)
    expected = concatenated_loss(context_MF, embeddings_CF, units_M)
    assert float(ours) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("num_units", "expected"), [(104, 4.68), (504, 6.26)])
def test_loss_at_the_start_is_a_little_above_chance(num_units: int, expected: float) -> None:
    """ln 104 = 4.644 and ln 504 = 6.223, and about 0.04 more."""
    torch.manual_seed(0)
    losses, spreads = [], []
    for _ in range(10):
        head = torch.nn.Linear(768, 256)
        embeddings_CF = torch.rand(num_units, 256)
        context_MF = head(F.layer_norm(torch.randn(2000, 768), (768,))).detach()
        logits_MC = unit_logits(context_MF, embeddings_CF, temperature=0.1)
        units_M = torch.randint(num_units, (2000,))
        losses.append(float(unit_cross_entropy(logits_MC, units_M)) / 2000)
        spreads.append(float(logits_MC.std(1).mean()))
    assert sum(losses) / 10 == pytest.approx(expected, abs=0.03)
    assert sum(spreads) / 10 == pytest.approx(0.32, abs=0.03)


def test_bfloat16_autocast_leaves_the_softmax_in_fp32() -> None:
    context_MF, embeddings_CF = torch.randn(20, 8), torch.rand(5, 8)
    expected = unit_logits(context_MF, embeddings_CF, temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = unit_logits(context_MF, embeddings_CF, temperature=0.1)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected)


def test_metrics_count_what_they_say() -> None:
    guesses_M = torch.tensor([0, 0, 2, 2, 0])
    units_M = torch.tensor([0, 1, 2, 3, 0])
    metrics = unit_metrics(F.one_hot(guesses_M, 5).float(), units_M)
    values = {name: float(total) / float(count) for name, (total, count) in metrics.items()}
    assert values == pytest.approx(
        {
            "accuracy": 0.6,
            "majority_share": 0.4,
            "gain_over_majority": 0.2,
            "predicted_units": 2,
            "target_units": 4,
            "predicted_ratio": 0.5,
        }
    )
    assert tuple(metrics) == METRICS


def test_no_frames_are_no_error() -> None:
    logits_MC = unit_logits(torch.zeros(0, 4), torch.rand(3, 4), temperature=0.1)
    units_M = torch.zeros(0, dtype=torch.int64)
    assert float(unit_cross_entropy(logits_MC, units_M)) == 0.0
    assert all(count == 0.0 for _, count in unit_metrics(logits_MC, units_M).values())
