"""Codes of frames from a quantizer that nobody trains: the targets of BEST-RQ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 4096  # frames whose distances to all codes are held at a time


class RandomProjectionQuantizer(nn.Module):
    """The code nearest to a random projection of a frame (arXiv 2202.01855): argmin_i ‖norm(c_i) − norm(A x)‖.

    A is Xavier uniform, the codes are N(0, 1), both are drawn once (torch's global generator) and never change. They are
    buffers, saved with the model: other ones would be another target. With G codebooks (USM, arXiv 2303.01037) every
    one has its own projection. Without normalised input few codes are ever chosen.
    """

    projections_GDd: Tensor
    codes_GCd: Tensor

    def __init__(self, width: int, *, num_codebooks: int, num_codes: int, code_width: int) -> None:
        super().__init__()
        projections_GDd = torch.empty(num_codebooks, width, code_width)
        for projection_Dd in projections_GDd:
            nn.init.xavier_uniform_(projection_Dd)
        self.register_buffer("projections_GDd", projections_GDd)
        self.register_buffer("codes_GCd", F.normalize(torch.randn(num_codebooks, num_codes, code_width), dim=2))

    @torch.no_grad()
    def forward(self, frames_MD: Tensor) -> Tensor:
        """Return the code of each frame in each codebook, M×G (int64), in fp32 whatever autocast says."""
        with torch.autocast(frames_MD.device.type, enabled=False):
            chosen = [self._nearest(part.float()) for part in frames_MD.split(_ROWS)]
        return torch.cat(chosen) if chosen else frames_MD.new_zeros(0, len(self.codes_GCd), dtype=torch.int64)

    def _nearest(self, frames_MD: Tensor) -> Tensor:
        # Of unit vectors the nearest is the one with the largest product; the length of A x does not matter then.
        projected_GMd = frames_MD @ self.projections_GDd
        return (projected_GMd @ self.codes_GCd.transpose(1, 2)).argmax(2).t()
