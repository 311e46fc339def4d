"""The wave Conformer (Wav2Vec2Conformer): the trunk's convolutions over samples, then Conformer blocks, packed."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from isogloss.core.fields import Count
from isogloss.core.types import FrontendOutput, Packed
from isogloss.encoders._conformer import BlockConfig, ConformerContext
from isogloss.encoders.frontends import WaveFrontend
from isogloss.nn.dropout import scale_gradient


class WaveConformerConfig(BlockConfig):
    """Sizes of the wave Conformer; the defaults are the released Wav2Vec2Conformer LARGE with relative positions.

    conv_channels, conv_kernels, conv_strides, conv_bias
        One entry for each convolution of the frontend; strides in samples (first) and rows.
    conv_features_norm
        "layer" (after every convolution) or "group" (after the first one, over the time of an utterance).
    feature_gradient_scale
        Factor on the gradient of these convolutions; 0 freezes them.
    normalize_waveform
        Whether each whole utterance is brought to zero mean and unit variance (`Encoder.prepare`).
    """

    kind: Literal["wave_conformer"] = "wave_conformer"
    conv_channels: tuple[Count, ...] = (512,) * 7
    conv_kernels: tuple[Count, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[Count, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = True
    conv_features_norm: Literal["group", "layer"] = "layer"
    feature_gradient_scale: Annotated[float, Field(ge=0.0)] = 1.0
    normalize_waveform: bool = True
    final_norm: bool = True

    @model_validator(mode="after")
    def _frontend_fits(self) -> Self:
        if not len(self.conv_channels) == len(self.conv_kernels) == len(self.conv_strides) >= 1:
            raise ValueError(
                "conv_channels, conv_kernels and conv_strides must be equally many and at least one, but have "
                f"{len(self.conv_channels)}, {len(self.conv_kernels)} and {len(self.conv_strides)} entries"
            )
        return self


class WaveConformerEncoder(ConformerContext):
    """Convolutions, projection, Conformer blocks (arXiv 2010.05171, fairseq's wav2vec 2.0 Conformer).

    The released models carry a positional convolution that nothing ever uses; here it does not exist.
    """

    config: WaveConformerConfig

    def __init__(self, config: WaveConformerConfig) -> None:
        super().__init__()
        self.config = config
        self.normalizes_waveform = config.normalize_waveform
        self.convolutions = WaveFrontend(
            config.conv_channels,
            config.conv_kernels,
            config.conv_strides,
            norm=config.conv_features_norm,
            bias=config.conv_bias,
        )
        self.geometry = self.convolutions.geometry
        self.latent_norm = nn.LayerNorm(config.conv_channels[-1], eps=config.layer_norm_eps)
        self._build_context(config.conv_channels[-1])
        if config.feature_gradient_scale == 0.0:
            self.convolutions.requires_grad_(False)

    def frontend(self, audio: Packed) -> FrontendOutput:
        """Return the last convolution's outputs (`features`) and the same after layer norm (`latents`), N×512 in LARGE."""
        features = self.convolutions(audio)
        scaled_ND = scale_gradient(features.values_ND, self.config.feature_gradient_scale)
        return FrontendOutput(features.with_values(scaled_ND), features.with_values(self.latent_norm(scaled_ND)))
