"""The encoder of wav2vec and vq-wav2vec: strided convolutions, perhaps a quantizer, causal convolutions, on packed streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from isogloss.core.config import Config
from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Probability
from isogloss.core.lengths import ConvGeometry
from isogloss.core.types import EncoderOutput, FrontendOutput, Packed, iterate_spans
from isogloss.encoders.base import Encoder
from isogloss.nn.convolution import StridedConv
from isogloss.nn.dropout import Dropout
from isogloss.nn.stream import StreamLayout
from isogloss.nn.time_norm import TimeGroupNorm
from isogloss.nn.vector_quantizer import GumbelVectorQuantizer, KMeansVectorQuantizer, QuantizedRows


class Wav2VecConfig(Config):
    """Sizes and switches of the wav2vec encoder; the defaults are wav2vec LARGE as released (arXiv 1904.05862).

    channels, kernels, strides
        Width of every convolution, and one kernel and stride for each (samples first, then rows); the hop is 10 ms.
    context_kernels
        Kernels of the causal convolutions of the aggregator, in frames: 2 … 13 (LARGE), nine of 3 (base).
    activation
        "relu" (wav2vec) or "gelu" (vq-wav2vec), in both stacks.
    log_compression
        log(1 + |x|) of the last convolution's output, as the LARGE release has it.
    skip_connections
        Add each causal convolution's input to its output, times √½.
    quantizer
        "none", or what stands between the stacks in vq-wav2vec (arXiv 1910.05453): "gumbel" or "kmeans".
    num_codebooks, num_codes, share_codebook
        G, V, and whether all groups choose from one codebook, as the published command has it.
    dropout
        After every convolution; 0 in all releases.
    mask_embedding
        Whether there is an embedding for masked frames; wav2vec itself masks nothing.
    """

    kind: Literal["wav2vec"] = "wav2vec"
    channels: Count = 512
    kernels: tuple[Count, ...] = (10, 8, 4, 4, 4, 1, 1)
    strides: tuple[Count, ...] = (5, 4, 2, 2, 2, 1, 1)
    context_kernels: tuple[Count, ...] = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
    activation: Literal["relu", "gelu"] = "relu"
    log_compression: bool = True
    skip_connections: bool = True
    quantizer: Literal["none", "gumbel", "kmeans"] = "none"
    num_codebooks: Count = 2
    num_codes: Annotated[int, Field(ge=2)] = 320
    share_codebook: bool = True
    dropout: Probability = 0.0
    mask_embedding: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.kernels) != len(self.strides) or not self.kernels:
            raise ValueError(
                "kernels and strides must be equally many and at least one, but have "
                f"{len(self.kernels)} and {len(self.strides)} entries"
            )
        if self.quantizer != "none" and self.channels % self.num_codebooks:
            raise ValueError(
                f"channels must be a multiple of num_codebooks, but {self.channels} is not one of {self.num_codebooks}"
            )
        return self


class Wav2VecEncoder(Encoder):
    """States are z (what the aggregator reads) and the output of each causal convolution, the last being c.

    With a quantizer, `features` are the dense z and `latents` the vectors of its codes: what is trained, saved, loaded and
    extracted is the whole chain, and `codes` gives the code numbers. c_t has seen the frames 0 … t, but for the statistics
    of the norms, which run over the whole utterance as published.
    """

    config: Wav2VecConfig
    normalizes_waveform = False
    is_causal = True

    def __init__(self, config: Wav2VecConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels
        self.geometry = ConvGeometry(config.kernels, config.strides)
        self.latent_width, self.width, self.num_layers = width, width, len(config.context_kernels)
        self.convs = nn.ModuleList(
            _convolution(1 if index == 0 else width, width, kernel, stride, bias=False)
            for index, (kernel, stride) in enumerate(zip(config.kernels, config.strides, strict=True))
        )
        self.norms = nn.ModuleList(TimeGroupNorm(width) for _ in config.kernels)
        self.quantizer = _quantizer(config)
        self.context_convs = nn.ModuleList(
            _convolution(width, width, kernel, 1, bias=True) for kernel in config.context_kernels
        )
        self.context_norms = nn.ModuleList(TimeGroupNorm(width) for _ in config.context_kernels)
        self.dropout = Dropout(config.dropout)
        self.activation: Callable[[Tensor], Tensor] = F.relu if config.activation == "relu" else F.gelu
        if config.mask_embedding:
            self.mask_embedding_D = nn.Parameter(torch.rand(width))

    def convolve(self, audio: Packed) -> Packed:
        """Return the dense z of packed samples, N×channels, before any quantizer."""
        layout = StreamLayout.of(audio.sizes, self.geometry)
        lengths_B = torch.tensor(layout.frames_B, dtype=torch.int64)
        if not layout.num_samples:
            return Packed(audio.values_ND.new_zeros(0, self.latent_width), lengths_B)
        values_RD = layout.pack(audio.values_ND).unsqueeze(1)
        for depth, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True), start=1):
            values_RD = self.dropout(conv(values_RD))
            firsts, sizes = layout.first_row_B(depth), layout.rows_LB[depth]
            spans = [(f, f + n) for f, n, s in zip(firsts, sizes, layout.frames_B, strict=True) if s]
            values_RD = self.activation(norm(values_RD, spans))
        z_ND = values_RD.index_select(0, layout.kept_rows_N(values_RD.device))
        if self.config.log_compression:
            z_ND = torch.log1p(z_ND.float().abs())
        return Packed(z_ND, lengths_B)

    def quantize(
        self, z: Packed, generators: Sequence[torch.Generator] | None = None, temperature: Tensor | float = 1.0
    ) -> QuantizedRows:
        """Turn the dense z into codes; without generators nothing is drawn. Raises `ConfigError` without a quantizer."""
        if self.quantizer is None:
            raise ConfigError(
                'this wav2vec encoder has no quantizer; usually because its `quantizer` is "none"; try `--set '
                'encoder.quantizer="gumbel"`, or the objective `wav2vec`'
            )
        rows: QuantizedRows = self.quantizer(z, generators, temperature)
        return rows

    def codes(self, audio: Packed) -> Packed:
        """Return the code numbers of each frame, N×G (int64), as a model of discrete units reads them."""
        z = self.convolve(audio)
        return z.with_values(self.quantize(z).codes_NG)

    def frontend(self, audio: Packed) -> FrontendOutput:
        """Return the dense z as features, and as latents the same or, with a quantizer, the vectors of its likeliest codes."""
        z = self.convolve(audio)
        if self.quantizer is None:
            return FrontendOutput(z, z)
        return FrontendOutput(z, z.with_values(self.quantize(z).values_ND))

    def context(self, latents: Packed, is_masked_N: Tensor | None = None) -> EncoderOutput:
        """Return L+1 states, N×channels; each causal convolution repeats an utterance's first frame to its left."""
        values_ND = latents.values_ND
        if is_masked_N is not None:
            if not self.config.mask_embedding:
                raise ConfigError(
                    "this wav2vec encoder has no mask embedding, but the objective masks frames; usually because an objective "
                    "made for transformers was chosen; try `--set encoder.mask_embedding=true`"
                )
            values_ND = torch.where(is_masked_N.unsqueeze(1), self.mask_embedding_D.to(values_ND.dtype), values_ND)
        elif self.config.mask_embedding and self.training:
            # Processes of a group expect a gradient for every parameter, even where nothing is masked.
            values_ND = values_ND + 0.0 * self.mask_embedding_D
        states, sizes_B = [values_ND], latents.sizes
        spans = list(iterate_spans(sizes_B))
        for conv, norm in zip(self.context_convs, self.context_norms, strict=True):
            out_ND = self.activation(norm(self.dropout(_convolve_causally(conv, values_ND, sizes_B)), spans))
            values_ND = (out_ND + values_ND) * 0.5**0.5 if self.config.skip_connections else out_ND
            states.append(values_ND)
        return EncoderOutput([latents.with_values(state) for state in states])


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int, *, bias: bool) -> StridedConv:
    conv = StridedConv(in_channels, out_channels, kernel, stride, bias=bias)
    # torch's default for convolutions, as in the released code: Kaiming uniform with a = √5.
    nn.init.kaiming_uniform_(conv.weight.view(out_channels, -1), a=5**0.5)
    return conv


def _convolve_causally(conv: nn.Module, values_ND: Tensor, sizes_B: Sequence[int]) -> Tensor:
    """Convolve so that row t sees the rows up to t of its utterance, whose first row stands for what was before it."""
    assert isinstance(conv, StridedConv)
    lead = conv.weight.shape[1] - 1
    pieces, kept, start = [], [], 0
    for part in values_ND.split(list(sizes_B)):
        if len(part):
            pieces += [part[:1].expand(lead, -1), part]
            kept.append((start, start + len(part)))
            start += lead + len(part)
    if not pieces:
        return values_ND.new_zeros(0, len(conv.weight))
    out_RD = conv(torch.cat(pieces))
    return torch.cat([out_RD[first:end] for first, end in kept])


def _quantizer(config: Wav2VecConfig) -> GumbelVectorQuantizer | KMeansVectorQuantizer | None:
    if config.quantizer == "none":
        return None
    kind = GumbelVectorQuantizer if config.quantizer == "gumbel" else KMeansVectorQuantizer
    return kind(
        config.channels,
        num_groups=config.num_codebooks,
        num_codes=config.num_codes,
        is_shared=config.share_codebook,
    )
