"""data2vec 2.0 (arXiv 2212.07525) for speech.

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| data2vec 2.0 | M masks, exact count, dropped | the EMA teacher's top-8 feed-forwards | regression | wave transformer with ALiBi |

The targets are data2vec's, computed once for an utterance and used for M masks of it. For each mask the encoder sees the frames
that are left, and nothing stands for the others; a small convolutional decoder, given noise in their places, predicts the
targets there:

    loss = Σ_m Σ_{t hidden by mask m} ‖d_t − y_t‖² / √D
"""

from __future__ import annotations

from typing import Annotated, Literal, final

from pydantic import Field

from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Probability, Share, Weight
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.corruption.exact import mask_exactly
from isogloss.encoders.base import Encoder
from isogloss.encoders.wave import AlibiRelative, WaveEncoder
from isogloss.nn.conv_decoder import ConvDecoder, fill_in, seeded_noise
from isogloss.objectives._teacher import FRONTEND, RegressionConfig, TeacherRegression
from isogloss.targets.teacher import EmaTeacher


class Config(RegressionConfig):
    """Settings of data2vec 2.0; the defaults are the released audio BASE. LARGE: num_masks 12, mask_share 0.55, top_layers 16,
    decoder_width 768, decay 0.9997 → 1 over half of the run.

    num_masks
        M, the masks for which each target is used.
    mask_share, mask_span, mask_adjust
        Each mask hides exactly this share of the frames, in spans (`corruption/exact.py`).
    decoder_width, decoder_layers, decoder_kernel, decoder_groups, decoder_dropout
        Of the decoder (`nn/conv_decoder.py`).
    noise
        Standard deviation of what the decoder gets in place of a hidden frame.
    top_layers, smooth_l1, decay_start, decay_end, decay_fraction
        As data2vec's; τ rises over 75 000 of 400 000 updates.
    """

    name: Literal["data2vec2"] = "data2vec2"
    num_masks: Count = 8
    mask_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    mask_span: Count = 5
    mask_adjust: Weight = 0.05
    decoder_width: Count = 384
    decoder_layers: Count = 4
    decoder_kernel: Count = 7
    decoder_groups: Count = 16
    decoder_dropout: Probability = 0.1
    noise: Weight = 0.01
    decay_end: Share = 0.99999
    decay_fraction: Share = 0.1875


@final
class Data2Vec2(TeacherRegression):
    """Regression of a teacher's targets, each used for several masks, by an encoder of the frames that are left."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        _check(config, encoder)
        super().__init__(config, encoder)
        self.decoder = ConvDecoder(
            encoder.width,
            config.decoder_width,
            num_layers=config.decoder_layers,
            kernel=config.decoder_kernel,
            groups=config.decoder_groups,
            dropout=config.decoder_dropout,
        )
        self.teacher = EmaTeacher(encoder, lambda name: not name.startswith(FRONTEND))

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over the hidden frames of all masks of a batch."""
        assert isinstance(encoder, WaveEncoder)
        config, seeds_B = self.config, batch.seeds_B
        latents = encoder.frontend(batch.audio).latents
        device, sizes_B = latents.values_ND.device, latents.sizes
        is_masked_MN = mask_exactly(
            sizes_B,
            utterance_generators(seeds_B, "masks"),
            num_masks=config.num_masks,
            share=config.mask_share,
            span=config.mask_span,
            adjust=config.mask_adjust,
        )
        rows_R = is_masked_MN.flatten().nonzero().squeeze(1)  # of the copies, end to end
        targets_ND = self.targets(latents)
        targets_RD = targets_ND.index_select(0, (rows_R % max(len(targets_ND), 1)).to(device))

        states_KD = encoder.context_of_kept(latents, is_masked_MN).last.values_ND
        generators = utterance_generators(seeds_B, "noise", device)
        noise = seeded_noise(sizes_B, config.num_masks, encoder.width, config.noise, generators, device)
        decoded = self.decoder(fill_in(states_KD, is_masked_MN.flatten(), noise), sizes_B * config.num_masks)
        guesses_RD = decoded.index_select(0, rows_R.to(device)).float()
        return self.terms(guesses_RD, targets_RD, is_masked_MN.numel())


def _check(config: Config, encoder: Encoder) -> None:
    if not isinstance(encoder, WaveEncoder) or not isinstance(encoder.config.relative, AlibiRelative | None):
        raise ConfigError(
            "`encoder` must be a wave transformer without relative positions or with ALiBi, since the frames that are left have to "
            'keep their times; try `encoder.preset="data2vec2-base"`'
        )
    for width, name in ((encoder.width, "the encoder's width"), (config.decoder_width, "`objective.decoder_width`")):
        if width % config.decoder_groups:
            raise ConfigError(
                f"{name} must be a multiple of `objective.decoder_groups`, but {width} is not one of {config.decoder_groups}"
            )
    if config.decoder_kernel % 2 == 0 or config.decoder_kernel < 3:
        raise ConfigError(f"`objective.decoder_kernel` must be odd and at least 3, but is {config.decoder_kernel}")
