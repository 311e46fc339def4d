"""Fewer frames from a spectrum: stacked, or by two strided 2-D convolutions, each utterance of a packed stream by itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.core.types import Packed
from isogloss.nn.anchor import zero_of

_PIECE_FRAMES = 3000  # frames out (two minutes) at a time where no gradient is wanted


def stack_frames(frames: Packed, num_stacked: int) -> Packed:
    """Put `num_stacked` successive frames of an utterance side by side, ⌊n/num_stacked⌋ rows; what is left over at its end goes."""
    sizes_B = [n // num_stacked for n in frames.sizes]
    parts = [part[: n * num_stacked] for part, n in zip(frames.split(), sizes_B, strict=True)]
    values_ND = torch.cat(parts).view(-1, num_stacked * frames.values_ND.shape[1])
    return Packed(values_ND, torch.tensor(sizes_B, dtype=torch.int64))


class ConvSubsampling(nn.Module):
    """Two 2-D convolutions, kernel 3×3, stride 2 over time and bins, ReLU after each (arXiv 2010.10504, §3.1).

    No padding in time: row t sees frames 4t … 4t + 6 of its own utterance, of which it is the only one to own 4t … 4t + 3. One
    row of zeros at either end of the bins.
    """

    def __init__(self, num_bins: int, channels: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels[0], 3, stride=2, padding=(0, 1))
        self.second = nn.Conv2d(channels[0], channels[1], 3, stride=2, padding=(0, 1))
        self.width = channels[1] * -(-num_bins // 4)
        for conv in (self.first, self.second):
            nn.init.kaiming_normal_(conv.weight)

    def forward(self, spectrum: Packed) -> Packed:
        """Turn n frames of F values into max(⌊(n − 3)/4⌋, 0) rows of `width`."""
        sizes_B = [max((n - 3) // 4, 0) for n in spectrum.sizes]
        lengths_B = torch.tensor(sizes_B, dtype=torch.int64)
        if not sum(sizes_B):
            return Packed(spectrum.values_ND.new_zeros(0, self.width) + zero_of(self.parameters()), lengths_B)
        # Every utterance begins at a multiple of 4 frames; the rows that straddle a border are dropped.
        pieces, kept, first = [], [], 0
        for part, n in zip(spectrum.split(), sizes_B, strict=True):
            if n:
                pieces.append(F.pad(part, (0, 0, 0, -len(part) % 4)))
                kept.append(torch.arange(first, first + n))
                first += len(pieces[-1]) // 4
        stream_RF = F.pad(torch.cat(pieces), (0, 0, 0, 3))
        step = first if torch.is_grad_enabled() else _PIECE_FRAMES
        rows = [
            self._convolve(stream_RF[4 * start : 4 * min(start + step, first) + 3]) for start in range(0, first, step)
        ]
        values_ND = torch.cat(rows).index_select(0, torch.cat(kept).to(stream_RF.device))
        return Packed(values_ND, lengths_B)

    def _convolve(self, stream_RF: Tensor) -> Tensor:
        image = F.relu(self.second(F.relu(self.first(stream_RF[None, None]))))
        return image.squeeze(0).transpose(0, 1).flatten(1)  # rows × channels·bins
