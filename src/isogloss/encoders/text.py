"""BERT's encoder (arXiv 1810.04805) on packed tokens: embeddings, learned positions, transformer.

It is an encoder like any other, whose stream is of tokens: `frontend` takes packed token numbers where others take samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn

from isogloss.core.config import Config
from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Positive, Probability
from isogloss.core.lengths import ConvGeometry
from isogloss.core.types import EncoderOutput, FrontendOutput, Packed
from isogloss.core.vocabulary import Labels
from isogloss.encoders._token_frontend import ReadsText, TokenFrontend
from isogloss.encoders.base import Encoder
from isogloss.nn.dropout import Dropout
from isogloss.nn.transformer import TransformerLayer


class TextConfig(Config):
    """Sizes of the text encoder; the defaults are BERT BASE (arXiv 1810.04805, §3) but for the vocabulary.

    labels
        How a text becomes tokens; its symbols are found in the corpus. The encoder, not the objective, owns them: a model alone
        can read a text.
    max_tokens
        Positions that are learned; longer texts are read in windows.
    """

    kind: Literal["text"] = "text"
    labels: Labels = Labels()
    width: Count = 768
    num_layers: Count = 12
    num_heads: Count = 12
    ffn_width: Count = 3072
    max_tokens: Count = 512
    norm_first: bool = False
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    activation_dropout: Probability = 0.0
    layer_norm_eps: Positive = 1e-12

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads, but {self.width} is not one of {self.num_heads}")
        return self


class TextEncoder(ReadsText, Encoder):
    """Tokens to states; state 0 is the normalised sum of embeddings."""

    config: TextConfig
    normalizes_waveform = False

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.geometry = ConvGeometry((1,), (1,))  # a frame a token
        self.latent_width = self.width = config.width
        self.num_layers = config.num_layers
        self.text = TokenFrontend(config.labels, config.width, config.max_tokens, config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                config.width,
                config.num_heads,
                config.ffn_width,
                norm_first=config.norm_first,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                activation_dropout=config.activation_dropout,
                eps=config.layer_norm_eps,
            )
            for _ in range(config.num_layers)
        )
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps) if config.norm_first else nn.Identity()

    def blocks(self) -> Sequence[nn.Module]:
        """Return the transformer layers."""
        return list(self.layers)

    def frontend(self, audio: Packed) -> FrontendOutput:
        """Turn packed token numbers (N) into latents; `features` and `latents` are the same. Samples are a `ConfigError`."""
        if audio.values_ND.is_floating_point() and len(audio.values_ND):
            raise ConfigError(
                "this text encoder reads tokens, but was given samples; usually because an objective for speech was chosen for it; try "
                '`--set objective.name="bert"`, or an encoder for speech'
            )
        latents = self.text(audio.with_values(audio.values_ND.long()))
        return FrontendOutput(latents, latents)

    def context(self, latents: Packed, is_masked_N: Tensor | None = None) -> EncoderOutput:
        """Return L+1 states, N×width; rows of `is_masked_N` are those of the mask token."""
        values_ND = latents.values_ND
        if is_masked_N is not None:
            hidden_N = torch.full(is_masked_N.shape, self.text.mask_token, dtype=torch.int64)
            values_ND = torch.where(
                is_masked_N.unsqueeze(1), self.text(latents.with_values(hidden_N)).values_ND, values_ND
            )
        values_ND = self.dropout(values_ND)
        states = [values_ND]
        for layer in self.layers:
            values_ND = layer(values_ND, latents.sizes)
            states.append(values_ND)
        states[-1] = self.norm(states[-1])
        return EncoderOutput([latents.with_values(state) for state in states])
