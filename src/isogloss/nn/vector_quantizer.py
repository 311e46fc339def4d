"""Quantizers that are a layer of an encoder (vq-wav2vec): what follows reads the codes' vectors, so they go with the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.core.types import Packed, iterate_spans
from isogloss.nn.product import Linear
from isogloss.nn.time_norm import TimeGroupNorm


@dataclass
class QuantizedRows:
    """The vectors that N rows became, their codes, how probable each code was on average, and the dense rows before the choice.

    `values_ND` is differentiable (straight through); `codes_NG` is int64. `projected_ND` and `chosen_ND` are what k-means
    draws to each other; with Gumbel softmax both are `values_ND`.
    """

    values_ND: Tensor
    codes_NG: Tensor
    mean_probabilities_GC: Tensor
    projected_ND: Tensor
    chosen_ND: Tensor


class GumbelVectorQuantizer(nn.Module):
    """Choose a code in each group by Gumbel softmax (arXiv 1910.05453): two layers to the logits, hard, straight through.

    `is_shared` lets all groups choose from one codebook. `codebook` is (1 or G)×C×(width/G), from U(0, 1).
    """

    def __init__(self, width: int, *, num_groups: int, num_codes: int, is_shared: bool) -> None:
        super().__init__()
        self.num_groups, self.num_codes = num_groups, num_codes
        self.up = Linear(width, 2 * width)
        self.logits = Linear(2 * width, num_groups * num_codes)
        self.codebook = nn.Parameter(torch.rand(1 if is_shared else num_groups, num_codes, width // num_groups))

    def forward(
        self, rows: Packed, generators: Sequence[torch.Generator] | None = None, temperature: Tensor | float = 1.0
    ) -> QuantizedRows:
        """Quantize N×D rows; `generators[i]`, on their device, gives utterance i its noise; without them the likeliest codes."""
        with torch.autocast(rows.values_ND.device.type, enabled=False):
            logits_NGC = self.logits(F.gelu(self.up(rows.values_ND.float())))
            logits_NGC = logits_NGC.unflatten(1, (self.num_groups, self.num_codes))
            mean_GC = logits_NGC.softmax(-1).sum(0) / max(len(logits_NGC), 1)
            noise_NGC = logits_NGC.new_zeros(()) if generators is None else _noise(rows.sizes, logits_NGC, generators)
            soft_NGC = ((logits_NGC + noise_NGC) / temperature).softmax(-1)
            codes_NG = soft_NGC.argmax(-1)
            # Exactly one-hot: what is added is exactly zero and carries the gradient of the softmax.
            choice_NGC = F.one_hot(codes_NG, self.num_codes) + (soft_NGC - soft_NGC.detach())
            codebook_GCd = self.codebook.float().expand(self.num_groups, -1, -1)
            values_ND = torch.einsum("ngc,gcd->ngd", choice_NGC, codebook_GCd).flatten(1)
        return QuantizedRows(values_ND, codes_NG, mean_GC, values_ND, values_ND)


class KMeansVectorQuantizer(nn.Module):
    """Choose the nearest code of each group (arXiv 1910.05453) after a grouped projection and a group norm over time.

    The gradient passes to the projected rows unchanged; codes learn only from what draws them to the rows. They start at
    0.01·N(0, 1).
    """

    def __init__(self, width: int, *, num_groups: int, num_codes: int, is_shared: bool) -> None:
        super().__init__()
        self.num_groups, self.num_codes = num_groups, num_codes
        group_width = width // num_groups
        self.projection_Gde = nn.Parameter(torch.empty(num_groups, group_width, group_width))
        nn.init.uniform_(
            self.projection_Gde, -(group_width**-0.5), group_width**-0.5
        )  # torch's default for convolutions
        self.norm = TimeGroupNorm(width, num_groups)
        self.codebook = nn.Parameter(0.01 * torch.randn(1 if is_shared else num_groups, num_codes, group_width))

    def forward(
        self, rows: Packed, generators: Sequence[torch.Generator] | None = None, temperature: Tensor | float = 1.0
    ) -> QuantizedRows:
        """Quantize N×D rows; nothing is drawn and there is no temperature: the arguments are those of the other quantizer."""
        with torch.autocast(rows.values_ND.device.type, enabled=False):
            grouped_GNd = rows.values_ND.float().unflatten(1, (self.num_groups, -1)).transpose(0, 1)
            projected_ND = (grouped_GNd @ self.projection_Gde).transpose(0, 1).flatten(1)
            projected_ND = self.norm(projected_ND, list(iterate_spans(rows.sizes)))
            codebook_GCd = self.codebook.float().expand(self.num_groups, -1, -1)
            with torch.no_grad():
                projected_GNd = projected_ND.unflatten(1, (self.num_groups, -1)).transpose(0, 1)
                # ‖z − e‖² without the term that all codes share.
                distance_GNC = codebook_GCd.square().sum(2)[:, None] - 2 * projected_GNd @ codebook_GCd.transpose(1, 2)
                codes_NG = distance_GNC.argmin(2).t()
            groups_G = torch.arange(self.num_groups, device=codes_NG.device)
            chosen_ND = codebook_GCd[groups_G, codes_NG].flatten(1)
            values_ND = chosen_ND.detach() + (projected_ND - projected_ND.detach())
            counts_GC = F.one_hot(codes_NG, self.num_codes).sum(0).float()
        return QuantizedRows(values_ND, codes_NG, counts_GC / max(len(codes_NG), 1), projected_ND, chosen_ND)


def _noise(sizes: Sequence[int], like_NGC: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    noise_NGC = torch.empty_like(like_NGC)
    for part, generator in zip(noise_NGC.split(list(sizes)), generators, strict=True):
        part.exponential_(generator=generator)
    return noise_NGC.log_().neg_()
