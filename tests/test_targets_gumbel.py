"""The Gumbel product quantizer against closed forms and Hugging Face's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from isogloss.core.rng import utterance_generators
from isogloss.core.types import Packed
from isogloss.targets.base import perplexity
from isogloss.targets.gumbel import GumbelQuantizer


def quantizer(width: int = 16, target_width: int = 8, groups: int = 2, codes: int = 5) -> GumbelQuantizer:
    torch.manual_seed(0)
    return GumbelQuantizer(width, target_width, num_groups=groups, num_codes=codes)


def frames(*sizes: int, width: int = 16) -> Packed:
    torch.manual_seed(1)
    return Packed.from_list([torch.randn(n, width) for n in sizes])


def generators(count: int, start: int = 0) -> list[torch.Generator]:
    return utterance_generators(torch.arange(start, start + count), "codes")


def test_evaluation_takes_the_likeliest_code_of_each_book() -> None:
    module, packed = quantizer().eval(), frames(7)
    result = module(packed, 2.0, generators(1))
    logits = module.logits(packed.values_ND).view(7, 2, 5)
    for row in range(7):
        best = [int(logits[row, group].argmax()) for group in range(2)]
        assert result.codes_MG[row].tolist() == best
        expected = torch.cat([module.codebook[0, group * 5 + best[group]] for group in range(2)])
        assert torch.equal(result.targets_MD[row], expected)


def test_training_matches_hugging_face_given_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2GumbelVectorQuantizer

    foreign = Wav2Vec2GumbelVectorQuantizer(
        transformers.Wav2Vec2Config(
            conv_dim=(16,) * 7, codevector_dim=8, num_codevectors_per_group=5, num_codevector_groups=2
        )
    ).train()
    foreign.temperature = 0.7
    module, packed = quantizer().train(), frames(6, 5)
    torch.nn.init.normal_(module.logits.weight, std=0.3)
    foreign.codevectors.data.copy_(module.codebook)
    foreign.weight_proj.load_state_dict(module.logits.state_dict())

    noise = torch.cat(
        [torch.empty(n, 2, 5).exponential_(generator=g) for n, g in zip((6, 5), generators(2), strict=True)]
    )
    noise = -noise.log()

    def with_our_noise(logits: Tensor, tau: float, hard: bool) -> Tensor:
        soft = ((logits + noise.view_as(logits)) / tau).softmax(-1)
        return torch.nn.functional.one_hot(soft.argmax(-1), 5) - soft.detach() + soft if hard else soft

    monkeypatch.setattr(torch.nn.functional, "gumbel_softmax", with_our_noise)
    expected, expected_perplexity = foreign(packed.values_ND[None], torch.ones(1, 11, dtype=torch.bool))
    result = module(packed, torch.tensor(0.7), generators(2))
    torch.testing.assert_close(result.targets_MD, expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(result.probability_perplexity, expected_perplexity, atol=1e-5, rtol=0)

    direction = torch.randn(11, 8)
    (expected[0] * direction).sum().backward()
    (result.targets_MD * direction).sum().backward()
    torch.testing.assert_close(module.logits.weight.grad, foreign.weight_proj.weight.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module.codebook.grad, foreign.codevectors.grad, atol=1e-6, rtol=0)


def test_codes_follow_the_softmax() -> None:
    """Argmax of logits + Gumbel noise is a sample of the softmax, at any temperature."""
    module = quantizer(groups=1, target_width=4).train()
    torch.nn.init.normal_(module.logits.weight, std=0.3)
    one = frames(1).values_ND
    result = module(Packed.from_list([one.expand(20_000, -1)]), 0.5, generators(1))
    counts = torch.bincount(result.codes_MG[:, 0], minlength=5) / 20_000
    expected = module.logits(one).softmax(-1)[0].detach()
    assert float((counts - expected).abs().max()) < 0.015  # four standard errors
    torch.testing.assert_close(result.mean_probabilities_GC[0].detach(), expected, atol=1e-5, rtol=0)


def test_noise_depends_on_the_utterance_alone() -> None:
    module, packed = quantizer().train(), frames(30, 20)
    both = module(packed, 2.0, generators(2))
    alone = module(Packed.from_list([packed.split()[1]]), 2.0, generators(1, start=1))
    assert torch.equal(both.codes_MG[30:], alone.codes_MG)


def test_perplexity_closed_forms() -> None:
    assert float(perplexity(torch.full((2, 320), 1 / 320))) == pytest.approx(640, rel=1e-5)
    one_hot = torch.zeros(2, 320)
    one_hot[:, 3] = 1
    assert float(perplexity(one_hot)) == 2
    assert float(perplexity(torch.tensor([[0.5, 0.25, 0.25]]))) == pytest.approx(math.exp(1.5 * math.log(2)))


def test_code_perplexity_counts_each_book_by_itself() -> None:
    result = quantizer().eval()(frames(400), 1.0, generators(1))
    expected = 0.0
    for group in range(2):
        share = [float((result.codes_MG[:, group] == code).float().mean()) for code in range(5)]
        expected += math.exp(-sum(p * math.log(p) for p in share if p))
    assert float(result.code_perplexity) == pytest.approx(expected, rel=1e-5)


def test_bfloat16_autocast_changes_nothing() -> None:
    module, packed = quantizer().train(), frames(20)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(packed, 0.5, generators(1))
    outside = module(packed, 0.5, generators(1))
    assert inside.targets_MD.dtype == torch.float32
    assert torch.equal(inside.targets_MD, outside.targets_MD)


def test_no_frames() -> None:
    result = quantizer().train()(Packed(torch.zeros(0, 16), torch.zeros(2, dtype=torch.int64)), 1.0, generators(2))
    assert result.targets_MD.shape == (0, 8)
    assert torch.isfinite(result.probability_perplexity)


def test_a_width_that_does_not_divide_is_told() -> None:
    with pytest.raises(ValueError, match="multiple of the number of codebooks"):
        GumbelQuantizer(16, 9, num_groups=2, num_codes=5)
