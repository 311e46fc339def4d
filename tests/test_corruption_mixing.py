"""Utterance mixing: measured ratios, lengths, places, and what it must not depend on (WavLM, arXiv 2110.13900)."""

from __future__ import annotations

import math

import pytest
import torch

from isogloss.core.rng import utterance_generators
from isogloss.core.types import Packed
from isogloss.corruption.mixing import Mixing, mix_utterances

ALWAYS = Mixing(probability=1.0)


def signs(num_samples: int, loudness: float, seed: int) -> torch.Tensor:
    """Random signs: every stretch of it has the same power."""
    draws = torch.Generator().manual_seed(seed)
    return loudness * (2.0 * torch.randint(2, (num_samples,), generator=draws) - 1.0)


def mix(
    waves: list[torch.Tensor], seeds: list[int], mixing: Mixing, noise=None
) -> tuple[list[torch.Tensor], list[bool]]:
    seeds_B = torch.tensor(seeds)
    audio = Packed.from_list(waves)
    before = audio.values_ND.clone()
    mixed, is_mixed_B = mix_utterances(audio, seeds_B, utterance_generators(seeds_B, "mixing"), mixing, noise)
    assert torch.equal(audio.values_ND, before), "the clean batch is left as it was"
    return mixed.split(), is_mixed_B.tolist()


def test_measured_ratios_lengths_and_places_of_many_mixtures() -> None:
    waves = [signs(4000, 0.1, 1), signs(4000, 0.7, 2)]
    ratios, lengths, firsts = [], [], []
    for seed in range(400):
        mixed, _ = mix(waves, [2 * seed, 2 * seed + 1], ALWAYS)
        added = mixed[0] - waves[0]
        rows = added.abs().gt(1e-6).nonzero().squeeze(1)
        if not len(rows):
            continue
        lengths.append(len(rows))
        firsts.append(int(rows[0]) / (4000 - len(rows)))
        assert int(rows[-1]) - int(rows[0]) + 1 == len(rows), "one stretch"
        power = added[rows].square().mean()
        ratios.append(10 * math.log10(float(waves[0].square().mean() / power)))
    assert min(ratios) > -5.01
    assert max(ratios) < 5.01
    assert sum(ratios) / len(ratios) == pytest.approx(0.0, abs=0.5)
    assert max(ratios) - min(ratios) > 9.5
    assert max(lengths) <= 2000
    assert max(lengths) > 1950
    assert sum(lengths) / len(lengths) == pytest.approx(1000, abs=60)
    assert sum(firsts) / len(firsts) == pytest.approx(0.5, abs=0.05)


def test_the_second_signal_is_the_partner_as_it_was_and_never_the_utterance_itself() -> None:
    waves = [signs(3000, 1.0, 1), signs(3000, 1.0, 2), signs(3000, 1.0, 3)]
    for seed in range(30):
        mixed, _ = mix(waves, [seed, 1000 + seed, 2000 + seed], ALWAYS)
        for index, wave in enumerate(waves):
            added = mixed[index] - wave
            rows = added.abs().gt(1e-6).nonzero().squeeze(1)
            if len(rows) < 64:
                continue
            scaled = added[rows] / added[rows].square().mean().sqrt()
            best = [max_correlation(other, scaled) for other in waves]
            assert max(best) > 0.999, "a stretch of one clean utterance, unmixed"
            assert best[index] < 0.7


def max_correlation(whole: torch.Tensor, part: torch.Tensor) -> float:
    return float((whole.unfold(0, len(part), 1) @ part).max() / len(part))


def test_share_of_mixed_utterances_and_of_noise() -> None:
    waves = [signs(400, 1.0, i) for i in range(64)]
    asked: list[int] = []

    def noise(draws: torch.Generator, num_samples: int) -> torch.Tensor:
        asked.append(num_samples)
        return torch.full((num_samples,), 3.0)

    counts = 0
    for seed in range(20):
        _, is_mixed = mix(waves, list(range(64 * seed, 64 * seed + 64)), Mixing(noise_probability=0.1), noise)
        counts += sum(is_mixed)
    assert counts / 1280 == pytest.approx(0.2, abs=0.035)
    assert len(asked) / counts == pytest.approx(0.1, abs=0.05)
    assert set(asked) == {400}


def test_noise_has_its_own_ratios() -> None:
    waves = [signs(2000, 0.3, 1)]
    ratios = []
    for seed in range(200):
        mixing = Mixing(probability=1.0, noise_probability=1.0)
        mixed, is_mixed = mix(waves, [seed], mixing, lambda draws, n: signs(n // 2, 2.0, 7))
        added = mixed[0] - waves[0]
        if is_mixed[0] and added.any():
            ratios.append(10 * math.log10(0.09 / float(added[added != 0].square().mean())))
    assert -5.01 < min(ratios) < -4
    assert 19 < max(ratios) < 20.01


def test_order_and_company_decide_nothing_but_the_partner() -> None:
    waves = [signs(900, 0.5, 1), signs(1700, 0.2, 2), signs(1300, 0.9, 3)]
    mixed, is_mixed = mix(waves, [5, 9, 7], ALWAYS)
    order = [2, 0, 1]
    again, is_mixed_again = mix([waves[i] for i in order], [[5, 9, 7][i] for i in order], ALWAYS)
    for place, index in enumerate(order):
        assert torch.equal(again[place], mixed[index])
        assert is_mixed_again[place] == is_mixed[index]


@pytest.mark.parametrize(
    "waves", [[torch.ones(500)], [torch.ones(500), torch.zeros(500)], [torch.ones(1), torch.ones(0)]]
)
def test_alone_silent_or_empty_partners_leave_an_utterance_finite(waves: list[torch.Tensor]) -> None:
    for seed in range(20):
        mixed, _ = mix(waves, list(range(seed, seed + len(waves))), ALWAYS)
        assert all(torch.isfinite(wave).all() for wave in mixed)
        assert torch.equal(mixed[0], waves[0])
