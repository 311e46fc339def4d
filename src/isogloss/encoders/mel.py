"""The mel transformer: the trunk of Mockingjay and TERA, on packed streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Positive, Probability
from isogloss.core.lengths import ConvGeometry
from isogloss.core.types import EncoderOutput, FrontendOutput, Packed
from isogloss.encoders.spectral import SPECTRUM_KERNEL, SPECTRUM_STRIDE, SpectralConfig, SpectralEncoder
from isogloss.nn.dropout import Dropout
from isogloss.nn.product import Linear
from isogloss.nn.sinusoid import sinusoidal_positions
from isogloss.nn.transformer import TransformerLayer


class MelConfig(SpectralConfig):
    """Sizes of the mel transformer; the defaults are Mockingjay BASE as s3prl has it now (arXiv 1910.12638) and TERA BASE.

    stack
        Frames of 10 ms that are laid side by side: 1, or 3 in the LARGE model of Mockingjay's paper.
    width, num_layers, num_heads, ffn_width
        Of the transformer, whose norms come after the sums (post-LN, as BERT).
    dropout, attention_dropout
        After attention, feed-forward and the input's norm; of attention weights.
    mask_embedding
        Whether there is an embedding for masked frames. Mockingjay and TERA corrupt the spectrum instead.
    checkpoint_activations
        Recompute each layer in the backward pass: less memory, about a third more time.
    """

    kind: Literal["mel"] = "mel"
    stack: Count = 1
    width: Count = 768
    num_layers: Count = 3
    num_heads: Count = 12
    ffn_width: Count = 3072
    dropout: Probability = 0.1
    attention_dropout: Probability = 0.1
    layer_norm_eps: Positive = 1e-12
    mask_embedding: bool = False
    checkpoint_activations: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width must be a multiple of num_heads, but {self.width} is not one of {self.num_heads}")
        return self


class MelEncoder(SpectralEncoder):
    """Stacked frames, a linear map, sinusoidal positions and a norm, transformer (arXiv 1910.12638, in s3prl's form).

    State 0 is the input of the first layer, L the output of the last one.
    """

    config: MelConfig

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.geometry = ConvGeometry((SPECTRUM_KERNEL, config.stack), (SPECTRUM_STRIDE, config.stack))
        self.latent_width = config.stack * self.spectrum_width
        self.width, self.num_layers = config.width, config.num_layers
        self.projection = Linear(self.latent_width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.dropout)
        if config.mask_embedding:
            self.mask_embedding_D = nn.Parameter(torch.rand(config.width))
        self.layers = nn.ModuleList(
            TransformerLayer(
                config.width,
                config.num_heads,
                config.ffn_width,
                norm_first=False,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                activation_dropout=0.0,
                eps=config.layer_norm_eps,
            )
            for _ in range(config.num_layers)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def blocks(self) -> Sequence[nn.Module]:
        """Return the transformer layers."""
        return list(self.layers)

    def feed_forwards(self) -> Sequence[nn.Module]:
        """Return the feed-forward of each layer."""
        return [layer.get_submodule("ffn") for layer in self.layers]

    def embed(self, spectrum: Packed) -> FrontendOutput:
        """Lay `stack` frames side by side, N×(stack·F), features and latents alike; frames that fill no stack are left out."""
        stacked = stack_frames(spectrum, self.config.stack)
        return FrontendOutput(stacked, stacked)

    def context(self, latents: Packed, is_masked_N: Tensor | None = None) -> EncoderOutput:
        """Return L+1 states, N×width; masked rows are replaced by the mask embedding after the projection."""
        sizes_B = latents.sizes
        values_ND = self.projection(latents.values_ND)
        if is_masked_N is not None:
            if not self.config.mask_embedding:
                raise ConfigError(
                    "this mel encoder has no mask embedding, but the objective masks latents; usually because an objective "
                    "made for other encoders was chosen; try `--set encoder.mask_embedding=true`"
                )
            values_ND = torch.where(is_masked_N.unsqueeze(1), self.mask_embedding_D.to(values_ND.dtype), values_ND)
        elif self.config.mask_embedding and self.training:
            # Processes of a group expect a gradient for every parameter, even where nothing is masked.
            values_ND = values_ND + 0.0 * self.mask_embedding_D
        values_ND = values_ND + sinusoidal_positions(sizes_B, self.width, values_ND.device)
        values_ND = self.dropout(self.norm(values_ND))
        states = [values_ND]
        for layer in self.layers:
            if self.config.checkpoint_activations and self.training:
                values_ND = checkpoint(layer, values_ND, sizes_B, use_reentrant=False)
            else:
                values_ND = layer(values_ND, sizes_B)
            states.append(values_ND)
        return EncoderOutput([latents.with_values(state) for state in states])


def stack_frames(values: Packed, count: int) -> Packed:
    """Lay `count` consecutive rows of each utterance side by side, N×F to ⌊n/count⌋ rows of count·F; the rest is left out."""
    if count == 1:
        return values
    stacked = [part[: len(part) // count * count].unflatten(0, (-1, count)).flatten(1) for part in values.split()]
    return Packed.from_list(stacked)
