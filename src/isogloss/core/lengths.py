"""How many frames a signal has: the only place where sample counts become frame counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ConvGeometry:
    """Kernels, strides and paddings (left and right alike) of a stack of convolutions.

    `hop` is the product of the strides in samples; `receptive_field` is in samples.
    """

    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    paddings: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.paddings:
            object.__setattr__(self, "paddings", (0,) * len(self.kernels))
        if not len(self.kernels) == len(self.strides) == len(self.paddings):
            raise ValueError(
                f"kernels, strides and paddings must be equally many, but are {self.kernels}, {self.strides}, {self.paddings}"
            )

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        hop = 1
        for stride in self.strides:
            hop *= stride
        return hop

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees."""
        field, jump = 1, 1
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            field += (kernel - 1) * jump
            jump *= stride
        return field

    @property
    def first_sample(self) -> int:
        """Sample at which the receptive field of frame 0 begins (negative where the stack pads)."""
        start, jump = 0, 1
        for stride, padding in zip(self.strides, self.paddings, strict=True):
            start -= padding * jump
            jump *= stride
        return start

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a signal of `num_samples` samples, 0 where it is shorter than one window."""
        n = num_samples
        for kernel, stride, padding in zip(self.kernels, self.strides, self.paddings, strict=True):
            n = (n + 2 * padding - kernel) // stride + 1
            if n <= 0:
                return 0
        return n

    def center_seconds(self, frame: int, sample_rate: int) -> float:
        """Return the time of the middle of a frame's receptive field, in seconds."""
        return (self.first_sample + frame * self.hop + self.receptive_field / 2) / sample_rate


def trim_to_shortest(lengths: Sequence[int], others: Sequence[int], tolerance: int = 2) -> list[int]:
    """Return the common lengths of two frame sequences that may differ by at most `tolerance` frames.

    Labels that were made for a whole recording and cropped with it can be one frame longer or shorter than the frames that a
    convolution makes of the crop. More than that is an error of the label rate.
    """
    common = []
    for index, (n, m) in enumerate(zip(lengths, others, strict=True)):
        if abs(n - m) > tolerance:
            raise ValueError(
                f"item {index} has {n} frames but {m} labels; they may differ by {tolerance}: the labels were probably made at another rate"
            )
        common.append(min(n, m))
    return common
