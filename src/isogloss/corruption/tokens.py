"""Which tokens BERT hides, and what stands in their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CorruptedTokens:
    """Tokens with some of them replaced (N int64, on the CPU), and which ones are to be guessed (N booleans)."""

    tokens_N: Tensor
    is_target_N: Tensor


def corrupt_tokens(
    tokens_N: Tensor,
    lengths: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    mask_token: int,
    choices: tuple[int, int],
    probability: float,
    span: int = 1,
    random_share: float = 0.1,
    kept_share: float = 0.1,
) -> CorruptedTokens:
    """Choose about `probability` of the tokens of each text, at least one, and hide them.

    ⌊probability·U/span + uniform⌋ spans (BERT, arXiv 1810.04805: span 1; SpanBERT, arXiv 1907.10529, and SLAM: 5) at starts
    without replacement. A span is replaced by the mask token, by random tokens in `random_share` of the cases (from `choices`,
    first and one past last), and left as it is in `kept_share` of them. Text i draws from `generators[i]` alone.
    """
    tokens_N = tokens_N.clone()
    is_target_N = torch.zeros(len(tokens_N), dtype=torch.bool)
    first = 0
    for length, generator in zip(lengths, generators, strict=True):
        size = min(span, length)
        if size:
            rounding = float(torch.rand((), generator=generator))
            num_starts = length - size + 1
            count = min(max(1, int(probability * length / size + rounding)), num_starts)
            starts = torch.randperm(num_starts, generator=generator)[:count].tolist()
            actions = torch.rand(count, generator=generator).tolist()
            for start, action in zip(starts, actions, strict=True):
                place = slice(first + start, first + start + size)
                is_target_N[place] = True
                if action < random_share:
                    tokens_N[place] = torch.randint(*choices, (size,), generator=generator)
                elif action >= random_share + kept_share:
                    tokens_N[place] = mask_token
        first += length
    return CorruptedTokens(tokens_N, is_target_N)
