"""Cosine cross-entropy over units, and what it says about health (HuBERT, arXiv 2106.07447). Sums out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isogloss.nn.product import linear

Metrics = dict[str, tuple[Tensor | float, Tensor | float]]


def unit_logits(context_MF: Tensor, embeddings_CF: Tensor, *, temperature: float) -> Tensor:
    """Return cos(context, embedding)/temperature for every unit, M×C, in fp32.

    fairseq puts the right unit beside all C and sets its copy to −∞, which is the same softmax from (C+1)·M·F stored
    numbers; one product of normalised matrices needs M·C.
    """
    with torch.autocast(context_MF.device.type, enabled=False):
        context_MF = F.normalize(context_MF.float(), dim=1, eps=1e-8) / temperature
        return linear(context_MF, F.normalize(embeddings_CF.float(), dim=1, eps=1e-8))


def unit_cross_entropy(logits_MC: Tensor, units_M: Tensor) -> Tensor:
    """Return −Σ log softmax of the right unit (nats)."""
    return F.cross_entropy(logits_MC.float(), units_M, reduction="sum")


def unit_metrics(logits_MC: Tensor, units_M: Tensor) -> Metrics:
    """Return how the predictions do, each as (sum, count): what the watchdog reads.

    `accuracy`, and `majority_share`: what guessing the commonest unit of these frames would score. `predicted_units` and
    `target_units` count distinct units in the micro-batch; the first falls to one or two where the predictions collapse.
    `gain_over_majority` is accuracy − majority_share, `predicted_ratio` predicted_units/target_units.
    """
    num_frames, num_units = logits_MC.shape
    if num_frames == 0:
        return dict.fromkeys(METRICS, (0.0, 0.0))
    guesses_M = logits_MC.detach().argmax(1)
    counts_C = torch.bincount(units_M, minlength=num_units)
    num_right, num_majority = (guesses_M == units_M).sum(), counts_C.max()
    num_guessed = (torch.bincount(guesses_M, minlength=num_units) > 0).sum()
    num_present = (counts_C > 0).sum()
    return {
        "accuracy": (num_right, num_frames),
        "majority_share": (num_majority, num_frames),
        "gain_over_majority": (num_right - num_majority, num_frames),
        "predicted_units": (num_guessed, 1.0),
        "target_units": (num_present, 1.0),
        "predicted_ratio": (num_guessed / num_present, 1.0),
    }


METRICS = ("accuracy", "majority_share", "gain_over_majority", "predicted_units", "target_units", "predicted_ratio")
