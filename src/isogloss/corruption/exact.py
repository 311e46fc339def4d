"""Masks that hide exactly the wished number of frames: data2vec 2.0 leaves these out of its encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def mask_exactly(
    lengths: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    num_masks: int,
    share: float,
    span: int,
    adjust: float = 0.0,
) -> Tensor:
    """Draw `num_masks` masks for each utterance of a packed batch; True means masked, M×N booleans on the CPU.

    Each hides exactly ⌊`share`·S⌋ of an utterance's S frames: spans that together would cover `share` + `adjust` if none
    overlapped begin anywhere, and single frames are then hidden or shown at random until the count is right
    (data2vec 2.0, arXiv 2212.07525, and its released settings). Utterance i takes its numbers from `generators[i]` (on the CPU) alone.
    """
    masks = [
        torch.stack([_one_mask(length, generator, share, span, adjust) for _ in range(num_masks)])
        for length, generator in zip(lengths, generators, strict=True)
    ]
    return torch.cat(masks, dim=1)


def _one_mask(length: int, generator: torch.Generator, share: float, span: int, adjust: float) -> Tensor:
    is_masked_S = torch.zeros(length, dtype=torch.bool)
    wanted = int(share * length)
    if not wanted:
        return is_masked_S
    num_spans = max(1, int((share + adjust) * length / span))
    starts = torch.randint(length, (num_spans, 1), generator=generator)
    is_masked_S[(starts + torch.arange(span)).flatten().clamp(max=length - 1)] = True
    excess = int(is_masked_S.sum()) - wanted
    rows = (is_masked_S if excess > 0 else ~is_masked_S).nonzero().squeeze(1)
    chosen = rows[torch.randperm(len(rows), generator=generator)[: abs(excess)]]
    is_masked_S[chosen] = excess < 0
    return is_masked_S
