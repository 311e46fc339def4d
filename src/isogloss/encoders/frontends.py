"""From packed samples to packed frames: the convolution stack of wav2vec 2.0, HuBERT and their relatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.core.lengths import ConvGeometry
from isogloss.core.types import Packed
from isogloss.nn.convolution import StridedConv
from isogloss.nn.norm import FirstConv, UtteranceNorm
from isogloss.nn.stream import StreamLayout

# Frames of a piece of the stream when no gradient is wanted: two seconds on a CPU, for its cache; minutes elsewhere, for memory.
_PIECE_FRAMES = {True: 100, False: 15_000}


class WaveFrontend(nn.Module):
    """Convolutions with GELU over one stream of samples (arXiv 2006.11477, §2; wav2vec 2.0's code for both norms).

    `norm` is "group": after the first convolution only, statistics over the time of each utterance; or "layer": over the
    channels after each convolution. Every utterance is computed as if it were alone, whatever its number of samples.
    """

    def __init__(
        self,
        channels: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        *,
        norm: str,
        bias: bool,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.geometry = ConvGeometry(tuple(kernels), tuple(strides))
        self.norm = norm
        self.width = channels[-1]
        # A bias before the group norm would be taken out again by its mean: the first layer has none there.
        self.convs = nn.ModuleList(
            StridedConv(before, after, kernel, stride, bias=bias and not (norm == "group" and index == 0))
            for index, (before, after, kernel, stride) in enumerate(
                zip([1, *channels[:-1]], channels, kernels, strides, strict=True)
            )
        )
        self.norms = nn.ModuleList(
            [UtteranceNorm(channels[0], eps)]
            if norm == "group"
            else [nn.LayerNorm(width, eps=eps) for width in channels]
        )

    def forward(self, audio: Packed) -> Packed:
        """Turn N samples into frames of the last convolution's width.

        Without gradients the stream is taken in pieces of a few seconds, with equal results: a recording of hours then needs
        little memory, and short-lived values stay in the processor's cache.
        """
        layout = StreamLayout.of(audio.sizes, self.geometry)
        lengths_B = torch.tensor(layout.frames_B, dtype=torch.int64)
        if not layout.num_samples:
            return Packed(audio.values_ND.new_zeros(0, self.width), lengths_B)
        stream_T = layout.pack(audio.values_ND)
        first_conv = self._first_conv(audio, layout) if self.norm == "group" else None
        num_rows = self.geometry.num_frames(len(stream_T))
        step = num_rows if torch.is_grad_enabled() else _PIECE_FRAMES[stream_T.device.type == "cpu"]
        pieces = [
            self._frames(stream_T, layout, first_conv, start, min(start + step, num_rows))
            for start in range(0, num_rows, step)
        ]
        values_RD = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return Packed(values_RD.index_select(0, layout.kept_rows_N(values_RD.device)), lengths_B)

    def _frames(
        self, stream_T: Tensor, layout: StreamLayout, first_conv: FirstConv | None, start: int, end: int
    ) -> Tensor:
        """Return rows `start` to `end` of the last layer's output over the stream."""
        hop, field = self.geometry.hop, self.geometry.receptive_field
        piece_T = stream_T[start * hop : (end - 1) * hop + field]
        if first_conv is None:
            values_RD = F.gelu(self.norms[0](self.convs[0](piece_T.unsqueeze(1))))
        else:
            values_RD = F.gelu(first_conv(piece_T, self._first_rows(layout, start, end)))
        for index, conv in enumerate(self.convs[1:], start=1):
            values_RD = conv(values_RD)
            values_RD = F.gelu(self.norms[index](values_RD) if self.norm == "layer" else values_RD)
        return values_RD

    def _first_conv(self, audio: Packed, layout: StreamLayout) -> FirstConv:
        conv, norm = self.convs[0], self.norms[0]
        assert isinstance(conv, StridedConv)
        assert isinstance(norm, UtteranceNorm)
        kernel, stride = self.geometry.kernels[0], self.geometry.strides[0]
        windows_B = [
            part.unfold(0, kernel, stride)
            for part, frames in zip(audio.split(), layout.frames_B, strict=True)
            if frames
        ]
        return FirstConv.of(windows_B, conv.weight.squeeze(2), norm, stride)

    def _first_rows(self, layout: StreamLayout, start: int, end: int) -> list[int]:
        """Return how many of the first layer's rows that frames `start` to `end` see lie in each utterance's slots."""
        per_slot = self.geometry.hop // self.geometry.strides[0]
        kernel, stride = self.geometry.kernels[0], self.geometry.strides[0]
        samples = (end - 1 - start) * self.geometry.hop + self.geometry.receptive_field
        first_row, last_row = start * per_slot, start * per_slot + (samples - kernel) // stride + 1
        owners = [
            (first, first + slots)
            for first, slots in zip(layout.first_slot_B, layout.num_slots_B, strict=True)
            if slots
        ]
        return [max(min(stop * per_slot, last_row) - max(first * per_slot, first_row), 0) for first, stop in owners]
