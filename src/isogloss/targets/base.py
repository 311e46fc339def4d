"""What a quantizer says about frames, whatever its kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Quantized:
    """Targets of M frames, and the codes that they were made of.

    `targets_MD` carries the gradient; `codes_MG` (int64) is the chosen code of each codebook;
    `mean_probabilities_GC` is the distribution over codes that the frames have on average, differentiable.
    """

    targets_MD: Tensor
    codes_MG: Tensor
    mean_probabilities_GC: Tensor

    @property
    def probability_perplexity(self) -> Tensor:
        """Perplexity of the mean distribution, summed over codebooks: G when collapsed, G·C when uniform."""
        return perplexity(self.mean_probabilities_GC)

    @property
    def code_perplexity(self) -> Tensor:
        """Perplexity of the chosen codes, summed over codebooks (not differentiable); never more than G·M."""
        num_groups, num_codes = self.mean_probabilities_GC.shape
        offsets_G = torch.arange(num_groups, device=self.codes_MG.device) * num_codes
        counts = torch.bincount((self.codes_MG + offsets_G).flatten(), minlength=num_groups * num_codes)
        return perplexity(counts.view(num_groups, num_codes) / max(len(self.codes_MG), 1))


def perplexity(probabilities_GC: Tensor) -> Tensor:
    """Return Σ_g exp(H(p_g)), with 0·log 0 = 0 (arXiv 2006.11477, eq. 4, in its released form)."""
    return torch.exp(-torch.xlogy(probabilities_GC, probabilities_GC).sum(dim=1)).sum()
