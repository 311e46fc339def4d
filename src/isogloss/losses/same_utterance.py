"""Tell the codes of one's own utterance from those of others (UniSpeech-SAT, arXiv 2110.05752). Sums out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from isogloss.core.types import Packed


def draw_from_all(
    sizes: Sequence[int],
    seeds_B: Tensor,
    num_candidates: int,
    generators: Sequence[torch.Generator],
    device: torch.device,
) -> Tensor:
    """Draw for each row K others of the whole batch, uniformly with replacement; M×K row numbers (int64).

    Utterances are counted in the order of their seeds, so the order in the batch has no effect. A row that is alone in its
    batch gets itself.
    """
    order = torch.as_tensor(seeds_B).cpu().argsort(stable=True).tolist()
    firsts, first = [], 0
    for n in sizes:
        firsts.append(first)
        first += n
    by_seed_M = torch.cat([torch.arange(firsts[i], firsts[i] + sizes[i]) for i in order]).to(device)
    place_M = torch.empty_like(by_seed_M)
    place_M[by_seed_M] = torch.arange(first, device=device)
    drawn = [
        torch.randint(max(first - 1, 1), (n, num_candidates), generator=generator, device=device)
        for n, generator in zip(sizes, generators, strict=True)
    ]
    places_MK = torch.cat(drawn)
    places_MK += places_MK >= place_M.unsqueeze(1)
    return by_seed_M[places_MK.clamp(max=max(first - 1, 0))] if first else places_MK


def same_utterance_logits(
    anchors: Packed, instances_MF: Tensor, rows_MK: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return cos(anchor, instance)/temperature with the row's own instance first, and whether each is of the same utterance.

    Both M×(1+K); in fp32. Candidates are picked from one product of all rows, so nothing of width F is gathered.
    """
    with torch.autocast(instances_MF.device.type, enabled=False):
        anchors_MF = F.normalize(anchors.values_ND.float(), dim=1, eps=1e-8) / temperature
        instances_MF = F.normalize(instances_MF.float(), dim=1, eps=1e-8)
        own_M1 = torch.arange(len(anchors_MF), device=rows_MK.device).unsqueeze(1)
        candidates_MK = torch.cat([own_M1, rows_MK], dim=1)
        logits_MK = (anchors_MF @ instances_MF.t()).gather(1, candidates_MK)
    utterance_M = anchors.utterance_N
    return logits_MK, utterance_M[candidates_MK] == utterance_M.unsqueeze(1)


def same_utterance_loss(logits_MK: Tensor, is_same_MK: Tensor, form: Literal["binary", "softmax"]) -> Tensor:
    """Return the sum over rows of the mean over candidates of a loss, in nats.

    "binary": cross-entropy of "is it the same utterance" for every candidate, as released. "softmax": −log softmax over all
    candidates, averaged over those of the same utterance, as printed in the paper.
    """
    if form == "binary":
        loss_MK = F.binary_cross_entropy_with_logits(logits_MK, is_same_MK.float(), reduction="none")
        return loss_MK.mean(1).sum()
    log_shares_MK = logits_MK.log_softmax(1)
    return -((log_shares_MK * is_same_MK).sum(1) / is_same_MK.sum(1)).sum()


def area_under_curve(logits_MK: Tensor, is_same_MK: Tensor) -> tuple[float, float]:
    """Return the chance that a candidate of the same utterance scores above one of another, and 1; (0, 0) without both kinds.

    The row's own instance (column 0) does not count.
    """
    scores, is_same = logits_MK[:, 1:].flatten(), is_same_MK[:, 1:].flatten()
    num_same = int(is_same.sum())
    num_other = len(is_same) - num_same
    if not num_same or not num_other:
        return 0.0, 0.0
    _, group, counts = scores.unique(return_inverse=True, return_counts=True)
    # Ties share the mean of their ranks.
    ranks = counts.cumsum(0) - (counts - 1) / 2
    rank_sum = float(ranks[group[is_same]].double().sum())
    return (rank_sum - num_same * (num_same + 1) / 2) / (num_same * num_other), 1.0
