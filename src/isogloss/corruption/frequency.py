"""Alterations of a spectrum that reach over a whole utterance: a band of bins set to zero, noise on the magnitudes (TERA)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_bands(num_bins: int, generators: Sequence[torch.Generator], *, max_share: float) -> Tensor:
    """Draw one band of bins for each utterance, B×F booleans on the CPU (arXiv 2007.06028).

    Its width is uniform over 0 … ⌊`max_share`·F⌋ (the paper's W_C: 16 of 80 bins), its place uniform. Utterance i takes its
    numbers from `generators[i]` alone.
    """
    is_hidden_BF = torch.zeros(len(generators), num_bins, dtype=torch.bool)
    widest = int(max_share * num_bins)
    for row_F, generator in zip(is_hidden_BF, generators, strict=True):
        width = int(torch.randint(widest + 1, (), generator=generator))
        start = int(torch.randint(num_bins - width + 1, (), generator=generator))
        row_F[start : start + width] = True
    return is_hidden_BF


def magnitude_noise(
    lengths: Sequence[int],
    width: int,
    generators: Sequence[torch.Generator],
    *,
    probability: float,
    std: float,
) -> Tensor:
    """Return noise to add, N×F on the CPU: N(0, `std`²) in every cell of the utterances that a die picks, zero in the others.

    arXiv 2007.06028 `generators[i]` (on the CPU) gives utterance i its die and its noise.
    """
    noise_NF = torch.zeros(sum(lengths), width)
    for part, generator in zip(noise_NF.split(list(lengths)), generators, strict=True):
        if float(torch.rand((), generator=generator)) < probability:
            part.normal_(std=std, generator=generator)
    return noise_NF
