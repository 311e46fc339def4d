"""Tokens to latents: what a text encoder begins with, and what an encoder of speech gets when it is to read text as well."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isogloss.core.types import Packed
from isogloss.core.vocabulary import Labels, Vocabulary


class TokenFrontend(nn.Module):
    """Embeddings of tokens and of their positions, summed and normalised (BERT, arXiv 1810.04805, §3).

    The last embedding, number `mask_token`, stands for a hidden token; the others, transposed, score tokens (`scores`).
    """

    def __init__(self, labels: Labels, width: int, max_tokens: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(labels)
        self.mask_token = len(self.vocabulary)
        self.max_tokens = max_tokens
        self.embedding = nn.Embedding(len(self.vocabulary) + 1, width)
        self.position = nn.Embedding(max_tokens, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        for table in (self.embedding, self.position):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Packed) -> Packed:
        """Turn token numbers (N) into latents (N×width); a text of more than `max_tokens` is a ValueError."""
        longest = max(tokens.sizes, default=0)
        if longest > self.max_tokens:
            raise ValueError(
                f"a text must have at most {self.max_tokens} tokens, but one has {longest}; usually because it was not cropped; "
                "raise `encoder.max_tokens`"
            )
        device = self.embedding.weight.device
        places_N = torch.cat([torch.arange(n) for n in tokens.sizes]) if tokens.sizes else torch.zeros(0).long()
        values_ND = self.embedding(tokens.values_ND.to(device)) + self.position(places_N.to(device))
        return tokens.with_values(self.norm(values_ND))

    def scores(self, values_MD: Tensor) -> Tensor:
        """Return M×C scores of the vocabulary: products with the embeddings (tied softmax)."""
        return F.linear(values_MD, self.embedding.weight[: self.mask_token])


class ReadsText:
    """An encoder with a `text` frontend beside, or instead of, that for audio: `context(text(tokens))` gives states of a text."""

    text: TokenFrontend
