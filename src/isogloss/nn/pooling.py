"""From the frames of an utterance to one vector: the mean, or mean and deviation under learned attention."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from isogloss.core.types import Packed

Pooling = Literal["mean", "statistics", "attention"]


class Pool(nn.Module):
    """Pools packed frames, N×D, to B×`out_width`.

    "mean"; "statistics": mean and standard deviation; "attention": both under weights that a tanh layer of `attention_width`
    gives each frame (attentive statistics, arXiv 1803.10963, eqs. 2 to 6). An utterance without frames gives zeros.
    """

    def __init__(self, width: int, kind: Pooling, attention_width: int = 128) -> None:
        super().__init__()
        self.kind = kind
        self.out_width = width if kind == "mean" else 2 * width
        if kind == "attention":
            self.hidden = nn.Linear(width, attention_width)
            self.score = nn.Linear(attention_width, 1)

    def forward(self, frames: Packed) -> Tensor:
        """Return one vector per utterance."""
        if self.kind == "mean":
            return frames.mean()
        weights_N = self._weights(frames)
        values_ND = frames.values_ND.float()
        mean_BD = self._sum(frames, values_ND * weights_N.unsqueeze(1))
        centered_ND = values_ND - mean_BD.index_select(0, frames.utterance_N)
        variance_BD = self._sum(frames, centered_ND.square() * weights_N.unsqueeze(1))
        # the root has no gradient at zero, where all frames of an utterance are alike
        return torch.cat([mean_BD, torch.sqrt(variance_BD + 1e-7)], dim=1)

    def _weights(self, frames: Packed) -> Tensor:
        """Return the weight of each frame; they add up to 1 over an utterance."""
        if self.kind == "statistics":
            counts_N = frames.lengths_B.to(frames.values_ND.device).index_select(0, frames.utterance_N)
            return 1.0 / counts_N.float()
        scores_N = self.score(torch.tanh(self.hidden(frames.values_ND))).squeeze(1).float()
        weights = [part.softmax(0) for part in scores_N.split(frames.sizes)]
        return torch.cat(weights) if weights else scores_N

    def _sum(self, frames: Packed, values_ND: Tensor) -> Tensor:
        return values_ND.new_zeros(len(frames), values_ND.shape[1]).index_add(0, frames.utterance_N, values_ND)
