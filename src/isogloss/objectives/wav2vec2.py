"""wav2vec 2.0 (arXiv 2006.11477), XLSR (2006.13979), XLS-R (2111.09296).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| wav2vec 2.0, XLSR, XLS-R | spans | Gumbel product codes | InfoNCE + diversity | wave transformer |

Hide spans of the latents, quantize the hidden ones, and let the context tell each hidden frame's code from those of other
hidden frames of the same utterance. With M hidden frames,

    loss = Σ InfoNCE + M · diversity_weight · (GV − perplexity)/GV + feature_penalty · Σ_i M_i · mean(features_i²)

The penalty is taken utterance by utterance, so that it adds up; where all have one length and equally many hidden frames, as in
fairseq's batches, it is fairseq's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from isogloss.core.fields import Count, Positive, Probability, Weight
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.corruption.spans import mask_spans
from isogloss.encoders.base import Encoder
from isogloss.losses.contrastive import contrast, info_nce
from isogloss.nn.dropout import Dropout
from isogloss.objectives._gumbel import GumbelConfig, WithGumbelCodes, perplexity_watch
from isogloss.objectives._watches import TRIVIAL_CONTRAST, chance_watch


class Config(GumbelConfig):
    """Settings of wav2vec 2.0; the defaults are BASE. LARGE: target_width = final_width = 768, feature_penalty 0,
    gumbel_temperature_end 0.1, feature_dropout 0 (arXiv 2006.11477, §4.2, and the released configurations).

    mask_probability, mask_span
        Expected share of the frames covered by spans if spans did not overlap, and frames in a span (the paper's p is
        mask_probability/mask_span = 0.065).
    equalize_masks
        fairseq's `require_same_masks`, which breaks spans; False keeps them whole.
    num_negatives, temperature
        Distractors for each masked frame, and the divisor of the cosine.
    feature_penalty, feature_dropout
        Weight of the penalty, and the dropout on what the quantizer sees.
    num_codebooks …, gumbel_temperature_start …, diversity_weight
        Of the codes (`GumbelConfig`). BASE reaches 0.5 after 277 258 of 400 000 updates, a fraction of 0.7. A decay for each
        update, as fairseq states it, would hardly begin in a short run.
    """

    name: Literal["wav2vec2"] = "wav2vec2"
    mask_probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.65
    mask_span: Count = 10
    equalize_masks: bool = False
    num_negatives: Count = 100
    temperature: Positive = 0.1
    feature_penalty: Weight = 10.0
    feature_dropout: Probability = 0.1

    @classmethod
    def of_heads(cls, heads: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the sizes of quantizer and projections; a released model's temperature has reached its end."""
        sizes, targets = cls.of_quantizer(heads), heads.get("project_targets.weight")
        if sizes is None or targets is None or "project_context.weight" not in heads:
            return None
        # LARGE, XLSR and XLS-R end at 0.1, BASE at 0.5 (released configurations); the widths tell them apart.
        end = 0.5 if targets.shape[0] <= 256 else 0.1
        return {
            **sizes,
            "final_width": targets.shape[0],
            "gumbel_temperature_start": end,
            "gumbel_temperature_end": end,
        }


@final
class Wav2Vec2(WithGumbelCodes):
    """Masked contrastive learning of quantized latents."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        # The perplexity, and fairseq's equalised masks, are statistics of a micro-batch.
        self.additive = config.diversity_weight == 0.0 and not config.equalize_masks
        self.build_codes(encoder.latent_width)
        self.project_context = nn.Linear(encoder.width, config.final_width)
        self.feature_dropout = Dropout(config.feature_dropout)
        self.watches = (
            perplexity_watch(config),
            TRIVIAL_CONTRAST,
            # Codes that are used evenly (> 98 %) while the loss stays flat show here too; a healthy run may use them evenly.
            chance_watch(2 / (1 + config.num_negatives), "the context tells the positive from its negatives"),
        )

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over the masked frames of a batch."""
        config, seeds_B = self.config, batch.seeds_B
        frontend = encoder.frontend(batch.audio)
        latents = frontend.latents
        device = latents.values_ND.device

        is_masked_N = mask_spans(
            latents.sizes,
            utterance_generators(seeds_B, "masks"),
            probability=config.mask_probability,
            span=config.mask_span,
            equalize=config.equalize_masks,
        )
        rows_M = is_masked_N.nonzero().squeeze(1).to(device)
        num_masked_B = torch.stack([part.sum() for part in is_masked_N.split(latents.sizes)])
        num_masked = len(rows_M)

        states = encoder.context(latents, is_masked_N.to(device)).last
        context_MD = self.project_context(states.values_ND.index_select(0, rows_M))

        masked = Packed(self.feature_dropout(latents.values_ND.index_select(0, rows_M)), num_masked_B)
        quantized = self.quantizer(masked, self.gumbel_temperature, utterance_generators(seeds_B, "codes", device))
        logits_MK = contrast(
            context_MD,
            self.project_targets(quantized.targets_MD),
            masked.sizes,
            utterance_generators(seeds_B, "negatives", device),
            num_negatives=config.num_negatives,
            temperature=config.temperature,
            codes_MG=quantized.codes_MG,
        )
        contrastive, num_correct = info_nce(logits_MK)

        diversity, code_metrics = self.diversity(quantized, num_masked)
        energy_B = frontend.features.with_values(frontend.features.values_ND.float().square().mean(1)).mean()
        penalty = (energy_B * num_masked_B.to(energy_B)).sum()

        total = contrastive + config.diversity_weight * diversity + config.feature_penalty * penalty
        return LossTerms(
            total,
            num_masked,
            {
                "contrastive_loss": (contrastive.detach(), num_masked),
                "accuracy": (num_correct, num_masked),
                "feature_energy": (penalty.detach(), num_masked),
                "masked_fraction": (num_masked, len(is_masked_N)),
                **code_metrics,
            },
        )
