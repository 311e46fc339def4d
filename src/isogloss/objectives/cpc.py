"""CPC (arXiv 1807.03748) and modified CPC (arXiv 2002.02848).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| CPC, modified CPC | none (causal) | future latents | InfoNCE over K steps | conv + RNN |

From the context c_t of frame t, K predictors guess the latents z_{t+1} … z_{t+K}, and each must tell its frame from
negatives drawn from the whole micro-batch. With A anchors (frames that have K frames after them),

    loss = Σ_t Σ_k InfoNCE(k, t)

which the loop divides by A: the K losses are summed, as in the released code (at first K·ln 129 = 58.3); the papers write a
mean over k. The score is the mean over channels of guess · z, also released; the factor 1/D is absorbed by a linear W_k.
"""

from __future__ import annotations

from typing import Literal, Self, final

import torch
from pydantic import model_validator
from torch import Tensor

from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Probability
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.encoders.base import Encoder
from isogloss.losses.contrastive import info_nce
from isogloss.losses.negatives import draw_as_reference, draw_from_batch
from isogloss.nn.dropout import Dropout
from isogloss.objectives._future import FutureLoss, metrics_of, spread
from isogloss.objectives._predictors import LinearPredictors, TransformerPredictors
from isogloss.objectives._watches import chance_watch, latents_watch
from isogloss.objectives.base import Objective, ObjectiveConfig, Watch


class Config(ObjectiveConfig):
    """Settings of CPC; the defaults are modified CPC. The original: predictor = "linear" with the encoder preset `cpc`.

    num_steps, num_negatives
        K, and the negatives of each anchor, which its K predictors share.
    grouping
        "speaker": all utterances of a micro-batch have one speaker, so negatives differ in what is said and not in the
        voice (both papers' better setting). "none": utterances as they come.
    reference_negatives
        Draw as CPC_audio does, where the positive may be among its own negatives; False leaves all K positives out.
    predictor, num_heads, ffn_width, reach, dropout
        "transformer" (one causal layer for each step, attending to the last `reach` frames) or "linear"; `dropout` is
        that of the transformer layers.
    output_dropout
        Dropout on the guesses. The modified CPC paper's best row has 0.5; the released code's default is 0.
    """

    name: Literal["cpc"] = "cpc"
    num_steps: Count = 12
    num_negatives: Count = 128
    grouping: Literal["speaker", "none"] = "speaker"
    reference_negatives: bool = False
    predictor: Literal["transformer", "linear"] = "transformer"
    num_heads: Count = 8
    ffn_width: Count = 2048
    reach: Count = 128
    dropout: Probability = 0.1
    output_dropout: Probability = 0.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.predictor == "linear" and self.changed("num_heads", "ffn_width", "reach", "dropout"):
            raise ValueError(
                'num_heads, ffn_width, reach and dropout belong to predictor = "transformer", not to "linear"'
            )
        return self


@final
class Cpc(Objective):
    """Contrastive prediction of the latents of the next K frames."""

    config: Config
    additive = False  # negatives come from the whole micro-batch

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        if not encoder.is_causal:
            raise ConfigError(
                f"objective `cpc` needs a causal encoder, but {type(encoder).__name__} sees the frames that it would have to "
                "predict; try an encoder of kind `cpc`, or the objective `wav2vec2`"
            )
        self.config = config
        self.grouping = "speaker" if config.grouping == "speaker" else None
        self.predictors = _build_predictors(config, encoder)
        self.output_dropout = Dropout(config.output_dropout)
        self.watches = _watches(config)

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over the anchors of a batch; utterances of K frames or fewer have none."""
        num_steps = self.config.num_steps
        latents = encoder.frontend(batch.audio).latents
        context = encoder.context(latents).last
        device = latents.values_ND.device

        anchors_A, negatives_AJ = self._draw(latents, batch.seeds_B)
        guesses_KAD = self.output_dropout(self.predictors(context)).index_select(1, anchors_A)
        steps_K = torch.arange(1, num_steps + 1, device=device)
        rows_AC = torch.cat([anchors_A[:, None] + steps_K, negatives_AJ], dim=1)
        candidates_ACD = latents.values_ND.index_select(0, rows_AC.flatten()).unflatten(0, rows_AC.shape)

        # Scores of every guess against its anchor's K positives and J negatives; of the positives only step k's own counts.
        width = candidates_ACD.shape[2]
        scores_AKC = (guesses_KAD.transpose(0, 1) @ candidates_ACD.transpose(1, 2)).float() / width
        positive_AK = scores_AKC[:, :, :num_steps].diagonal(dim1=1, dim2=2)
        logits_KAJ = torch.cat([positive_AK[..., None], scores_AKC[:, :, num_steps:]], dim=2).transpose(0, 1)
        losses_and_hits = [info_nce(logits_AJ) for logits_AJ in logits_KAJ]
        losses_K = torch.stack([loss for loss, _ in losses_and_hits])
        hits_K = torch.stack([hits for _, hits in losses_and_hits])

        num_anchors = len(anchors_A)
        told = metrics_of(FutureLoss(losses_K, hits_K, torch.full((num_steps,), num_anchors)))
        metrics = told | {"latent_std": spread(latents.values_ND)}
        return LossTerms(losses_K.sum(), num_anchors, metrics)

    def _draw(self, latents: Packed, seeds_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the packed rows of the anchors (A) and of each one's negatives (A×J).

        Utterances are taken in the order of their seeds, so that the draw does not depend on their order in the batch.
        """
        config, device = self.config, latents.values_ND.device
        order = seeds_B.argsort(stable=True).tolist()
        sizes = [latents.sizes[i] for i in order]
        num_anchors = [max(n - config.num_steps, 0) for n in sizes]
        spans = [torch.arange(latents.offsets[i], latents.offsets[i + 1], device=device) for i in order]
        generators = utterance_generators(seeds_B[order], "negatives", device)
        if config.reference_negatives:
            drawn_AJ = draw_as_reference(sizes, num_anchors, config.num_negatives, generators, device)
        else:
            drawn_AJ = draw_from_batch(sizes, num_anchors, config.num_steps, config.num_negatives, generators, device)
        anchors_A = torch.cat([span[:n] for span, n in zip(spans, num_anchors, strict=True)])
        return anchors_A, torch.cat(spans)[drawn_AJ]


def _build_predictors(config: Config, encoder: Encoder) -> LinearPredictors | TransformerPredictors:
    if config.predictor == "linear":
        return LinearPredictors(config.num_steps, encoder.width, encoder.latent_width)
    if encoder.width != encoder.latent_width:
        raise ConfigError(
            "transformer predictors guess latents in the width of the context, so both must be equal, but the encoder has "
            f'{encoder.latent_width} and {encoder.width}; try `--set objective.predictor="linear"`, or equal '
            "`encoder.channels` and `encoder.width`"
        )
    if encoder.width % config.num_heads:
        raise ConfigError(
            f"`objective.num_heads` must divide the encoder's width, but is {config.num_heads} for {encoder.width}"
        )
    return TransformerPredictors(
        config.num_steps,
        encoder.width,
        num_heads=config.num_heads,
        ffn_width=config.ffn_width,
        reach=config.reach,
        dropout=config.dropout,
    )


def _watches(config: Config) -> tuple[Watch, ...]:
    return (
        latents_watch(1e-3, grace=100),
        chance_watch(
            2 / (1 + config.num_negatives),
            "the predictors tell the next frames from negatives",
            "warm up for longer (linear predictors need it), or change the learning rate",
        ),
    )
