"""Regression onto a teacher's frames, and what it says about health. Sums out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Metrics = dict[str, tuple[Tensor | float, Tensor | float]]


def regression(guesses_MD: Tensor, targets_MD: Tensor, smooth_l1: float = 0.0) -> Tensor:
    """Return Σ ‖g − y‖²/√D over frames, or with β = `smooth_l1` > 0 Σ smoothL1_β(g − y)/√D (data2vec, arXiv 2202.03555).

    With β the error counts (·)²/(2β) below it, and |·| − β/2 above, so that its gradient is never more than 1.
    """
    scale = float(guesses_MD.shape[1] ** -0.5)
    if smooth_l1 > 0:
        total = F.smooth_l1_loss(guesses_MD.float(), targets_MD, beta=smooth_l1, reduction="sum")
    else:
        total = (guesses_MD.float() - targets_MD).square().sum()
    return total * scale


@torch.no_grad()
def regression_metrics(guesses_MD: Tensor, targets_MD: Tensor) -> Metrics:
    """Return `fvu`, `target_std`, `prediction_std` and `target_rank`, each as (sum, count).

    `fvu` is the fraction of variance unexplained, Σ‖g − y‖²/Σ‖y‖² (targets have zero mean over an utterance): 1 for whoever
    always predicts zero. The loss alone does not show learning: it is proportional to the targets' variance, which grows as layers agree.
    The standard deviations are over frames, averaged over channels: they fall towards 0 where all frames become one.
    `target_rank` is the participation ratio of the targets' covariance over frames, (Σλ)²/Σλ² of its eigenvalues λ: D where all
    directions vary alike, 1 where only one does, which standard deviations do not show.
    """
    guesses_MD = guesses_MD.float()
    return {
        "fvu": ((guesses_MD - targets_MD).square().sum(), targets_MD.square().sum()),
        "target_std": _channel_std(targets_MD),
        "prediction_std": _channel_std(guesses_MD),
        "target_rank": _participation_ratio(targets_MD),
    }


def _channel_std(frames_MD: Tensor) -> tuple[Tensor | float, float]:
    if len(frames_MD) < 2:
        return 0.0, 0.0
    return frames_MD.std(0).mean() * len(frames_MD), float(len(frames_MD))


def _participation_ratio(frames_MD: Tensor) -> tuple[Tensor | float, float]:
    if len(frames_MD) < 2:
        return 0.0, 0.0
    centered_MD = frames_MD.float() - frames_MD.float().mean(0)
    if len(centered_MD) < centered_MD.shape[1]:
        centered_MD = (
            centered_MD.T
        )  # of a matrix and its transpose the products have the same eigenvalues but for zeros
    with torch.autocast(frames_MD.device.type, enabled=False):
        gram_DD = centered_MD.T @ centered_MD
    ratio = gram_DD.trace().square() / gram_DD.square().sum().clamp(min=1e-30)
    return ratio * len(frames_MD), float(len(frames_MD))
