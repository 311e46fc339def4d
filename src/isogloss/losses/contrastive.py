"""InfoNCE: tell the positive from its negatives (arXiv 1807.03748, eq. 4). Sums out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from isogloss.losses.negatives import draw_within_utterances


def cosine_logits(
    context_MD: Tensor,
    targets_MD: Tensor,
    lengths: Sequence[int],
    negatives: Sequence[Tensor],
    *,
    temperature: float,
    codes_MG: Tensor | None = None,
) -> Tensor:
    """Return cos(context, candidate)/temperature for each row, M×(1+K), the positive first (arXiv 2006.11477, eq. 3).

    Rows are utterances end to end (`lengths`); `negatives` gives each utterance the rows, within itself, of its negatives
    (`losses.negatives.draw_within_utterances`). Negatives with the same codes as the positive cannot be told from it and
    get −∞; without `codes_MG` those that are the positive's own row do. All in fp32.

    The similarities come from one product for each utterance, from which the candidates are picked: K vectors a row are
    never gathered, which would take K times the memory.
    """
    with torch.autocast(context_MD.device.type, enabled=False):
        context_MD = F.normalize(context_MD.float(), dim=1, eps=1e-8) / temperature
        targets_MD = F.normalize(targets_MD.float(), dim=1, eps=1e-8)
        if codes_MG is None:
            codes_MG = torch.arange(len(context_MD), device=context_MD.device)[:, None]
        logits, sizes = [], list(lengths)
        parts = zip(context_MD.split(sizes), targets_MD.split(sizes), codes_MG.split(sizes), negatives, strict=True)
        for context, targets, codes, rows_MK in parts:
            own_M1 = torch.arange(len(context), device=rows_MK.device)[:, None]
            logits_MK = (context @ targets.T).gather(1, torch.cat([own_M1, rows_MK], dim=1))
            is_copy_MK = F.pad((codes[rows_MK] == codes[:, None]).all(2), (1, 0))
            logits.append(logits_MK.masked_fill(is_copy_MK, float("-inf")))
        return torch.cat(logits)


def contrast(
    context_MD: Tensor,
    targets_MD: Tensor,
    lengths: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    num_negatives: int,
    temperature: float,
    codes_MG: Tensor | None = None,
) -> Tensor:
    """Return `cosine_logits` of each row against its own target and those of K other rows of its utterance, M×(1+K).

    `generators[i]`, on the device of the rows, draws the negatives of utterance i.
    """
    negatives = draw_within_utterances(lengths, num_negatives, generators, context_MD.device)
    return cosine_logits(context_MD, targets_MD, lengths, negatives, temperature=temperature, codes_MG=codes_MG)


def info_nce(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return −Σ log softmax of the first candidate (nats), and how many rows have it above all others.

    `logits` is …×(1+K). A positive that merely ties with a negative does not count as told apart, nor does one whose
    negatives are all −∞: both are what a collapse looks like.
    """
    logits = logits.float()
    positive, best_negative = logits[..., 0], logits[..., 1:].amax(-1)
    loss = (logits.logsumexp(-1) - positive).sum()
    num_correct = ((positive > best_negative) & (best_negative > float("-inf"))).sum()
    return loss, num_correct
