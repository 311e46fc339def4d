"""Utterance and noise mixing (WavLM, arXiv 2110.13900): a second voice or a noise over part of an utterance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isogloss.core.types import Packed

Noise = Callable[[torch.Generator, int], Tensor]  # (randomness, samples wanted) → a waveform of at most so many


@dataclass(frozen=True)
class Mixing:
    """What is mixed, how often, how loud: the defaults are WavLM Base's (Base+ and Large: noise_probability 0.1).

    Each utterance is mixed with `probability`; of those, a share of `noise_probability` gets noise and the others a second
    utterance. The second signal covers at most `max_share` of the utterance; ratios are in dB, drawn evenly.
    """

    probability: float = 0.2
    noise_probability: float = 0.0
    max_share: float = 0.5
    speech_snr: tuple[float, float] = (-5.0, 5.0)
    noise_snr: tuple[float, float] = (-5.0, 20.0)


def mix_utterances(
    audio: Packed,
    seeds_B: Tensor,
    generators: Sequence[torch.Generator],
    mixing: Mixing,
    noise: Noise | None = None,
) -> tuple[Packed, Tensor]:
    """Return the mixed batch, and which utterances were mixed (B booleans on the CPU).

    A stretch of the second signal, of a length drawn evenly from 0 to `max_share` of the utterance, is added at a place of
    its own in either; it is scaled by √(P / (P₂·10^(snr/10))), powers taken over whole signals. The second signal is always
    as it was before any mixing, and never the utterance itself (the released code may draw both). Utterance i takes its
    numbers from `generators[i]` (on the CPU) alone and its partner by the order of `seeds_B`, so the order in the batch has
    no effect; alone in its batch, it has no partner and stays as it is. Without `noise` only utterances are mixed.
    """
    clean = audio.split()
    powers = [wave.float().square().mean() for wave in clean]
    by_seed = torch.as_tensor(seeds_B).argsort(stable=True).tolist()
    mixed_N = audio.values_ND.clone()
    is_mixed_B = torch.zeros(len(clean), dtype=torch.bool)
    for index, (wave, draws) in enumerate(zip(clean, generators, strict=True)):
        is_chosen, is_noise, level, share, place, second_place, who = torch.rand(7, generator=draws).tolist()
        length = int(share * (int(mixing.max_share * len(wave)) + 1))
        if is_chosen >= mixing.probability or length == 0:
            continue
        if noise is not None and is_noise < mixing.noise_probability:
            second, (low, high) = noise(draws, len(wave)).to(wave), mixing.noise_snr
            second_power = second.float().square().mean() if len(second) else wave.new_zeros(())
        else:
            others = [other for other in by_seed if other != index and len(clean[other])]
            if not others:
                continue
            partner = others[int(who * len(others))]
            second, second_power, (low, high) = clean[partner], powers[partner], mixing.speech_snr
        length = min(length, len(second))
        start = int(place * (len(wave) - length + 1))
        second_start = int(second_place * (len(second) - length + 1))
        snr = low + level * (high - low)
        # A silent second signal has no scale; it adds nothing.
        scale = torch.where(second_power > 0, powers[index] / (second_power * 10 ** (snr / 10)), 0.0).sqrt()
        first = audio.offsets[index] + start
        mixed_N[first : first + length] += scale.to(wave.dtype) * second[second_start : second_start + length]
        is_mixed_B[index] = True
    return audio.with_values(mixed_N), is_mixed_B
