"""Binary noise-contrastive estimation: is this the frame that followed, yes or no? (arXiv 1904.05862). Sums out."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def binary_nce(scores_MC: Tensor, negative_weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return Σ −log σ(positive) − weight·Σ log σ(−negative) in nats, and how many positives score above all their negatives.

    `scores_MC` is M×(1+K) with the positive first, computed in fp32. With scores of zero each row costs (1 + weight·K)·ln 2.
    The paper's λ is the weight times K: it takes the mean over negatives, the released code the sum.
    """
    scores_MC = scores_MC.float()
    positive_M, negatives_MK = scores_MC[:, 0], scores_MC[:, 1:]
    loss = F.softplus(-positive_M).sum() + negative_weight * F.softplus(negatives_MK).sum()
    num_correct = (positive_M > negatives_MK.amax(1)).sum()
    return loss, num_correct
