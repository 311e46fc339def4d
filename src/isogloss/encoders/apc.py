"""The APC encoder: recurrent layers with residuals over log-mel frames, on packed streams."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Probability
from isogloss.core.lengths import ConvGeometry
from isogloss.core.types import EncoderOutput, FrontendOutput, Packed
from isogloss.encoders.spectral import SPECTRUM_KERNEL, SPECTRUM_STRIDE, SpectralConfig, SpectralEncoder
from isogloss.nn.dropout import Dropout
from isogloss.nn.recurrent import PackedRecurrent


class ApcConfig(SpectralConfig):
    """Sizes of the APC encoder; the defaults are s3prl's and SUPERB's (arXiv 1904.03240).

    recurrent, width, num_layers
        Unidirectional "gru" or "lstm" layers; from the second on each is added to its input.
    dropout
        On the output of every layer but the last, before it is added.
    mask_embedding
        Whether there is an embedding for masked frames; APC itself masks nothing.
    """

    kind: Literal["apc"] = "apc"
    recurrent: Literal["gru", "lstm"] = "gru"
    width: Count = 512
    num_layers: Count = 3
    dropout: Probability = 0.1
    mask_embedding: bool = False


class ApcEncoder(SpectralEncoder):
    """States are the spectrum and the output of each layer; state t has seen the frames 0 … t of its own utterance.

    The normalisation of the spectrum is the one thing that looks ahead, as published: it is over the whole utterance.
    """

    config: ApcConfig
    is_causal = True

    def __init__(self, config: ApcConfig) -> None:
        super().__init__()
        self.config = config
        self.geometry = ConvGeometry((SPECTRUM_KERNEL,), (SPECTRUM_STRIDE,))
        self.latent_width = self.spectrum_width
        self.width, self.num_layers = config.width, config.num_layers
        self.layers = nn.ModuleList(
            PackedRecurrent(config.recurrent, self.latent_width if index == 0 else config.width, config.width, 1)
            for index in range(config.num_layers)
        )
        self.dropout = Dropout(config.dropout)
        if config.mask_embedding:
            self.mask_embedding_D = nn.Parameter(torch.rand(self.latent_width))

    def embed(self, spectrum: Packed) -> FrontendOutput:
        """Return the spectrum itself, N×F, as features and latents."""
        return FrontendOutput(spectrum, spectrum)

    def context(self, latents: Packed, is_masked_N: Tensor | None = None) -> EncoderOutput:
        """Return L+1 states; masked rows of the spectrum are replaced by the mask embedding first."""
        values_ND = latents.values_ND
        if is_masked_N is not None:
            if not self.config.mask_embedding:
                raise ConfigError(
                    "this APC encoder has no mask embedding, but the objective masks latents; usually because an objective "
                    "made for transformers was chosen; try `--set encoder.mask_embedding=true`"
                )
            values_ND = torch.where(is_masked_N.unsqueeze(1), self.mask_embedding_D.to(values_ND.dtype), values_ND)
        elif self.config.mask_embedding and self.training:
            values_ND = values_ND + 0.0 * self.mask_embedding_D
        states = [values_ND]
        for index, layer in enumerate(self.layers):
            out_ND = layer(values_ND, latents.sizes)
            if index + 1 < len(self.layers):
                out_ND = self.dropout(out_ND)
            # The first layer's input is as wide as the spectrum: it is added only where that is the layer's own width.
            values_ND = out_ND + values_ND if out_ND.shape[1] == values_ND.shape[1] else out_ND
            states.append(values_ND)
        return EncoderOutput([latents.with_values(state) for state in states])
