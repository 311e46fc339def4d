"""w2v-BERT (arXiv 2108.06209).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| w2v-BERT | spans | Gumbel codes | InfoNCE at a middle layer + masked prediction at the top | conformer on mel |

Hide spans of the latents f; a middle layer's state c tells each hidden frame's quantized latent q from others, as in wav2vec 2.0,
and the last layer's state m predicts which code that was. With M hidden frames,

    loss = contrastive_weight · [Σ InfoNCE(c, q) + M · diversity_weight · (GV − perplexity)/GV]
         + prediction_weight · Σ_t 1/G Σ_g cross-entropy(W_g m_t, code_t,g)

The codes of the last term carry no gradient. Without the contrastive term nothing keeps them apart.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Positive, Weight
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.corruption.bernoulli import fill_with_noise, mask_bernoulli
from isogloss.encoders.base import Encoder
from isogloss.losses.contrastive import contrast, info_nce
from isogloss.losses.prediction import unit_cross_entropy, unit_metrics
from isogloss.objectives._gumbel import GumbelConfig, WithGumbelCodes
from isogloss.objectives._watches import chance_watch
from isogloss.objectives.base import Watch


class Config(GumbelConfig):
    """Settings of w2v-BERT; the defaults are XL (arXiv 2108.06209), what it does not say as in fairseq2.

    start_probability, mask_span
        Every frame begins a span of so many frames with this probability.
    fill, noise_std
        Hidden latents become N(0, noise_std²) ("noise", the paper) or the encoder's mask embedding ("learned", w2v-BERT 2.0).
    contrastive_layer
        The layer of the contrastive term, from 1; half of the encoder's layers where it is not given (12 of 24; fairseq2: 8).
    num_negatives, temperature
        Distractors for each hidden frame, and the divisor of the cosine.
    num_codebooks …, gumbel_temperature_start …, diversity_weight
        Of the codes (`GumbelConfig`): one codebook of 1024 codes of 1024 numbers. fairseq2's temperature falls by 0.999995 an
        update towards 0.1 and is at 0.271 after the published 400 000.
    contrastive_weight, prediction_weight
        Weights of the two tasks; the first holds for the diversity too. contrastive_weight 0 is the negative control.
    """

    name: Literal["w2v_bert"] = "w2v_bert"
    start_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.065
    mask_span: Count = 10
    fill: Literal["noise", "learned"] = "noise"
    noise_std: Weight = 0.1
    contrastive_layer: Count | None = None
    num_negatives: Count = 100
    temperature: Positive = 0.1
    num_codebooks: Count = 1
    num_codes: Annotated[int, Field(ge=2)] = 1024
    target_width: Count = 1024
    final_width: Count = 768
    gumbel_temperature_end: Positive = 0.271
    temperature_decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    contrastive_weight: Weight = 1.0
    prediction_weight: Weight = 1.0

    @model_validator(mode="after")
    def _fills(self) -> Self:
        if self.fill == "learned" and self.changed("noise_std"):
            raise ValueError('noise_std belongs to fill = "noise", not to "learned"')
        return self


@final
class W2vBert(WithGumbelCodes):
    """Contrastive learning of codes in the middle, masked prediction of the same codes at the top."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.layer = config.contrastive_layer or max(encoder.num_layers // 2, 1)
        if self.layer >= encoder.num_layers:
            raise ConfigError(
                f"`objective.contrastive_layer` must be below the encoder's {encoder.num_layers} layers, but is {self.layer}"
            )
        # The perplexity is a statistic of a micro-batch.
        self.additive = config.diversity_weight * config.contrastive_weight == 0.0
        self.build_codes(encoder.latent_width)
        self.project_context = nn.Linear(encoder.width, config.final_width)
        self.predictions = nn.Linear(encoder.width, config.num_codebooks * config.num_codes)
        # States have unit variance: the first loss is then within 0.1 of ln(num_codes), however wide they are.
        nn.init.normal_(self.predictions.weight, std=0.25 * encoder.width**-0.5)
        nn.init.zeros_(self.predictions.bias)
        self.watches = _watches(config)

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over the hidden frames of a batch."""
        config, seeds_B = self.config, batch.seeds_B
        latents = encoder.frontend(batch.audio).latents
        device = latents.values_ND.device
        is_masked_N = mask_bernoulli(
            latents.sizes,
            utterance_generators(seeds_B, "masks"),
            start_probability=config.start_probability,
            span=config.mask_span,
        )
        rows_M = is_masked_N.nonzero().squeeze(1).to(device)
        num_masked_B = torch.stack([part.sum() for part in is_masked_N.split(latents.sizes)])
        num_masked = len(rows_M)
        states = self._context(encoder, latents, is_masked_N, seeds_B)

        masked = Packed(latents.values_ND.index_select(0, rows_M), num_masked_B)
        quantized = self.quantizer(masked, self.gumbel_temperature, utterance_generators(seeds_B, "codes", device))
        logits_MK = contrast(
            self.project_context(states[self.layer].values_ND.index_select(0, rows_M)),
            self.project_targets(quantized.targets_MD),
            masked.sizes,
            utterance_generators(seeds_B, "negatives", device),
            num_negatives=config.num_negatives,
            temperature=config.temperature,
            codes_MG=quantized.codes_MG,
        )
        contrastive, num_correct = info_nce(logits_MK)
        diversity, code_metrics = self.diversity(quantized, num_masked)

        top_MD = states[-1].values_ND.index_select(0, rows_M)
        guesses_MGC = self.predictions(top_MD).unflatten(1, (config.num_codebooks, -1))
        prediction = unit_cross_entropy(guesses_MGC.flatten(0, 1), quantized.codes_MG.flatten()) / config.num_codebooks

        total = config.contrastive_weight * (contrastive + config.diversity_weight * diversity)
        total = total + config.prediction_weight * prediction
        guessed = unit_metrics(guesses_MGC[:, 0], quantized.codes_MG[:, 0])
        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {
            "contrastive_loss": (contrastive.detach(), num_masked),
            "accuracy": (num_correct, num_masked),
            "prediction_loss": (prediction.detach(), num_masked),
            "prediction_accuracy": guessed["accuracy"],
            "majority_share": guessed["majority_share"],
            "gain_over_majority": guessed["gain_over_majority"],
            "code_entropy_share": self._entropy_share(quantized.code_perplexity, num_masked),
            "masked_fraction": (num_masked, len(is_masked_N)),
            **code_metrics,
        }
        return LossTerms(total, num_masked, metrics)

    def _entropy_share(self, code_perplexity: Tensor, num_masked: int) -> tuple[Tensor | float, float]:
        """Return the log-perplexity of a codebook over the largest that so many hidden frames can have."""
        largest = min(num_masked, self.config.num_codes)
        if largest < 2:
            return 0.0, 0.0
        return (code_perplexity / self.config.num_codebooks).log() / math.log(largest), 1.0

    def _context(self, encoder: Encoder, latents: Packed, is_masked_N: Tensor, seeds_B: Tensor) -> list[Packed]:
        device = latents.values_ND.device
        if self.config.fill == "learned":
            return encoder.context(latents, is_masked_N.to(device)).states
        noise = utterance_generators(seeds_B, "noise", device)
        return encoder.context(fill_with_noise(latents, is_masked_N, noise, std=self.config.noise_std)).states


def _watches(config: Config) -> tuple[Watch, ...]:
    advice = "raise `objective.contrastive_weight` or `objective.diversity_weight`, or lower the learning rate"
    return (
        Watch(
            metric="majority_share",
            high=0.5,
            meaning="the codebook has collapsed: one code is the target of most hidden frames, and predicting it is trivial",
            advice=advice,
            patience=200,
            grace=100,
        ),
        Watch(
            metric="code_entropy_share",
            low=0.5,  # real speech, 70 hidden frames, 64 codes: .57 and more as it is, .46 and less without the contrastive term
            meaning=f"the codebook has collapsed to a few of its {config.num_codes} codes",
            advice=advice,
            patience=200,
            grace=100,
        ),
        Watch(
            metric="prediction_loss",
            low=0.02,
            meaning="the codes have become trivial to predict",
            advice=advice,
            patience=200,
            grace=100,
        ),
        chance_watch(2 / (1 + config.num_negatives), "the middle layer tells the positive from its negatives"),
    )
