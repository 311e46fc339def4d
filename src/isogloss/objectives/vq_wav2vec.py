"""vq-wav2vec (arXiv 1910.05453), with Gumbel softmax or k-means.

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| vq-wav2vec | none (causal) | Gumbel or k-means codes of future latents | binary NCE over K steps | conv + VQ + conv |

wav2vec on quantized latents: the encoder's quantizer turns z into ẑ, the aggregator reads ẑ, and its guesses are scored
against ẑ. The quantizer is a layer of the encoder (`encoder.quantizer` chooses which), so that a trained model gives codes and
context without this objective. With P_i pairs in utterance i,

    loss = wav2vec's loss on ẑ
         + Σ_i P_i · mean_i[ (sg(z) − ẑ)² + commitment · (z − sg(ẑ))² ]                (k-means)
         + P · diversity_weight · (GV − perplexity)/GV                                  (Gumbel; 0 as published)
"""

from __future__ import annotations

from typing import Literal, final

import torch
from torch import Tensor

from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Positive, Weight
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.encoders.base import Encoder
from isogloss.encoders.wav2vec import Wav2VecEncoder
from isogloss.losses.diversity import diversity_loss
from isogloss.nn.vector_quantizer import QuantizedRows
from isogloss.objectives._future import FuturePredictor, metrics_of
from isogloss.objectives._gumbel import TemperatureConfig, WithTemperature, temperature_metrics
from isogloss.objectives._watches import chance_watch
from isogloss.objectives.base import Watch
from isogloss.targets.base import Quantized


class Config(TemperatureConfig):
    """Settings of vq-wav2vec; the defaults are the published ones (arXiv 1910.05453, and the released commands).

    num_steps, num_negatives, offset, negative_weight
        As in `wav2vec`.
    gumbel_temperature_start, gumbel_temperature_end, temperature_decay_fraction
        Of an encoder with `quantizer = "gumbel"` (`TemperatureConfig`): 2 · 0.999995ⁿ reaches 0.5 after 277 258 of 400 000 updates.
    diversity_weight
        Weight of wav2vec 2.0's diversity loss; the published runs have none. With it the loss holds a batch statistic.
    kmeans_weight, commitment
        Weight of the two squared distances with `quantizer = "kmeans"`, and γ of the second (arXiv 1910.05453).
    """

    name: Literal["vq_wav2vec"] = "vq_wav2vec"
    num_steps: Count = 12
    num_negatives: Count = 10
    offset: Count | None = None
    negative_weight: Positive = 1.0
    diversity_weight: Weight = 0.0
    kmeans_weight: Weight = 1.0
    commitment: Weight = 0.25


@final
class VqWav2Vec(WithTemperature):
    """Binary contrastive prediction of quantized latents, by a context of quantized latents."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        if not isinstance(encoder, Wav2VecEncoder) or encoder.config.quantizer == "none":
            raise ConfigError(
                "objective `vq_wav2vec` needs an encoder of kind `wav2vec` with a quantizer; usually because its `quantizer` is "
                '"none"; try `--set encoder.quantizer="gumbel"` or `encoder.preset="vq-wav2vec-gumbel"`'
            )
        if config.diversity_weight and encoder.config.quantizer == "kmeans":
            raise ConfigError(
                '`objective.diversity_weight` must be 0 with `encoder.quantizer` "kmeans", whose codes have no probabilities'
            )
        temperature = ["gumbel_temperature_end", "temperature_decay_fraction"]
        # Where a model goes on (`continued`), start and end are one, which nobody chose.
        if config.gumbel_temperature_start != config.gumbel_temperature_end:
            temperature.append("gumbel_temperature_start")
        others = {"gumbel": config.changed("kmeans_weight", "commitment"), "kmeans": config.changed(*temperature)}
        if unused := others[encoder.config.quantizer]:
            raise ConfigError(
                f'`objective.{unused[0]}` has no effect with `encoder.quantizer` "{encoder.config.quantizer}"; leave it out'
            )
        self.config = config
        self.additive = config.diversity_weight == 0.0
        self.predictor = FuturePredictor(
            encoder, num_steps=config.num_steps, num_negatives=config.num_negatives, offset=config.offset
        )
        self.start_temperature()
        self.watches = _watches(config, encoder.config.num_codebooks)

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over all pairs of a frame and a step of a batch."""
        assert isinstance(encoder, Wav2VecEncoder)
        config, is_gumbel = self.config, encoder.config.quantizer == "gumbel"
        z = encoder.convolve(batch.audio)
        device = z.values_ND.device
        noise = utterance_generators(batch.seeds_B, "codes", device) if self.training and is_gumbel else None
        rows = encoder.quantize(z, noise, self.gumbel_temperature if is_gumbel else 1.0)
        latents = z.with_values(rows.values_ND)
        context = encoder.context(latents).last
        generators = utterance_generators(batch.seeds_B, "negatives", device)
        result = self.predictor(context, latents, generators, config.negative_weight)

        num_pairs, num_frames = int(result.num_pairs_K.sum()), len(z.values_ND)
        codes = Quantized(rows.values_ND, rows.codes_NG, rows.mean_probabilities_GC)
        total = result.losses_K.sum()
        metrics = metrics_of(result)
        if is_gumbel:
            num_codes = rows.mean_probabilities_GC.numel()
            diversity = diversity_loss(codes.probability_perplexity, num_codes, num_pairs)
            total = total + config.diversity_weight * diversity
            metrics |= temperature_metrics(self.gumbel_temperature, codes, num_frames)
        else:
            metrics["code_perplexity"] = (codes.code_perplexity * float(num_frames > 0), float(num_frames > 0))
            distances = self._distances(rows, z, self.predictor.lags())
            total = total + config.kmeans_weight * distances
            metrics["kmeans_loss"] = (distances.detach(), num_pairs)
        return LossTerms(total, num_pairs, metrics)

    def _distances(self, rows: QuantizedRows, z: Packed, lags: list[int]) -> Tensor:
        """Return Σ_i P_i · mean_i of both squared distances: taken per utterance, so that it adds up over parts of a batch."""
        code_ND = (rows.projected_ND.detach() - rows.chosen_ND).square()
        commitment_ND = (rows.projected_ND - rows.chosen_ND.detach()).square()
        mean_B = z.with_values((code_ND + self.config.commitment * commitment_ND).mean(1)).mean()
        pairs_B = torch.tensor([sum(max(n - lag, 0) for lag in lags) for n in z.sizes])
        return (mean_B * pairs_B.to(mean_B)).sum()


def _watches(config: Config, num_codebooks: int) -> tuple[Watch, ...]:
    return (
        Watch(
            metric="code_perplexity",
            low=2.0 * num_codebooks,
            patience=200,
            grace=200,
            meaning="the frames share a few codes: the codebooks have collapsed",
            advice="set `objective.diversity_weight` (Gumbel), lower the learning rate, or put more seconds into an update",
        ),
        chance_watch(
            1.2 / (1 + config.num_negatives),
            "the guesses tell the next frames' codes from negatives",
            "warm up for longer, or change the learning rate",
        ),
    )
