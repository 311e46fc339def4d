"""w2v-Conformer (arXiv 2010.10504), BigSSL (2109.13226).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| w2v-Conformer, BigSSL | spans | continuous (linear) targets | InfoNCE | conformer on mel |

wav2vec 2.0 without a quantizer: the target of a hidden frame is a linear map of what was really there, learned with the rest.
Over the hidden frames,

    loss = Σ −log  exp(cos(A c_t, W f_t)/κ) / Σ_{s ∈ {t} ∪ K_t} exp(cos(A c_t, W f_s)/κ)
"""

from __future__ import annotations

from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from isogloss.core.fields import Count, Positive
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.corruption.bernoulli import mask_bernoulli
from isogloss.encoders.base import Encoder
from isogloss.losses.contrastive import contrast, info_nce
from isogloss.objectives._watches import chance_watch
from isogloss.objectives.base import Objective, ObjectiveConfig, Watch


class Config(ObjectiveConfig):
    """Settings of w2v-Conformer and BigSSL (arXiv 2010.10504, 2109.13226).

    start_probability, mask_span
        Every frame begins a span of so many frames with this probability; frames last 40 ms.
    num_negatives, temperature
        Distractors for each hidden frame, from the other hidden frames of its utterance, and the divisor of the cosine.
    final_width
        Of the space in which targets meet the context.
    """

    name: Literal["w2v_conformer"] = "w2v_conformer"
    start_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.065
    mask_span: Count = 10
    num_negatives: Count = 100
    temperature: Positive = 0.1
    final_width: Count = 1024


@final
class W2vConformer(Objective):
    """Masked contrastive learning of continuous targets."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.project_targets = nn.Linear(encoder.latent_width, config.final_width)
        self.project_context = nn.Linear(encoder.width, config.final_width)
        self.watches = (
            Watch(
                metric="target_spread",
                low=1e-3,
                meaning="the targets have collapsed: all frames have the same one, and nothing can be told apart",
                advice="lower the learning rate, or warm up for longer",
                patience=200,
                grace=100,
            ),
            chance_watch(2 / (1 + config.num_negatives), "the context tells the positive from its negatives"),
        )

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
        num_masked_B = [int(part.sum()) for part in is_masked_N.split(latents.sizes)]

        states = encoder.context(latents, is_masked_N.to(device)).last
        context_MD = self.project_context(states.values_ND.index_select(0, rows_M))
        targets_MD = self.project_targets(latents.values_ND.index_select(0, rows_M))
        logits_MK = contrast(
            context_MD,
            targets_MD,
            num_masked_B,
            utterance_generators(seeds_B, "negatives", device),
            num_negatives=config.num_negatives,
            temperature=config.temperature,
        )
        loss, num_correct = info_nce(logits_MK)

        num_masked = len(rows_M)
        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {
            "contrastive_loss": (loss.detach(), num_masked),
            "accuracy": (num_correct, num_masked),
            "target_spread": (_spread(targets_MD) * num_masked, num_masked),
            "masked_fraction": (num_masked, len(is_masked_N)),
        }
        return LossTerms(loss, num_masked, metrics)


def _spread(targets_MD: Tensor) -> Tensor:
    """Return 1 − ‖mean of the targets' directions‖²: 0 where all point one way, near 1 where they differ."""
    directions_MD = F.normalize(targets_MD.detach().float(), dim=1)
    return 1 - directions_MD.mean(0).square().sum() if len(directions_MD) else torch.zeros(())
