"""CTC against torch's own loss and against the enumeration of every path."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from isogloss.core.errors import DataError
from isogloss.core.types import Packed
from isogloss.losses.ctc import ctc_loss, greedy_decode, min_frames, prefix_beam_search
from isogloss.losses.viterbi import Chain, ctc_chain, viterbi_align


def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != blank)


def enumerate_posteriors(scores_SC: torch.Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """Sum exp(score) of every path by what it collapses to; exponential in S, exact."""
    num_frames, num_classes = scores_SC.shape
    sums: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(num_classes), repeat=num_frames):
        p = float(torch.exp(scores_SC[range(num_frames), list(path)].sum()))
        key = collapse(path, blank)
        sums[key] = sums.get(key, 0.0) + p
    return sums


def random_packed(lengths: list[int], num_classes: int, seed: int, scale: float = 2.0) -> Packed:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(sum(lengths), num_classes, generator=generator, dtype=torch.float64) * scale
    return Packed(values, torch.tensor(lengths))


@pytest.mark.parametrize("blank", [0, -1])
def test_loss_equals_enumeration(blank: int) -> None:
    logits = random_packed([4, 5, 3], 3, seed=0)
    symbols = [1, 2] if blank == 0 else [0, 1]
    targets = Packed(torch.tensor([symbols[0], symbols[0], symbols[1], symbols[0]]), torch.tensor([2, 2, 0]))
    losses_B = ctc_loss(logits, targets, blank=blank)
    for loss, part, target in zip(losses_B, logits.split(), targets.split(), strict=True):
        sums = enumerate_posteriors(part.log_softmax(-1), blank % 3)
        assert float(loss) == pytest.approx(-np.log(sums[tuple(target.tolist())]), rel=1e-5)


def test_loss_and_gradient_equal_torch_padded() -> None:
    logits = random_packed([9, 14, 6], 7, seed=1)
    logits = logits.with_values(logits.values_ND.float().requires_grad_())
    targets = Packed(torch.tensor([1, 2, 2, 5, 4, 3]), torch.tensor([3, 2, 1]))
    ctc_loss(logits, targets).sum().backward()
    padded = logits.padded().detach().requires_grad_()
    torch.nn.functional.ctc_loss(
        padded.log_softmax(-1).transpose(0, 1),
        torch.tensor([[1, 2, 2], [5, 4, 0], [3, 0, 0]]),
        logits.lengths_B,
        targets.lengths_B,
        blank=6,
        reduction="sum",
    ).backward()
    expected = torch.cat([row[:n] for row, n in zip(padded.grad, logits.sizes, strict=True)])
    torch.testing.assert_close(logits.values_ND.grad, expected, rtol=1e-5, atol=1e-6)


def test_priors_equal_enumeration_with_gradient() -> None:
    logits = random_packed([4], 3, seed=2)
    values = logits.values_ND.float().requires_grad_()
    priors = torch.tensor([0.2, 0.1, 0.7]).log()
    targets = Packed(torch.tensor([0, 1]), torch.tensor([2]))
    loss = ctc_loss(Packed(values, logits.lengths_B), targets, log_priors_C=priors, prior_scale=0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), values)

    def oracle(v: torch.Tensor) -> torch.Tensor:
        scores = v.log_softmax(-1) - 0.5 * priors
        paths = [p for p in itertools.product(range(3), repeat=4) if collapse(p, 2) == (0, 1)]
        return -torch.logsumexp(torch.stack([scores[range(4), list(p)].sum() for p in paths]), 0)

    again = values.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(oracle(again), again)
    assert float(loss.detach()) == pytest.approx(float(oracle(again).detach()), rel=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_unreachable_targets_are_infinite_or_zero_without_gradient() -> None:
    logits = random_packed([3, 5], 4, seed=3)
    values = logits.values_ND.float().requires_grad_()
    targets = Packed(torch.tensor([1, 1, 0, 2]), torch.tensor([3, 1]))
    assert min_frames(targets).tolist() == [4, 1]
    packed = Packed(values, logits.lengths_B)
    assert torch.isinf(ctc_loss(packed, targets, zero_infinity=False)[0])
    for priors in (None, torch.full((4,), -1.4)):
        losses_B = ctc_loss(packed, targets, log_priors_C=priors, prior_scale=0.3)
        assert float(losses_B[0].detach()) == 0.0
        (gradient,) = torch.autograd.grad(losses_B.sum(), values)
        assert torch.isfinite(gradient).all()
        assert gradient[:3].abs().max() == 0
        assert gradient[3:].abs().max() > 0


def test_greedy_merges_repeats_within_an_utterance_only() -> None:
    best = torch.tensor([1, 1, 3, 1, 2, 2, 0, 0, 3, 3])
    logits = Packed(torch.nn.functional.one_hot(best, 4).float(), torch.tensor([5, 3, 2]))
    assert greedy_decode(logits) == [[1, 1, 2], [2, 0], []]


@pytest.mark.parametrize("seed", range(8))
def test_beam_search_finds_the_most_probable_sequence(seed: int) -> None:
    lengths = [5, 1, 6, 3]
    logits = random_packed(lengths, 3, seed=seed, scale=1.0)
    blank = 0 if seed % 2 else 2
    # 200 prefixes are more than there are, so nothing is pruned and the search must be exact.
    found = prefix_beam_search(logits, beam=200, blank=blank, batch_size=3)
    for symbols, part in zip(found, logits.split(), strict=True):
        sums = enumerate_posteriors(part.log_softmax(-1), blank)
        assert sums[tuple(symbols)] == pytest.approx(max(sums.values()), rel=1e-5)


def test_beam_differs_from_greedy_where_paths_add_up() -> None:
    # Two frames: blank .6, a .4 each. Best path: no symbol (.36). Best sequence: "a" (.64).
    logits = Packed(torch.tensor([[0.4, 0.6], [0.4, 0.6]]).log(), torch.tensor([2]))
    assert greedy_decode(logits) == [[]]
    assert prefix_beam_search(logits, beam=4) == [[0]]


def test_beam_survives_long_flat_posteriors() -> None:
    logits = Packed(torch.zeros(900, 5), torch.tensor([900]))
    assert len(prefix_beam_search(logits, beam=5)) == 1


def slow_best_path(scores_SC: np.ndarray, chain: Chain) -> float:
    """Return the score of the best path by trying every sequence of states."""
    num_states = len(chain.symbols)
    best = -np.inf
    for path in itertools.product(range(num_states), repeat=len(scores_SC)):
        begins = path[0] == 0 or (path[0] == 1 and chain.is_optional[0])
        ends = path[-1] == num_states - 1 or (path[-1] == num_states - 2 and chain.is_optional[-1])
        steps = itertools.pairwise(path)
        allowed = all(b - a in (0, 1) or (b - a == 2 and chain.is_optional[a + 1]) for a, b in steps)
        if begins and ends and allowed:
            best = max(best, sum(scores_SC[t, chain.symbols[k]] for t, k in enumerate(path)))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_viterbi_equals_enumeration(seed: int) -> None:
    generator = np.random.default_rng(seed)
    chains = [
        ctc_chain([0, 0], 2),
        ctc_chain([1, 0], 2),
        Chain((2, 0, 2, 1), (True, False, True, False)),
        Chain((1,), (False,)),
    ]
    scores = [generator.normal(size=(n, 3)).astype(np.float32) for n in (5, 4, 6, 3)]
    for cells in (10, 10_000):
        for path, score, chain in zip(viterbi_align(scores, chains, cells), scores, chains, strict=True):
            assert len(path) == len(score)
            own = sum(score[t, chain.symbols[k]] for t, k in enumerate(path))
            assert own == pytest.approx(slow_best_path(score, chain), rel=1e-5)


def test_ctc_chain_alignment_collapses_to_its_targets() -> None:
    generator = np.random.default_rng(5)
    targets = [3, 3, 1, 0, 0, 2]
    (path,) = viterbi_align([generator.normal(size=(30, 5)).astype(np.float32)], [ctc_chain(targets, 4)])
    symbols = tuple(ctc_chain(targets, 4).symbols[k] for k in path)
    assert collapse(symbols, 4) == tuple(targets)


def test_viterbi_refuses_too_few_frames() -> None:
    with pytest.raises(DataError, match="2 frames, but its 3 symbols"):
        viterbi_align([np.zeros((2, 3), np.float32)], [Chain((0, 1, 2), (False,) * 3)])
