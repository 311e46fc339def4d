"""The wave transformer: the trunk of wav2vec 2.0, XLSR, XLS-R, HuBERT, UniSpeech and UniSpeech-SAT, on packed streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isogloss.core.config import Config
from isogloss.core.types import EncoderOutput, FrontendOutput, Packed
from isogloss.encoders.base import Encoder
from isogloss.encoders.frontends import WaveFrontend
from isogloss.nn.dropout import Dropout, scale_gradient
from isogloss.nn.position import PositionalConv
from isogloss.nn.product import Linear
from isogloss.nn.transformer import TransformerLayer

Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]


class WaveConfig(Config):
    """Sizes and switches of the wave transformer; the defaults are wav2vec 2.0 BASE (arXiv 2006.11477, §4.2).

    conv_channels, conv_kernels, conv_strides
        One entry for each convolution; strides in samples (first) and rows (the others). The hop is their product.
    conv_norm, conv_bias
        "group" (statistics over the time of an utterance, first convolution only) or "layer" (over channels, all of them).
    width, num_layers, num_heads, ffn_width
        Of the transformer. BASE has 12 heads in every released checkpoint, though the paper prints 8.
    norm_first
        Layer norm before attention and feed-forward (LARGE LV-60k, XLSR, XLS-R) instead of after them (BASE).
    position_kernel, position_groups
        The convolution that tells positions, in frames.
    dropout, attention_dropout, activation_dropout, input_dropout
        After attention and feed-forward, of attention weights, inside the feed-forward, of the projected latents.
    layerdrop
        Probability that a layer is left out in training (arXiv 1909.11556).
    feature_gradient_scale
        Factor on the gradient of the convolutions; 0 freezes them.
    normalize_waveform
        Whether each whole utterance is brought to zero mean and unit variance (`Encoder.prepare`).
    checkpoint_activations
        Recompute each layer in the backward pass: less memory, about a third more time.
    """

    kind: Literal["wave"] = "wave"
    conv_channels: tuple[Count, ...] = (512,) * 7
    conv_kernels: tuple[Count, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[Count, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_norm: Literal["group", "layer"] = "group"
    conv_bias: bool = False
    width: Count = 768
    num_layers: Count = 12
    num_heads: Count = 12
    ffn_width: Count = 3072
    norm_first: bool = False
    position_kernel: Count = 128
    position_groups: Count = 16
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    activation_dropout: Probability = 0.0
    input_dropout: Probability = 0.1
    layerdrop: Probability = 0.05
    feature_gradient_scale: Annotated[float, Field(ge=0.0)] = 0.1
    normalize_waveform: bool = False
    layer_norm_eps: Annotated[float, Field(gt=0.0)] = 1e-5
    checkpoint_activations: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not len(self.conv_channels) == len(self.conv_kernels) == len(self.conv_strides) >= 1:
            raise ValueError(
                "conv_channels, conv_kernels and conv_strides must be equally many and at least one, but have "
                f"{len(self.conv_channels)}, {len(self.conv_kernels)} and {len(self.conv_strides)} entries"
            )
        for divisor, name in ((self.num_heads, "num_heads"), (self.position_groups, "position_groups")):
            if self.width % divisor:
                raise ValueError(f"width must be a multiple of {name}, but {self.width} is not one of {divisor}")
        return self


class WaveEncoder(Encoder):
    """Convolutions, projection, positional convolution, transformer (arXiv 2006.11477, §2), packed.

    State 0 is the input of the first layer; with `norm_first` the last state is taken after the final norm.
    """

    config: WaveConfig

    def __init__(self, config: WaveConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_width, self.width = config.conv_channels[-1], config.width
        self.num_layers = config.num_layers
        self.normalizes_waveform = config.normalize_waveform
        self.convolutions = WaveFrontend(
            config.conv_channels,
            config.conv_kernels,
            config.conv_strides,
            norm=config.conv_norm,
            bias=config.conv_bias,
        )
        self.geometry = self.convolutions.geometry
        self.latent_norm = nn.LayerNorm(self.latent_width, eps=config.layer_norm_eps)
        self.projection = Linear(self.latent_width, config.width)
        self.input_dropout = Dropout(config.input_dropout)
        self.mask_embedding_D = nn.Parameter(torch.empty(config.width))
        self.position = PositionalConv(config.width, config.position_kernel, config.position_groups)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
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
        self._initialise()

    def _initialise(self) -> None:
        # As fairseq's released code: N(0, 0.02) and zero bias in the layers, U(0, 1) for the mask embedding; torch's default
        # for the projection; Kaiming normal convolutions.
        nn.init.uniform_(self.mask_embedding_D)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if self.config.feature_gradient_scale == 0.0:
            self.convolutions.requires_grad_(False)

    def blocks(self) -> Sequence[nn.Module]:
        """Return the transformer layers."""
        return list(self.layers)

    def frontend(self, audio: Packed) -> FrontendOutput:
        """Return the last convolution's outputs (`features`) and the same after layer norm (`latents`), N×512 in BASE."""
        features = self.convolutions(audio)
        scaled_ND = scale_gradient(features.values_ND, self.config.feature_gradient_scale)
        return FrontendOutput(features.with_values(scaled_ND), features.with_values(self.latent_norm(scaled_ND)))

    def context(self, latents: Packed, is_masked_N: Tensor | None = None) -> EncoderOutput:
        """Return L+1 states, N×width; latents of masked rows are replaced by the mask embedding after the projection."""
        sizes_B = latents.sizes
        values_ND = self.input_dropout(self.projection(latents.values_ND))
        if is_masked_N is not None:
            values_ND = torch.where(is_masked_N.unsqueeze(1), self.mask_embedding_D.to(values_ND.dtype), values_ND)
        elif self.training:
            # Without masks the embedding still gets a (zero) gradient: processes of a group expect one for every parameter.
            values_ND = values_ND + 0.0 * self.mask_embedding_D
        values_ND = values_ND + self.position(values_ND, sizes_B)
        values_ND = self.dropout(values_ND if self.config.norm_first else self.norm(values_ND))
        states = [values_ND]
        for layer in self.layers:
            is_dropped = self.training and self.config.layerdrop > 0 and float(torch.rand(())) < self.config.layerdrop
            if self.config.checkpoint_activations and self.training and not is_dropped:
                values_ND = checkpoint(layer, values_ND, sizes_B, use_reentrant=False)
            else:
                values_ND = layer(values_ND, sizes_B, is_dropped)
            states.append(values_ND)
        if self.config.norm_first:
            states[-1] = self.norm(values_ND)
        return EncoderOutput([latents.with_values(state) for state in states])
