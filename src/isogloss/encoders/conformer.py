"""Conformers on mel spectra: w2v-Conformer, BigSSL, w2v-BERT, BEST-RQ, USM, w2v-BERT 2.0, packed."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import nn

from isogloss.core.fields import Count
from isogloss.core.lengths import ConvGeometry
from isogloss.core.types import FrontendOutput, Packed
from isogloss.encoders._conformer import BlockConfig, ConformerContext
from isogloss.encoders.spectral import SPECTRUM_KERNEL, SPECTRUM_STRIDE, SpectralConfig, SpectralEncoder
from isogloss.nn.filterbank import packed_kaldi_log_mel
from isogloss.nn.subsampling import ConvSubsampling, stack_frames


class ConformerConfig(BlockConfig, SpectralConfig):
    """Sizes of a Conformer on log-mel frames; the defaults are w2v-BERT XL (arXiv 2108.06209, table 1).

    filterbank
        "plain": nn/filterbank.py's own. "kaldi16": what Kaldi computes from 16-bit samples up to 8 kHz, with unbiased variances
        in "utterance" normalisation: the input of w2v-BERT 2.0 (arXiv 2312.05187, §3.2.1; Hugging Face's SeamlessM4TFeatureExtractor).
    subsampling
        "conv": two 2-D convolutions of stride 2 over time and bins, 40 ms from frame to frame. "stack": `num_stacked` frames
        side by side, 10·num_stacked ms.
    conv_channels
        Channels of the two convolutions. The publications give none; these make the published totals.
    num_stacked
        Frames in a stack: 2 in w2v-BERT 2.0, 4 in BEST-RQ.
    """

    kind: Literal["conformer"] = "conformer"
    filterbank: Literal["plain", "kaldi16"] = "plain"
    subsampling: Literal["conv", "stack"] = "conv"
    conv_channels: tuple[Count, Count] = (128, 32)
    num_stacked: Count = 2
    num_heads: Count = 8
    kernel: Count = 5

    @model_validator(mode="after")
    def _frontend_fits(self) -> Self:
        if self.filterbank == "kaldi16" and (self.num_deltas or self.normalization == "global"):
            raise ValueError('filterbank = "kaldi16" has no deltas, and normalization "utterance" or "none"')
        return self


class ConformerEncoder(ConformerContext, SpectralEncoder):
    """Log-mel frames, subsampling, norm, projection, Conformer blocks."""

    config: ConformerConfig

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        if config.subsampling == "conv":
            self.convolutions = ConvSubsampling(self.spectrum_width, config.conv_channels)
            self.geometry = ConvGeometry((SPECTRUM_KERNEL, 3, 3), (SPECTRUM_STRIDE, 2, 2))
            latent_width = self.convolutions.width
        else:
            self.geometry = ConvGeometry((SPECTRUM_KERNEL, config.num_stacked), (SPECTRUM_STRIDE, config.num_stacked))
            latent_width = config.num_stacked * self.spectrum_width
        self.latent_norm = nn.LayerNorm(latent_width, eps=config.layer_norm_eps)
        self._build_context(latent_width)

    @torch.no_grad()
    def spectrum(self, audio: Packed) -> Packed:
        """Turn packed samples (N) into N×F float32 frames, 25 ms every 10 ms, each utterance by itself, without a gradient."""
        if self.config.filterbank == "kaldi16":
            return packed_kaldi_log_mel(
                audio, self.config.num_bins, is_normalized=self.config.normalization == "utterance"
            )
        return super().spectrum(audio)

    def embed(self, spectrum: Packed) -> FrontendOutput:
        """Return the subsampled frames (`features`) and the same after layer norm (`latents`)."""
        is_stacked = self.config.subsampling == "stack"
        features = stack_frames(spectrum, self.config.num_stacked) if is_stacked else self.convolutions(spectrum)
        return FrontendOutput(features, features.with_values(self.latent_norm(features.values_ND)))
