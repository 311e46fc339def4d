"""Spans whose starts are drawn frame by frame, and noise in the place of what is hidden: w2v-Conformer, w2v-BERT, BEST-RQ."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isogloss.core.types import Packed


def mask_bernoulli(
    lengths: Sequence[int], generators: Sequence[torch.Generator], *, start_probability: float, span: int
) -> Tensor:
    """Draw a mask for each utterance of a packed batch; True means masked, N booleans on the CPU.

    Every frame begins a span of `span` frames with `start_probability`, by itself (arXiv 2010.10504, 2108.06209,
    2202.01855); spans overlap and end with their utterance. A frame with `span` − 1 frames before it is hidden with
    probability 1 − (1 − p)^span: .49 for .065 and 10, .33 for .01 and 40. An utterance may have no span.
    """
    masks = []
    for length, generator in zip(lengths, generators, strict=True):
        is_start_S = torch.rand(length, generator=generator) < start_probability
        started_S = is_start_S.cumsum(0)
        # Starts among the last `span` frames, this one included.
        before_S = torch.cat([started_S.new_zeros(min(span, length)), started_S[:-span]])
        masks.append(started_S > before_S)
    return torch.cat(masks)


def fill_with_noise(
    values: Packed, is_masked_N: Tensor, generators: Sequence[torch.Generator], *, std: float
) -> Packed:
    """Put N(0, std²) into the masked rows, each number drawn by itself from its utterance's generator (on the values' device)."""
    noise_ND = torch.empty_like(values.values_ND, dtype=torch.float32)
    for part, generator in zip(noise_ND.split(values.sizes), generators, strict=True):
        part.normal_(0.0, std, generator=generator)
    is_masked_N1 = is_masked_N.to(values.values_ND.device).unsqueeze(1)
    return values.with_values(torch.where(is_masked_N1, noise_ND.to(values.values_ND.dtype), values.values_ND))
