"""The wave transformer: wav2vec 2.0, XLSR, XLS-R, HuBERT, WavLM, UniSpeech(-SAT), data2vec, SpeechT5's speech encoder; packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isogloss.core.config import Config
from isogloss.core.fields import Count, Positive, Probability
from isogloss.core.types import EncoderOutput, FrontendOutput, Packed
from isogloss.encoders.base import Encoder
from isogloss.encoders.frontends import WaveFrontend
from isogloss.nn.alibi import AlibiPosition, AlibiTable
from isogloss.nn.dropout import Dropout, scale_gradient
from isogloss.nn.position import PositionalConv, StackedPositionalConv, sinusoids
from isogloss.nn.position_bias import BucketTable, ClippedPosition, GatedPosition, KeyTable, PositionBias
from isogloss.nn.product import Linear
from isogloss.nn.transformer import TransformerLayer


class GatedRelative(Config):
    """Gated relative position bias (WavLM, arXiv 2110.13900, §3.1; released sizes)."""

    kind: Literal["gated"] = "gated"
    num_buckets: Annotated[int, Field(ge=4, multiple_of=4)] = 320
    max_distance: Count = 800

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_distance <= self.num_buckets // 4:
            raise ValueError(
                f"max_distance must be above num_buckets/4, but is {self.max_distance} with {self.num_buckets} buckets"
            )
        return self


class ClippedRelative(Config):
    """Keys of clipped relative positions, one table for all layers and heads (SpeechT5, arXiv 2110.07205, §2.1)."""

    kind: Literal["clipped"] = "clipped"
    max_distance: Count = 160


class AlibiRelative(Config):
    """A term that falls with the distance, with a learned factor per head (data2vec 2.0, arXiv 2212.07525)."""

    kind: Literal["alibi"] = "alibi"


Relative = Annotated[GatedRelative | ClippedRelative | AlibiRelative, Field(discriminator="kind")]


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
    qkv_bias
        Whether queries, keys and values have a bias (all but SpidR, arXiv 2512.20308).
    position
        What tells positions before the layers. "conv": one convolution with weight norm (nearly all). "conv_stack":
        `position_layers` convolutions with layer norms (data2vec, arXiv 2202.03555). "conv_sinusoid": the one convolution, then
        sinusoids (SpeechT5, arXiv 2110.07205).
    position_kernel, position_groups
        Of the convolutions that tell positions, in frames.
    relative
        What tells them inside attention: nothing, WavLM's gated buckets, SpeechT5's clipped keys, or data2vec 2.0's ALiBi.
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
    qkv_bias: bool = True
    position: Literal["conv", "conv_stack", "conv_sinusoid"] = "conv"
    position_kernel: Count = 128
    position_groups: Count = 16
    position_layers: Count = 1
    relative: Relative | None = None
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    activation_dropout: Probability = 0.0
    input_dropout: Probability = 0.1
    layerdrop: Probability = 0.05
    feature_gradient_scale: Annotated[float, Field(ge=0.0)] = 0.1
    normalize_waveform: bool = False
    layer_norm_eps: Positive = 1e-5
    checkpoint_activations: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not len(self.conv_channels) == len(self.conv_kernels) == len(self.conv_strides) >= 1:
            raise ValueError(
                "conv_channels, conv_kernels and conv_strides must be equally many and at least one, but have "
                f"{len(self.conv_channels)}, {len(self.conv_kernels)} and {len(self.conv_strides)} entries"
            )
        if self.position != "conv_stack" and self.position_layers != 1:
            raise ValueError(
                f"position_layers must be 1 with position = {self.position!r}, but is {self.position_layers}; only conv_stack has more"
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
        self.position = _position(config)
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
                relative=_relative_position(config),
                qkv_bias=config.qkv_bias,
            )
            for _ in range(config.num_layers)
        )
        self._initialise()
        # Shared by the layers and made after them: presets without it start from the same weights as before it existed.
        self.relative = _relative_table(config)

    def _initialise(self) -> None:
        # As fairseq's released code: N(0, 0.02) and zero bias in the layers, U(0, 1) for the mask embedding; torch's default
        # for the projection; Kaiming normal convolutions.
        nn.init.uniform_(self.mask_embedding_D)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.config.feature_gradient_scale == 0.0:
            self.convolutions.requires_grad_(False)

    def blocks(self) -> Sequence[nn.Module]:
        """Return the transformer layers."""
        return list(self.layers)

    def feed_forwards(self) -> Sequence[nn.Module]:
        """Return the feed-forward of each layer."""
        return [layer.get_submodule("ffn") for layer in self.layers]

    def frontend(self, audio: Packed) -> FrontendOutput:
        """Return the last convolution's outputs (`features`) and the same after layer norm (`latents`), N×512 in BASE."""
        features = self.convolutions(audio)
        scaled_ND = scale_gradient(features.values_ND, self.config.feature_gradient_scale)
        return FrontendOutput(features.with_values(scaled_ND), features.with_values(self.latent_norm(scaled_ND)))

    def context(self, latents: Packed, is_masked_N: Tensor | None = None) -> EncoderOutput:
        """Return L+1 states, N×width; latents of masked rows are replaced by the mask embedding after the projection."""
        values_ND = self.input_dropout(self.projection(latents.values_ND))
        if is_masked_N is not None:
            values_ND = torch.where(is_masked_N.unsqueeze(1), self.mask_embedding_D.to(values_ND.dtype), values_ND)
        elif self.training:
            # Without masks the embedding still gets a (zero) gradient: processes of a group expect one for every parameter.
            values_ND = values_ND + 0.0 * self.mask_embedding_D
        return self._transform(latents.with_values(self._add_positions(values_ND, latents.sizes)))

    def context_of_kept(self, latents: Packed, is_masked_MN: Tensor) -> EncoderOutput:
        """Encode, for each of M masks (on the CPU) of the same latents, the frames that it leaves (arXiv 2212.07525).

        Masked frames are zeros for the positional convolution, and then left out: the layers never see them. In the states,
        utterance i under mask m is utterance m·B + i. Positions inside attention must be none or ALiBi, which knows the kept
        frames' times.
        """
        is_kept_MN, device = ~is_masked_MN, latents.values_ND.device
        lengths_B = torch.stack([part.sum() for is_kept_N in is_kept_MN for part in is_kept_N.split(latents.sizes)])
        rows_K = is_kept_MN.flatten().nonzero().squeeze(1)
        times_K = torch.cat([torch.arange(n) for n in latents.sizes * len(is_kept_MN)])[rows_K].to(device)
        values_ND = self.input_dropout(self.projection(latents.values_ND))
        if self.training:
            values_ND = values_ND + 0.0 * self.mask_embedding_D
        values_MND = values_ND.masked_fill(is_masked_MN.to(device).unsqueeze(2), 0.0)
        placed_RD = self._add_positions(values_MND.flatten(0, 1), latents.sizes * len(is_kept_MN))
        return self._transform(Packed(placed_RD.index_select(0, rows_K.to(device)), lengths_B), times_K)

    def _add_positions(self, values_ND: Tensor, sizes_B: list[int]) -> Tensor:
        values_ND = values_ND + self.position(values_ND, sizes_B)
        if self.config.position == "conv_sinusoid":
            values_ND = values_ND + sinusoids(sizes_B, self.width, first=2, device=values_ND.device).to(values_ND.dtype)
        return values_ND

    def _transform(self, frames: Packed, times_N: Tensor | None = None) -> EncoderOutput:
        sizes_B = frames.sizes
        values_ND = self.dropout(frames.values_ND if self.config.norm_first else self.norm(frames.values_ND))
        shared = None
        if self.relative is not None:
            shared = self.relative(sizes_B) if times_N is None else self.relative(sizes_B, times_N)
            if self.training:
                # As for the mask embedding: if all layers are dropped, the table still gets a gradient.
                values_ND = values_ND + 0.0 * self.relative.weight[0, 0]
        states = [values_ND]
        for layer in self.layers:
            is_dropped = self.training and self.config.layerdrop > 0 and float(torch.rand(())) < self.config.layerdrop
            if self.config.checkpoint_activations and self.training and not is_dropped:
                values_ND = checkpoint(layer, values_ND, sizes_B, False, shared, use_reentrant=False)
            else:
                values_ND = layer(values_ND, sizes_B, is_dropped, shared)
            states.append(values_ND)
        if self.config.norm_first:
            states[-1] = self.norm(values_ND)
        return EncoderOutput([frames.with_values(state) for state in states])


def _position(config: WaveConfig) -> PositionalConv | StackedPositionalConv:
    if config.position == "conv_stack":
        return StackedPositionalConv(
            config.width, config.position_kernel, config.position_groups, config.position_layers
        )
    return PositionalConv(config.width, config.position_kernel, config.position_groups)


def _relative_position(config: WaveConfig) -> PositionBias | None:
    if config.relative is None:
        return None
    match config.relative:
        case GatedRelative():
            return GatedPosition(config.width, config.num_heads)
        case ClippedRelative():
            return ClippedPosition()
        case AlibiRelative():
            return AlibiPosition()


def _relative_table(config: WaveConfig) -> BucketTable | KeyTable | AlibiTable | None:
    match config.relative:
        case None:
            return None
        case GatedRelative(num_buckets=num_buckets, max_distance=max_distance):
            return BucketTable(num_buckets, max_distance, config.num_heads)
        case ClippedRelative(max_distance=max_distance):
            return KeyTable(max_distance, config.width // config.num_heads)
        case AlibiRelative():
            return AlibiTable(config.num_heads)
