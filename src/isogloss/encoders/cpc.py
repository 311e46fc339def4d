"""The CPC encoder: strided convolutions with padding, then a recurrent network, on packed streams."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from isogloss.core.config import Config
from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count
from isogloss.core.lengths import ConvGeometry
from isogloss.core.types import EncoderOutput, FrontendOutput, Packed
from isogloss.encoders.base import Encoder
from isogloss.nn.convolution import StridedConv
from isogloss.nn.norm import ChannelNorm
from isogloss.nn.recurrent import PackedRecurrent
from isogloss.nn.stream import StreamLayout


class CpcConfig(Config):
    """Sizes of the CPC encoder; the defaults are modified CPC (arXiv 2002.02848 and its released code).

    channels
        Width of every convolution (original CPC, arXiv 1807.03748, §3.1: 512).
    kernels, strides, paddings
        One entry for each convolution, in samples (first) and rows (the others); the hop is 160 samples, 10 ms.
    norm
        "channel": over the channels of each row, unbiased variance (modified). "none" (original). The batch norm of some
        reimplementations is not offered: it lets the future and other utterances leak into a frame.
    recurrent, width, recurrent_layers
        "lstm" of 256 (modified) or "gru" of 256 (original).
    mask_embedding
        Whether there is an embedding for masked frames; CPC itself masks nothing.
    """

    kind: Literal["cpc"] = "cpc"
    channels: Count = 256
    kernels: tuple[Count, ...] = (10, 8, 4, 4, 4)
    strides: tuple[Count, ...] = (5, 4, 2, 2, 2)
    paddings: tuple[Annotated[int, Field(ge=0)], ...] = (3, 2, 1, 1, 1)
    norm: Literal["channel", "none"] = "channel"
    recurrent: Literal["lstm", "gru"] = "lstm"
    width: Count = 256
    recurrent_layers: Count = 1
    mask_embedding: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not len(self.kernels) == len(self.strides) == len(self.paddings) >= 1:
            raise ValueError(
                "kernels, strides and paddings must be equally many and at least one, but have "
                f"{len(self.kernels)}, {len(self.strides)} and {len(self.paddings)} entries"
            )
        return self


class CpcEncoder(Encoder):
    """States are z (the convolutions' output, arXiv 1807.03748's z_t) and c (the recurrent network's output, c_t)."""

    config: CpcConfig
    normalizes_waveform = False
    is_causal = True

    def __init__(self, config: CpcConfig) -> None:
        super().__init__()
        self.config = config
        self.geometry = ConvGeometry(config.kernels, config.strides, config.paddings)
        self.latent_width, self.width, self.num_layers = config.channels, config.width, 1
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        for index, (kernel, stride) in enumerate(zip(config.kernels, config.strides, strict=True)):
            before = 1 if index == 0 else config.channels
            conv = StridedConv(before, config.channels, kernel, stride, bias=True)
            # torch's default for convolutions, as the released code has it: Kaiming uniform with a = √5.
            nn.init.kaiming_uniform_(conv.weight.view(config.channels, -1), a=5**0.5)
            self.convs.append(conv)
            if config.norm == "channel":
                self.norms.append(ChannelNorm(config.channels))
        if config.mask_embedding:
            self.mask_embedding_D = nn.Parameter(torch.rand(config.channels))
        self.recurrent = PackedRecurrent(config.recurrent, config.channels, config.width, config.recurrent_layers)

    def frontend(self, audio: Packed) -> FrontendOutput:
        """Return z as features and latents alike, N×channels; frame t sees samples 160t − 153 … 160t + 311 of its utterance."""
        layout = StreamLayout.of(audio.sizes, self.geometry)
        lengths_B = torch.tensor(layout.frames_B, dtype=torch.int64)
        if not layout.num_samples:
            z = Packed(audio.values_ND.new_zeros(0, self.latent_width), lengths_B)
            return FrontendOutput(z, z)
        values_RD = layout.pack(audio.values_ND).unsqueeze(1)
        for index, conv in enumerate(self.convs):
            values_RD = conv(values_RD)
            if self.config.norm == "channel":
                values_RD = self.norms[index](values_RD)
            if index + 1 < len(self.convs):
                # The next convolution's padding: what lies between utterances is silence at every depth.
                borders = layout.border_rows(index + 1, len(values_RD), values_RD.device)
                values_RD = values_RD.index_fill(0, borders, 0.0)
            values_RD = F.relu(values_RD)
        z = Packed(values_RD.index_select(0, layout.kept_rows_N(values_RD.device)), lengths_B)
        return FrontendOutput(z, z)

    def context(self, latents: Packed, is_masked_N: Tensor | None = None) -> EncoderOutput:
        """Return [z, c]; c_t has seen the frames 0 … t of its own utterance."""
        values_ND = latents.values_ND
        if is_masked_N is not None:
            if not self.config.mask_embedding:
                raise ConfigError(
                    "this CPC encoder has no mask embedding, but the objective masks frames; usually because an objective "
                    "made for transformers was chosen; try `--set encoder.mask_embedding=true`"
                )
            values_ND = torch.where(is_masked_N.unsqueeze(1), self.mask_embedding_D.to(values_ND.dtype), values_ND)
        context_ND = self.recurrent(values_ND, latents.sizes)
        return EncoderOutput([latents.with_values(values_ND), latents.with_values(context_ND)])
