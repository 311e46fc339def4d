"""UniSpeech (arXiv 2101.07597).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| UniSpeech | spans; states replaced by codes | transcripts + Gumbel product codes | CTC + InfoNCE + diversity | wave transformer |

Learn transcripts of one language and codes of the speech at once: half of the states that CTC sees are replaced by the
codes of their frames, lifted to the encoder's width, so the codes must stand for phones. With M hidden frames, M_i of them
and U_i symbols in utterance i, and u_t = U(P(q_t)) the lifted code of frame t,

    loss = α · Σ_i M_i · CTC_i/U_i + (1 − α) · (Σ InfoNCE(state_t, u_t) + M · diversity_weight · (GV − perplexity)/GV)

Without labels (α = 0) what is left is contrastive learning, with cosines in the width of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, final

import torch
from pydantic import Field
from torch import Tensor, nn

from isogloss.core.fields import Count, Positive, Probability, Share
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.core.vocabulary import Labels, Vocabulary
from isogloss.corruption.spans import mask_spans
from isogloss.data.index import CorpusIndex
from isogloss.data.text import labels_of_corpus
from isogloss.encoders.base import Encoder
from isogloss.losses.contrastive import contrast, info_nce
from isogloss.losses.transcripts import encode_labels, transcript_loss
from isogloss.nn.dropout import Dropout
from isogloss.objectives._gumbel import GumbelConfig, WithGumbelCodes, perplexity_watch
from isogloss.objectives._watches import TRIVIAL_CONTRAST
from isogloss.objectives.base import HeadReport, Watch
from isogloss.targets.base import Quantized


class Config(GumbelConfig):
    """Settings of UniSpeech; the defaults are LARGE, its only size (arXiv 2101.07597 and the released configuration).

    ctc_weight
        α. 0 for speech without labels (the second stage): then there is no CTC and none are needed.
    labels
        What is transcribed (`core.vocabulary.Labels`; the paper: phonemes); the symbols are found in the corpus.
    replace_probability
        r, the chance of each state to be replaced by its code before CTC.
    final_width
        F, the width between P and U.
    mask_probability, mask_span, num_negatives, temperature
        As in wav2vec 2.0; negatives come from all frames of the utterance, hidden or not.
    feature_dropout, output_dropout
        On what the quantizer sees, and before CTC.

    The released temperature falls by 0.999995 an update towards 0.1 and is at 0.573 after the published 250 000.
    """

    name: Literal["unispeech"] = "unispeech"
    ctc_weight: Share = 0.5
    labels: Labels = Labels()
    replace_probability: Share = 0.5
    target_width: Count = 768
    final_width: Count = 768
    gumbel_temperature_end: Positive = 0.573
    temperature_decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    mask_probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    mask_span: Count = 10
    num_negatives: Count = 100
    temperature: Positive = 0.1
    feature_dropout: Probability = 0.1
    output_dropout: Probability = 0.1

    def for_corpus(self, index: CorpusIndex) -> Self:
        """Return the settings with the symbols of the corpus, where there is something to transcribe."""
        if not self.ctc_weight:
            return self
        return self.model_copy(update={"labels": labels_of_corpus(self.labels, index)})

    @classmethod
    def of_heads(cls, heads: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the sizes of quantizer and projections; a released model's temperature has reached its end."""
        sizes = cls.of_quantizer(heads)
        if sizes is None or "lift_targets.weight" not in heads:
            return None
        return sizes | {"final_width": heads["lift_targets.weight"].shape[1], "gumbel_temperature_start": 0.573}


@final
class UniSpeech(WithGumbelCodes):
    """Transcripts and contrastive learning of codes, joined by replacing states with codes."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.additive = config.diversity_weight == 0.0 or config.ctc_weight == 1.0
        self.build_codes(encoder.latent_width)
        self.lift_targets = nn.Linear(config.final_width, encoder.width)
        self.feature_dropout = Dropout(config.feature_dropout)
        self.output_dropout = Dropout(config.output_dropout)
        if config.ctc_weight:
            self.vocabulary = Vocabulary(config.labels)
            self.requires = frozenset({config.labels.needs})
            self.project_ctc = nn.Linear(encoder.width, len(self.vocabulary))
        self.watches = _watches(config)

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over the hidden frames of a batch."""
        config, seeds_B = self.config, batch.seeds_B
        latents = encoder.frontend(batch.audio).latents
        sizes, device = latents.sizes, latents.values_ND.device
        is_masked_N = mask_spans(
            sizes,
            utterance_generators(seeds_B, "masks"),
            probability=config.mask_probability,
            span=config.mask_span,
        )
        rows_M = is_masked_N.nonzero().squeeze(1).to(device)
        num_masked_B = torch.stack([part.sum() for part in is_masked_N.split(sizes)])
        num_masked = len(rows_M)

        states = encoder.context(latents, is_masked_N.to(device)).last
        quantized, lifted_ND = self.lifted_codes(latents, seeds_B)
        logits_NK = contrast(
            states.values_ND,
            lifted_ND,
            sizes,
            utterance_generators(seeds_B, "negatives", device),
            num_negatives=config.num_negatives,
            temperature=config.temperature,
            codes_MG=quantized.codes_MG,
        )
        contrastive, num_correct = info_nce(logits_NK.index_select(0, rows_M))
        diversity, code_metrics = self.diversity(quantized, num_masked)
        total = (1 - config.ctc_weight) * (contrastive + config.diversity_weight * diversity)

        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {
            "contrastive_loss": (contrastive.detach(), num_masked),
            "accuracy": (num_correct, num_masked),
            "masked_fraction": (num_masked, len(is_masked_N)),
            **code_metrics,
        }
        if config.ctc_weight:
            transcript = self._transcript_terms(batch, states, lifted_ND, num_masked_B)
            total = total + config.ctc_weight * transcript.total
            metrics |= transcript.metrics
            metrics["ctc_loss"] = (transcript.total.detach(), num_masked)
        return LossTerms(total, num_masked, metrics)

    def lifted_codes(self, latents: Packed, seeds_B: Tensor) -> tuple[Quantized, Tensor]:
        """Return the codes of all frames, and u = U(P(q)), N×width of the encoder."""
        frames = latents.with_values(self.feature_dropout(latents.values_ND))
        generators = utterance_generators(seeds_B, "codes", latents.values_ND.device)
        quantized = self.quantizer(frames, self.gumbel_temperature, generators)
        return quantized, self.lift_targets(self.project_targets(quantized.targets_MD))

    def _transcript_terms(
        self, batch: SpeechBatch, states: Packed, lifted_ND: Tensor, num_masked_B: Tensor
    ) -> LossTerms:
        replaced_N = torch.cat(
            [
                torch.rand(n, generator=generator) < self.config.replace_probability
                for n, generator in zip(states.sizes, utterance_generators(batch.seeds_B, "replaced"), strict=True)
            ]
        ).to(lifted_ND.device)
        mixed_ND = torch.where(replaced_N.unsqueeze(1), lifted_ND.to(states.values_ND.dtype), states.values_ND)
        logits = states.with_values(self.project_ctc(self.output_dropout(mixed_ND)))
        labels_B = encode_labels(self.vocabulary, batch)
        # Nats a symbol, weighed with the hidden frames of the utterance: both terms are means then, whatever is in a batch.
        num_symbols_B = torch.tensor([0 if labels is None else len(labels) for labels in labels_B])
        return transcript_loss(logits, labels_B, weights_B=num_masked_B / num_symbols_B.clamp(min=1))

    def take_heads(self, tensors: Mapping[str, Tensor]) -> HeadReport:
        """Copy heads by name; fairseq's `final_proj` is U in a UniSpeech file. An output layer is taken from isogloss folders only."""
        names = {"lift_targets.weight": "project_context.weight", "lift_targets.bias": "project_context.bias"}
        aliases = {own: tensors[other] for own, other in names.items() if own not in tensors and other in tensors}
        report = super().take_heads({**tensors, **aliases})
        report.sources += [names[own] for own in aliases if own in report.taken]
        return report


def _watches(config: Config) -> tuple[Watch, ...]:
    watches = []
    if config.ctc_weight < 1.0:
        watches += [perplexity_watch(config), TRIVIAL_CONTRAST]
    if config.ctc_weight:
        watches.append(
            Watch(
                metric="error_rate",
                high=0.995,
                meaning="nothing is transcribed: every frame is blank",
                advice="train for longer or with a higher learning rate; check that the texts belong to the recordings",
                patience=1000,
                grace=5000,
            )
        )
    return tuple(watches)
