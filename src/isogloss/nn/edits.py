"""What an adaptation puts into an encoder: small modules that act for the language that is selected, and for none without one.

Every tensor of an edit has the languages first, so a language is a row: it can be stored, added and counted by itself. A
row of a language that a micro-batch does not use gets a gradient of zeros, not none: every process of a group then has a
gradient for every parameter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.nn.product import linear


class LanguageEdit(nn.Module):
    """Base of the edits; `language` is the row that acts, None while the encoder is to be as if it had no edit."""

    def __init__(self) -> None:
        super().__init__()
        self.language: int | None = None

    def select(self, language: int | None) -> None:
        """Act for this language from the next forward pass on."""
        self.language = language


class WeightMask(LanguageEdit):
    """One bit per language and weight: a weight without its bit counts as zero, and its gradient is exactly zero.

    The weight itself is never overwritten, so it can be shared by languages, private to one, or unused. `bits_LW` packs the
    O·D bits of each language into ⌈O·D / 8⌉ bytes, the first bit lowest; only the selected language's mask is unpacked.
    """

    bits_LW: Tensor

    def __init__(self, num_languages: int, shape: tuple[int, int]) -> None:
        super().__init__()
        self.shape = shape
        num_bytes = -(-shape[0] * shape[1] // 8)
        # All ones: the dense model, until masks are written.
        self.register_buffer("bits_LW", torch.full((num_languages, num_bytes), 255, dtype=torch.uint8))
        self._kept: tuple[int, Tensor] | None = None

    def select(self, language: int | None) -> None:
        """Act for this language; its mask is unpacked when it is next used."""
        super().select(language)
        self._kept = None

    def mask(self, language: int) -> Tensor:
        """Return the mask of a language, bool O×D: True keeps the weight."""
        return unpack_bits(self.bits_LW[language], self.shape)

    def write(self, language: int, mask_OD: Tensor) -> None:
        """Set the mask of a language."""
        self.bits_LW[language] = pack_bits(mask_OD).to(self.bits_LW.device)
        self._kept = None

    def forward(self, weight_OD: Tensor) -> Tensor:
        """Return the weight with zeros where the selected language has no bit."""
        if self.language is None:
            return weight_OD
        if self._kept is None or self._kept[0] != self.language or self._kept[1].device != weight_OD.device:
            self._kept = (self.language, self.mask(self.language).to(weight_OD.device))
        # A choice, not a product: zero times an infinite gradient would be NaN.
        return torch.where(self._kept[1], weight_OD, 0.0)


class LowRank(LanguageEdit):
    """LoRA per language (arXiv 2106.09685, §4.1): W + (α/r) B A, with B zero at the start."""

    def __init__(self, num_languages: int, shape: tuple[int, int], rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down_LRD = nn.Parameter(torch.empty(num_languages, rank, shape[1]))
        self.up_LOR = nn.Parameter(torch.zeros(num_languages, shape[0], rank))
        nn.init.kaiming_uniform_(self.down_LRD.view(-1, shape[1]), a=5**0.5)

    def forward(self, weight_OD: Tensor) -> Tensor:
        """Return the weight with the selected language's update added."""
        if self.language is None:
            return weight_OD
        return weight_OD + self.scale * (self.up_LOR[self.language] @ self.down_LRD[self.language])


class Adapter(LanguageEdit):
    """A bottleneck per language (arXiv 1909.08478, §2.2): x + up(gelu(down(norm(x)))), with `up` zero at the start.

    The norm's gain and bias are left to `down`, which follows it.
    """

    def __init__(self, num_languages: int, width: int, bottleneck: int) -> None:
        super().__init__()
        self.down_LBD = nn.Parameter(torch.empty(num_languages, bottleneck, width))
        self.down_bias_LB = nn.Parameter(torch.zeros(num_languages, bottleneck))
        self.up_LDB = nn.Parameter(torch.zeros(num_languages, width, bottleneck))
        self.up_bias_LD = nn.Parameter(torch.zeros(num_languages, width))
        nn.init.normal_(self.down_LBD, std=width**-0.5)

    def forward(self, values_ND: Tensor) -> Tensor:
        """Map each frame through the selected language's bottleneck."""
        if self.language is None:
            return values_ND
        index = self.language
        normed_ND = F.layer_norm(values_ND, values_ND.shape[1:])
        inner_NB = F.gelu(linear(normed_ND, self.down_LBD[index], self.down_bias_LB[index]))
        return values_ND + linear(inner_NB, self.up_LDB[index], self.up_bias_LD[index])


class Gate(LanguageEdit):
    """A scale per language and channel, one at the start."""

    def __init__(self, num_languages: int, width: int) -> None:
        super().__init__()
        self.gain_LD = nn.Parameter(torch.ones(num_languages, width))

    def forward(self, values_ND: Tensor) -> Tensor:
        """Scale the channels of each frame."""
        return values_ND if self.language is None else values_ND * self.gain_LD[self.language].to(values_ND.dtype)


class LanguageVector(LanguageEdit):
    """A linear map of the language's one-hot code, added to every frame; zero at the start."""

    def __init__(self, num_languages: int, width: int) -> None:
        super().__init__()
        self.vector_LD = nn.Parameter(torch.zeros(num_languages, width))

    def forward(self, values_ND: Tensor) -> Tensor:
        """Add the selected language's vector to each frame."""
        return values_ND if self.language is None else values_ND + self.vector_LD[self.language].to(values_ND.dtype)


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool tensor into bytes, the first element in the lowest bit of the first byte."""
    flat = mask.reshape(-1).to(torch.uint8)
    padded = F.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8)


def unpack_bits(bits_W: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Unpack what `pack_bits` packed into a bool tensor of a shape."""
    count = 1
    for size in shape:
        count *= size
    bits = (bits_W.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=bits_W.device)) & 1
    return bits.reshape(-1)[:count].view(shape).to(torch.bool)
