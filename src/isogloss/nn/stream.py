"""Where each utterance lies in the one stream that a stack of convolutions runs over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from isogloss.core.lengths import ConvGeometry


@dataclass(frozen=True)
class StreamLayout:
    """A place for every utterance such that one strided convolution stack computes all their frames exactly.

    Every utterance begins at a multiple of the hop (plus what the padding of the stack reaches to the left), and has room
    for all its rows at every depth, so that row r of its frames is row `first_slot + r` of the last layer's output. Rows
    between utterances are borders: they see two utterances or silence, and are dropped, or zeroed where a stack pads.
    `rows_LB[l][i]` is the number of rows of utterance i after l layers (l = 0: samples).
    """

    geometry: ConvGeometry
    rows_LB: tuple[tuple[int, ...], ...]
    first_slot_B: tuple[int, ...]
    num_slots_B: tuple[int, ...]

    @classmethod
    def of(cls, num_samples_B: Sequence[int], geometry: ConvGeometry) -> StreamLayout:
        """Lay out utterances of these lengths; one that is too short for a frame takes no room at all."""
        rows_LB = [tuple(num_samples_B)]
        for kernel, stride, padding in _layers(geometry):
            rows_LB.append(tuple(max((n + 2 * padding - kernel) // stride + 1, 0) for n in rows_LB[-1]))
        num_slots_B = []
        for i, frames in enumerate(rows_LB[-1]):
            jump, slots = 1, 0
            for depth, (_, stride, padding) in enumerate(_layers(geometry)):
                slots = max(slots, -(-(rows_LB[depth][i] + padding) * jump // geometry.hop))
                jump *= stride
            num_slots_B.append(max(slots, frames) if frames else 0)
        first_slot_B, slot = [], 0
        for slots in num_slots_B:
            first_slot_B.append(slot)
            slot += slots
        return cls(geometry, tuple(rows_LB), tuple(first_slot_B), tuple(num_slots_B))

    @property
    def frames_B(self) -> tuple[int, ...]:
        """Frames of each utterance."""
        return self.rows_LB[-1]

    @cached_property
    def num_samples(self) -> int:
        """Samples of the whole stream: all slots, what the last frame still sees, and samples that no frame sees."""
        end = 0
        places = zip(
            self.first_slot_B, self.num_slots_B, self.frames_B, self.first_row_B(0), self.rows_LB[0], strict=True
        )
        for first, slots, frames, start, samples in places:
            if frames:
                last_frame_end = (first + frames - 1) * self.geometry.hop + self.geometry.receptive_field
                end = max((first + slots) * self.geometry.hop, last_frame_end, start + samples)
        return end

    def first_row_B(self, depth: int) -> list[int]:
        """Return the stream row at which each utterance begins after `depth` layers."""
        jump, lead = self.geometry.hop, 0
        for _, stride, padding in reversed(_layers(self.geometry)[depth:]):
            lead = lead * stride + padding
        for _, stride, _ in _layers(self.geometry)[:depth]:
            jump //= stride
        return [slot * jump + lead for slot in self.first_slot_B]

    def pack(self, samples_N: Tensor) -> Tensor:
        """Place packed samples into the stream, with zeros between (differentiable)."""
        pieces, position = [], 0
        parts = samples_N.split(list(self.rows_LB[0]))
        for part, start, frames in zip(parts, self.first_row_B(0), self.frames_B, strict=True):
            if not frames:
                continue
            pieces += [samples_N.new_zeros(start - position), part]
            position = start + len(part)
        pieces.append(samples_N.new_zeros(self.num_samples - position))
        return torch.cat(pieces)

    def kept_rows_N(self, device: torch.device) -> Tensor:
        """Return the rows of the last layer's output that are frames, utterances end to end."""
        spans = zip(self.first_slot_B, self.frames_B, strict=True)
        return torch.cat([torch.arange(first, first + n) for first, n in spans]).to(device)

    def border_rows(self, depth: int, num_rows: int, device: torch.device) -> Tensor:
        """Return the rows, of `num_rows` after `depth` layers, that belong to no utterance."""
        is_border = torch.ones(num_rows, dtype=torch.bool)
        for start, n, frames in zip(self.first_row_B(depth), self.rows_LB[depth], self.frames_B, strict=True):
            if frames:
                is_border[start : start + n] = False
        return is_border.nonzero().squeeze(1).to(device)


def _layers(geometry: ConvGeometry) -> list[tuple[int, int, int]]:
    return list(zip(geometry.kernels, geometry.strides, geometry.paddings, strict=True))
