"""What the Conformers share, whatever they read: the sizes of their blocks, and the context that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isogloss.core.config import Config
from isogloss.core.fields import Count, Positive, Probability
from isogloss.core.types import EncoderOutput, Packed
from isogloss.encoders.base import Encoder
from isogloss.nn.conformer import ConformerLayer
from isogloss.nn.dropout import Dropout
from isogloss.nn.product import Linear
from isogloss.nn.relative import position_table


class BlockConfig(Config):
    """Sizes and switches of a stack of Conformer blocks (arXiv 2005.08100).

    width, num_layers, num_heads, ffn_width
        Of the blocks; the width of a head is width/num_heads.
    positions
        How attention knows distances: "relative" (Transformer-XL), "rotary", "relative_key" (learned vectors for distances
        −distance_left … +distance_right, larger ones clipped) or "none" (the convolutions alone tell order).
    distance_left, distance_right
        Of "relative_key", in frames.
    kernel, conv_norm, causal_convolution
        The depthwise convolution, in frames; "batch" or "layer" after it; whether it sees only the past.
    activation
        "swish" or "gelu", in feed-forwards and convolutions.
    final_norm
        A layer norm after the last block (Wav2Vec2Conformer has one, w2v-BERT 2.0 none).
    dropout, attention_dropout, activation_dropout, conv_dropout, input_dropout
        After feed-forwards, of and after attention, inside feed-forwards, after convolutions, of the projected latents.
    layerdrop
        Probability that a block is left out in training.
    checkpoint_activations
        Recompute each block in the backward pass.
    """

    width: Count = 1024
    num_layers: Count = 24
    num_heads: Count = 16
    ffn_width: Count = 4096
    positions: Literal["relative", "rotary", "relative_key", "none"] = "relative"
    distance_left: Annotated[int, Field(ge=0)] = 64
    distance_right: Annotated[int, Field(ge=0)] = 8
    kernel: Count = 31
    conv_norm: Literal["batch", "layer"] = "batch"
    causal_convolution: bool = False
    activation: Literal["swish", "gelu"] = "swish"
    final_norm: bool = False
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    activation_dropout: Probability = 0.0
    conv_dropout: Probability = 0.1
    input_dropout: Probability = 0.0
    layerdrop: Probability = 0.0
    layer_norm_eps: Positive = 1e-5
    checkpoint_activations: bool = False

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads, but {self.width} is not one of {self.num_heads}")
        if self.positions == "relative" and self.width % 2:
            raise ValueError(f'width must be even for positions = "relative", but is {self.width}')
        if self.positions == "rotary" and (self.width // self.num_heads) % 2:
            raise ValueError(
                f"width/num_heads must be even for rotary positions, but is {self.width // self.num_heads}"
            )
        if self.kernel % 2 == 0 and not self.causal_convolution:
            raise ValueError(f"kernel must be odd where the convolution is not causal, but is {self.kernel}")
        return self


class ConformerContext(Encoder):
    """Projection, mask embedding and a stack of Conformer blocks: an encoder but for its frontend."""

    config: BlockConfig

    def _build_context(self, latent_width: int) -> None:
        config: BlockConfig = self.config
        self.latent_width, self.width, self.num_layers = latent_width, config.width, config.num_layers
        self.projection = Linear(latent_width, config.width)
        self.input_dropout = Dropout(config.input_dropout)
        self.mask_embedding_D = nn.Parameter(torch.rand(config.width))
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            ConformerLayer(
                config.width,
                config.num_heads,
                config.ffn_width,
                positions=config.positions,
                distance_left=config.distance_left,
                distance_right=config.distance_right,
                kernel=config.kernel,
                conv_norm=config.conv_norm,
                is_causal=config.causal_convolution,
                activation=config.activation,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                activation_dropout=config.activation_dropout,
                conv_dropout=config.conv_dropout,
                eps=config.layer_norm_eps,
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps) if config.final_norm else None
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):  # N(0, 0.02) and zero bias, as the released Conformers
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def blocks(self) -> Sequence[nn.Module]:
        """Return the Conformer blocks."""
        return list(self.layers)

    def feed_forwards(self) -> Sequence[nn.Module]:
        """Return the second feed-forward of each block."""
        return [layer.get_submodule("ffn2") for layer in self.layers]

    def context(self, latents: Packed, is_masked_N: Tensor | None = None) -> EncoderOutput:
        """Return L+1 states, N×width; latents of masked rows are replaced by the mask embedding after the projection."""
        config, sizes_B = self.config, latents.sizes
        values_ND = self.input_dropout(self.projection(latents.values_ND))
        if is_masked_N is not None:
            values_ND = torch.where(is_masked_N.unsqueeze(1), self.mask_embedding_D.to(values_ND.dtype), values_ND)
        elif self.training:
            # Without masks the embedding still gets a (zero) gradient: processes of a group expect one for every parameter.
            values_ND = values_ND + 0.0 * self.mask_embedding_D
        values_ND = self.dropout(values_ND)
        table = position_table(config.positions, config.width, config.num_heads, sizes_B, values_ND.device)
        states = [values_ND]
        for layer in self.layers:
            is_dropped = self.training and config.layerdrop > 0 and float(torch.rand(())) < config.layerdrop
            if config.checkpoint_activations and self.training and not is_dropped:
                values_ND = checkpoint(layer, values_ND, sizes_B, table, use_reentrant=False)
            else:
                values_ND = layer(values_ND, sizes_B, table, is_dropped)
            states.append(values_ND)
        if self.norm is not None:
            states[-1] = self.norm(values_ND)
        return EncoderOutput([latents.with_values(state) for state in states])
