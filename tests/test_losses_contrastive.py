"""InfoNCE, negatives and diversity against slow oracles, closed forms and Hugging Face."""

from __future__ import annotations

import math

import pytest
import torch

from isogloss.core.rng import utterance_generators
from isogloss.losses.contrastive import cosine_logits, info_nce
from isogloss.losses.diversity import diversity_loss
from isogloss.losses.negatives import draw_as_reference, draw_from_batch, draw_within_utterances

CPU = torch.device("cpu")


def generators(count: int) -> list[torch.Generator]:
    return utterance_generators(torch.arange(count), "negatives")


def test_within_utterances_every_other_row_is_equally_likely() -> None:
    (rows,) = draw_within_utterances([5], 8000, generators(1), CPU)
    for own in range(5):
        share = torch.bincount(rows[own], minlength=5) / 8000
        assert share[own] == 0
        others = torch.cat([share[:own], share[own + 1 :]])
        assert float((others - 0.25).abs().max()) < 0.02


@pytest.mark.parametrize(("size", "expected"), [(0, []), (1, [0]), (2, [0, 1])])
def test_utterances_with_few_masked_frames(size: int, expected: list[int]) -> None:
    (rows,) = draw_within_utterances([size], 6, generators(1), CPU)
    assert rows.shape == (size, 6)
    assert sorted(set(rows.flatten().tolist())) == expected


def test_from_batch_no_positive_is_ever_drawn_and_all_else_is() -> None:
    sizes, anchors, steps = [9, 7], [6, 4], 3
    rows = draw_from_batch(sizes, anchors, steps, 4000, generators(2), CPU)
    firsts = [0] * 6 + [9] * 4
    times = [*range(6), *range(4)]
    assert rows.shape == (10, 4000)
    for row, first, time in zip(rows, firsts, times, strict=True):
        positives = {first + time + k for k in range(1, steps + 1)}
        assert set(row.tolist()) == set(range(16)) - positives
        share = torch.bincount(row, minlength=16) / 4000
        assert float((share[share > 0] - 1 / 13).abs().max()) < 0.025


def test_reference_sampler_has_the_reference_s_properties() -> None:
    """CPC_audio with 8 windows of 128 frames: never the anchor's own time; 10 to 12.5 % of anchors meet their positive."""
    rows = draw_as_reference([128] * 8, [116] * 8, 128, generators(8), CPU).view(8, 116, 128)
    time_116 = torch.arange(116)
    assert not (rows % 128 == time_116[None, :, None]).any()
    assert int(rows.min()) >= 0
    assert int(rows.max()) < 8 * 128
    own = (rows // 128 == torch.arange(8)[:, None, None]).float().mean()
    assert abs(float(own) - 1 / 8) < 0.01
    met = [
        (rows == (torch.arange(8)[:, None, None] * 128 + time_116[None, :, None] + k)).any(-1).float().mean()
        for k in range(1, 13)
    ]
    assert 0.09 < float(torch.stack(met).mean()) < 0.135


def test_reference_sampler_with_unequal_lengths_stays_inside() -> None:
    rows = draw_as_reference([1, 40, 15], [0, 28, 3], 64, generators(3), CPU)
    assert rows.shape == (31, 64)
    assert int(rows.min()) >= 1  # an utterance of one frame has no other time
    assert int(rows.max()) < 56


def slow_logits(context, targets, sizes, negatives, codes, temperature):  # type: ignore[no-untyped-def]
    out, first = [], 0
    for n, rows in zip(sizes, negatives, strict=True):
        for i in range(n):
            row = []
            for j in [i, *rows[i].tolist()]:
                a, b = context[first + i], targets[first + j]
                cosine = float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
                same = len(row) > 0 and codes[first + i].tolist() == codes[first + j].tolist()
                row.append(-math.inf if same else cosine / temperature)
            out.append(row)
        first += n
    return torch.tensor(out)


def example(sizes: list[int], num_codes: int = 3):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    context = torch.randn(sum(sizes), 6)
    codes = torch.randint(num_codes, (sum(sizes), 2))
    table = torch.randn(num_codes, num_codes, 6)
    targets = table[codes[:, 0], codes[:, 1]]
    return context, targets, codes, draw_within_utterances(sizes, 10, generators(len(sizes)), CPU)


def test_logits_equal_a_loop_over_pairs() -> None:
    sizes = [7, 0, 1, 12]
    context, targets, codes, negatives = example(sizes)
    logits = cosine_logits(context, targets, sizes, negatives, temperature=0.1, codes_MG=codes)
    expected = slow_logits(context, targets, sizes, negatives, codes, 0.1)
    assert torch.isinf(expected).any()
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_loss_equals_hugging_face_given_the_same_negatives() -> None:
    pytest.importorskip("transformers")
    from transformers import Wav2Vec2ForPreTraining

    size = 30
    context, targets, codes, negatives = example([size], num_codes=4)
    logits = cosine_logits(context, targets, [size], negatives, temperature=0.1, codes_MG=codes)
    loss, _ = info_nce(logits)
    chosen = targets[negatives[0]].permute(1, 0, 2)[:, None]
    foreign = Wav2Vec2ForPreTraining.compute_contrastive_logits(targets[None, None], chosen, context[None], 0.1)
    copies = (targets[None] == chosen[:, 0]).all(-1)
    assert copies.any()
    foreign[1:, 0][copies] = float("-inf")
    expected = torch.nn.functional.cross_entropy(foreign[:, 0].T, torch.zeros(size, dtype=torch.int64), reduction="sum")
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-6)


def test_gradient_of_copies_is_zero() -> None:
    context, _, _, negatives = example([6])
    context.requires_grad_()
    same = torch.zeros(6, 2, dtype=torch.int64)
    logits = cosine_logits(context, torch.ones(6, 6), [6], negatives, temperature=0.1, codes_MG=same)
    loss, num_correct = info_nce(logits)
    loss.backward()
    # All distractors are copies: the collapsed state, whose loss is exactly nought and whose accuracy must not read 1.
    assert float(loss.detach()) == 0.0
    assert int(num_correct) == 0
    assert context.grad is not None
    assert not context.grad.any()


def test_equal_scores_give_ln_of_the_candidates_and_count_as_wrong() -> None:
    loss, num_correct = info_nce(torch.zeros(3, 101))
    assert float(loss) == pytest.approx(3 * math.log(101), rel=1e-6)
    assert int(num_correct) == 0
    loss, num_correct = info_nce(torch.tensor([[5.0, 1.0, -math.inf], [0.0, 1.0, 2.0]]))
    assert int(num_correct) == 1


def test_copies_of_the_positive_set_the_floor() -> None:
    logits = torch.full((1, 129), -1e4)
    logits[0, :4] = 50.0
    assert float(info_nce(logits)[0]) == pytest.approx(math.log(4), rel=1e-5)


@pytest.mark.parametrize(("perplexity", "expected"), [(2.0, 0.996875), (640.0, 0.0), (320.0, 0.5)])
def test_diversity_closed_forms(perplexity: float, expected: float) -> None:
    assert float(diversity_loss(torch.tensor(perplexity), 640, 10)) == pytest.approx(10 * expected)
