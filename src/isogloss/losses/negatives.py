"""Who stands against the positive: frames drawn as negatives, as row numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_within_utterances(
    lengths: Sequence[int], num_negatives: int, generators: Sequence[torch.Generator], device: torch.device
) -> list[Tensor]:
    """Draw, for each row of each utterance, K of its other rows, uniformly with replacement (arXiv 2006.11477, §3.2).

    Returns one m×K tensor of row numbers within the utterance each (int64). An utterance of one row has no other: it gets
    itself, which a loss that leaves out copies of the positive counts as nothing.
    """
    drawn = []
    for n, generator in zip(lengths, generators, strict=True):
        rows_MK = torch.randint(max(n - 1, 1), (n, num_negatives), generator=generator, device=device)
        rows_MK += rows_MK >= torch.arange(n, device=device)[:, None]
        drawn.append(rows_MK.clamp_(max=max(n - 1, 0)))
    return drawn


def draw_from_batch(
    lengths: Sequence[int],
    num_anchors: Sequence[int],
    num_steps: int,
    num_negatives: int,
    generators: Sequence[torch.Generator],
    device: torch.device,
) -> Tensor:
    """Draw, for anchor t of each utterance, negatives from all frames of the batch but its positives t+1 … t+num_steps.

    `num_anchors` says how many frames of each utterance, from its first, are anchors. Returns A×K rows of the packed batch.
    """
    total, first, drawn = sum(lengths), 0, []
    for n, anchors, generator in zip(lengths, num_anchors, generators, strict=True):
        rows_AK = torch.randint(max(total - num_steps, 1), (anchors, num_negatives), generator=generator, device=device)
        first_positive_A = first + 1 + torch.arange(anchors, device=device)
        drawn.append(rows_AK + num_steps * (rows_AK >= first_positive_A[:, None]))
        first += n
    return torch.cat(drawn)


def draw_as_reference(
    lengths: Sequence[int],
    num_anchors: Sequence[int],
    num_negatives: int,
    generators: Sequence[torch.Generator],
    device: torch.device,
) -> Tensor:
    """Draw as CPC_audio does: an utterance of the batch uniformly, then an offset 1 … S−1 from the anchor's time, modulo S.

    S is the length of the drawn utterance (in the reference all have 128 frames). The positive is not left out: about a
    tenth of the anchors of a batch of eight meet it among their negatives. Returns A×K rows of the packed batch.
    """
    lengths_B = torch.tensor(lengths, device=device)
    firsts_B = lengths_B.cumsum(0) - lengths_B
    usable_B = (lengths_B > 1).nonzero().squeeze(1)
    drawn = []
    for anchors, generator in zip(num_anchors, generators, strict=True):
        shape = (anchors, num_negatives)
        if not anchors:
            drawn.append(torch.zeros(shape, dtype=torch.int64, device=device))
            continue
        utterance_AK = usable_B[torch.randint(len(usable_B), shape, generator=generator, device=device)]
        size_AK = lengths_B[utterance_AK]
        fraction_AK = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
        offset_AK = 1 + (fraction_AK * (size_AK - 1)).long()
        time_A = torch.arange(anchors, device=device)
        drawn.append(firsts_B[utterance_AK] + (time_A[:, None] + offset_AK) % size_AK)
    return torch.cat(drawn)
