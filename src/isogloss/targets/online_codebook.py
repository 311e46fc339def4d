"""Codebooks that follow the frames assigned to them: the online clusters of DinoSR and SpidR."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isogloss.core.dist import sum_over_ranks


class OnlineCodebook(nn.Module):
    """G codebooks of C codes; a code is the mean of its recent frames, s_v/n_v (DinoSR, arXiv 2305.10005; SpidR, 2512.20308).

        s_v ← δ s_v + (1−δ) Σ y,   n_v ← δ n_v + (1−δ) · count     for the codes that were assigned, the others stay

    The sums run over all micro-batches and ranks of an update: `collect` adds frames, `step` exchanges the sums and moves the
    codes. So codes stand still within an update, and do not depend on how it was divided.

    Codes begin at N(0, `start_std`²) with n = 1, where targets have mean 0 and variance 1. Well below 1, a code that nobody chose
    yet is nearest to every frame that no other code fits (y·e < ‖e‖²/2 for all of them), and so comes to life. At 1 it is
    farther from every frame than any mean of frames, and stays dead.
    """

    sums_GCD: Tensor
    counts_GC: Tensor
    new_sums_GCD: Tensor
    new_counts_GC: Tensor

    def __init__(self, num_books: int, num_codes: int, width: int, decay: float, start_std: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("sums_GCD", start_std * torch.randn(num_books, num_codes, width))
        self.register_buffer("counts_GC", torch.ones(num_books, num_codes))
        # Between updates these are nought, so a checkpoint need not hold them.
        self.register_buffer("new_sums_GCD", torch.zeros(num_books, num_codes, width), persistent=False)
        self.register_buffer("new_counts_GC", torch.zeros(num_books, num_codes), persistent=False)

    @property
    def codes_GCD(self) -> Tensor:
        """The codes."""
        return self.sums_GCD / self.counts_GC.unsqueeze(2)

    @torch.no_grad()
    def assign(self, frames_GMD: Tensor) -> Tensor:
        """Return the nearest code of each frame in each codebook, G×M (int64), in fp32 whatever autocast says."""
        with torch.autocast(frames_GMD.device.type, enabled=False):
            codes_GCD = self.codes_GCD
            # ‖y − e‖² without ‖y‖², which is the same for all codes
            distances_GMC = torch.baddbmm(
                codes_GCD.square().sum(2).unsqueeze(1), frames_GMD.float(), codes_GCD.transpose(1, 2), alpha=-2.0
            )
            return distances_GMC.argmin(2)

    @torch.no_grad()
    def collect(self, frames_GMD: Tensor, codes_GM: Tensor) -> None:
        """Add frames (G×M×D) to the sums of their codes; frames that are not finite are left out."""
        is_finite_GM = torch.isfinite(frames_GMD).all(2)
        frames_GMD = torch.where(is_finite_GM.unsqueeze(2), frames_GMD.float(), 0.0)
        places_GM = (
            codes_GM + torch.arange(len(codes_GM), device=codes_GM.device).unsqueeze(1) * self.counts_GC.shape[1]
        )
        self.new_sums_GCD.view(-1, frames_GMD.shape[2]).index_add_(0, places_GM.flatten(), frames_GMD.flatten(0, 1))
        self.new_counts_GC.view(-1).index_add_(0, places_GM.flatten(), is_finite_GM.flatten().float())

    @torch.no_grad()
    def step(self) -> None:
        """Move the codes by what was collected on all ranks since the last step; every rank must call it."""
        sums_GCD, counts_GC = sum_over_ranks(self.new_sums_GCD), sum_over_ranks(self.new_counts_GC)
        is_used_GC = counts_GC > 0
        self.sums_GCD.copy_(
            torch.where(is_used_GC.unsqueeze(2), self.sums_GCD.lerp(sums_GCD, 1 - self.decay), self.sums_GCD)
        )
        self.counts_GC.copy_(torch.where(is_used_GC, self.counts_GC.lerp(counts_GC, 1 - self.decay), self.counts_GC))
        self.forget()

    def forget(self) -> None:
        """Drop what was collected since the last step."""
        self.new_sums_GCD.zero_()
        self.new_counts_GC.zero_()
