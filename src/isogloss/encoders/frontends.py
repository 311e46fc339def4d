"""From packed samples to packed frames: the convolution stack of wav2vec 2.0, HuBERT and their relatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.core.lengths import ConvGeometry
from isogloss.core.types import Packed
from isogloss.nn.convolution import StridedConv
from isogloss.nn.norm import UtteranceNorm, normalized_first_conv
from isogloss.nn.stream import StreamLayout


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
        """Turn N samples into frames of the last convolution's width."""
        layout = StreamLayout.of(audio.sizes, self.geometry)
        lengths_B = torch.tensor(layout.frames_B, dtype=torch.int64)
        if not layout.num_samples:
            return Packed(audio.values_ND.new_zeros(0, self.width), lengths_B)
        stream_T = layout.pack(audio.values_ND)
        if self.norm == "group":
            values_RD = F.gelu(self._first_layer(audio, layout, stream_T))
        else:
            values_RD = F.gelu(self.norms[0](self.convs[0](stream_T.unsqueeze(1))))
        for index, conv in enumerate(self.convs[1:], start=1):
            values_RD = conv(values_RD)
            values_RD = F.gelu(self.norms[index](values_RD) if self.norm == "layer" else values_RD)
        return Packed(values_RD.index_select(0, layout.kept_rows_N(values_RD.device)), lengths_B)

    def _first_layer(self, audio: Packed, layout: StreamLayout, stream_T: Tensor) -> Tensor:
        conv, norm = self.convs[0], self.norms[0]
        assert isinstance(conv, StridedConv)
        assert isinstance(norm, UtteranceNorm)
        kernel, stride = self.geometry.kernels[0], self.geometry.strides[0]
        rows_per_slot = self.geometry.hop // stride
        has_frames = [frames > 0 for frames in layout.frames_B]
        windows_B = [
            part.unfold(0, kernel, stride) for part, keep in zip(audio.split(), has_frames, strict=True) if keep
        ]
        rows_B = [slots * rows_per_slot for slots in layout.num_slots_B if slots]
        # The last frames may look beyond the last slot.
        rows_B[-1] += layout.num_samples // stride - sum(rows_B)
        return normalized_first_conv(stream_T, windows_B, rows_B, conv.weight.squeeze(2), norm, stride)
