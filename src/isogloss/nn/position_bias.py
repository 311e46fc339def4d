"""Terms that relative positions add to attention logits: WavLM's gated buckets and SpeechT5's clipped keys.

A table is shared by all layers, so what depends on it alone is computed once for a batch (`shared`), outside the layers: layer
drop cannot take it away. Each layer has a `PositionBias` that turns this into the `AttentionBias` of its own queries.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from isogloss.core.types import iterate_spans


class AttentionBias(Protocol):
    """What is added to the scaled logits of one layer, in blocks: the whole of it need never exist."""

    def rows(self, utterance: int, heads: slice, queries: slice) -> Tensor:
        """Return the terms of some heads and queries of an utterance with all its keys, heads×queries×keys."""
        ...


class PositionBias(nn.Module, ABC):
    """The part of a layer's attention that makes its bias from what the layers share."""

    @abstractmethod
    def forward(self, inputs_ND: Tensor, q_NHd: Tensor, shared: Any) -> AttentionBias:
        """Return the bias for the attention's inputs and its queries, which are divided by √d already."""


def distance_buckets(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Return the bucket of each signed distance j−i (arXiv 2110.13900, eq. 4; int64).

    Half of the buckets are for keys after the query. Of each half, half hold one distance each; the others grow with the
    logarithm up to `max_distance`, and the last holds all beyond.
    """
    half, exact = num_buckets // 2, num_buckets // 4
    size = distances.abs()
    # The same operations in the same order and type as the released code, or borders fall elsewhere.
    growth = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + growth).long().clamp(max=half - 1)
    return (distances > 0).long() * half + torch.where(size < exact, size, far)


class BucketTable(nn.Module):
    """E, one value per bucket and head (arXiv 2110.13900, §3.1)."""

    def __init__(self, num_buckets: int, max_distance: int, num_heads: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.weight = nn.Parameter(torch.empty(num_buckets, num_heads))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, sizes_B: list[int]) -> BucketTerms:
        """Look up every distance that occurs within utterances of these sizes."""
        longest = max([*sizes_B, 1])
        distances = torch.arange(1 - longest, longest, device=self.weight.device)
        buckets = distance_buckets(distances, len(self.weight), self.max_distance)
        return BucketTerms(self.weight[buckets].t(), sizes_B, keep=torch.is_grad_enabled())


class BucketTerms:
    """E[bucket(j−i)] of a batch, before the gates."""

    def __init__(self, values_HV: Tensor, sizes_B: list[int], *, keep: bool) -> None:
        self.values_HV = values_HV.contiguous()  # of the distances −(S−1) … S−1
        self.sizes_B = sizes_B
        # With gradients each square is made once and used by all layers, so that its gradient returns to the table once.
        sizes = {*sizes_B} - {0} if keep else set()
        self._squares = {size: self._make(size, slice(None), 0, size) for size in sizes}

    def rows(self, size: int, heads: slice, start: int, stop: int) -> Tensor:
        """Return rows `start` to `stop` of the size×size square of each head."""
        if size in self._squares:
            return self._squares[size][heads, start:stop]
        return self._make(size, heads, start, stop)

    def _make(self, size: int, heads: slice, start: int, stop: int) -> Tensor:
        # Row i holds the distances −i … size−1−i: a window that moves left as i grows.
        zero = self.values_HV.shape[1] // 2
        spanned_HV = self.values_HV[heads, zero - stop + 1 : zero - start + size]
        return spanned_HV.unfold(1, size, 1).flip(1)


class GatedPosition(PositionBias):
    """Gates of one layer (arXiv 2110.13900, eq. 5 and 6, as the released code has it).

    From the attention's *input* x_i of a head: (a, b) = σ(sums of four of Linear(x_i, d→8)); the term is
    (a·(b·c − 1) + 2) · E[bucket(j−i)], with c (`scale_H`) per head.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.gate = nn.Linear(width // num_heads, 8)
        self.scale_H = nn.Parameter(torch.ones(num_heads))

    def forward(self, inputs_ND: Tensor, q_NHd: Tensor, shared: BucketTerms) -> AttentionBias:
        """Return the gated terms."""
        sums_NHG = self.gate(inputs_ND.unflatten(1, (self.num_heads, -1))).unflatten(2, (2, 4)).sum(3)
        a_NH, b_NH = torch.sigmoid(sums_NHG).unbind(2)
        return _Gated((a_NH * (b_NH * self.scale_H - 1.0) + 2.0).t(), shared)


class _Gated:
    def __init__(self, gate_HN: Tensor, terms: BucketTerms) -> None:
        self.gate_HN, self.terms = gate_HN, terms
        self.spans = list(iterate_spans(terms.sizes_B))

    def rows(self, utterance: int, heads: slice, queries: slice) -> Tensor:
        first, end = self.spans[utterance]
        gate_HQ = self.gate_HN[heads, first:end][:, queries]
        start, stop, _ = queries.indices(end - first)
        return gate_HQ.unsqueeze(2) * self.terms.rows(end - first, heads, start, stop)


class KeyTable(nn.Module):
    """One vector per clipped distance i−j, −P … P−1 (arXiv 1803.02155, eq. 4; shared by layers and heads in SpeechT5)."""

    def __init__(self, max_distance: int, head_width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * max_distance, head_width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, sizes_B: list[int]) -> KeyTerms:
        """Return the table with the sizes of a batch."""
        return KeyTerms(self.weight, sizes_B)


class KeyTerms:
    """The table and the sizes of a batch."""

    def __init__(self, table_Pd: Tensor, sizes_B: list[int]) -> None:
        self.table_Pd, self.sizes_B = table_Pd, sizes_B


class ClippedPosition(PositionBias):
    """q_i · pe[clip(i−j)]: no parameters of its own."""

    def forward(self, inputs_ND: Tensor, q_NHd: Tensor, shared: KeyTerms) -> AttentionBias:
        """Return the products of each query with the vectors of its distances."""
        return _Clipped(q_NHd @ shared.table_Pd.to(q_NHd.dtype).t(), shared.sizes_B)


class _Clipped:
    def __init__(self, products_NHP: Tensor, sizes_B: list[int]) -> None:
        self.products_HNP = products_NHP.transpose(0, 1)
        self.spans = list(iterate_spans(sizes_B))

    def rows(self, utterance: int, heads: slice, queries: slice) -> Tensor:
        first, end = self.spans[utterance]
        products_HQP = self.products_HNP[heads, first:end][:, queries]
        num_heads, num_queries, num_vectors = products_HQP.shape
        positions = torch.arange(end - first, device=products_HQP.device)
        distances_QS = positions[queries].unsqueeze(1) - positions
        half = num_vectors // 2
        index_QS = distances_QS.clamp(-half, half - 1) + half
        return products_HQP.gather(2, index_QS.expand(num_heads, num_queries, -1))
