"""UniSpeech-SAT (arXiv 2110.05752).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| UniSpeech-SAT | spans + utterance mixing | offline clusters, the utterance | cosine cross-entropy + same-utterance | wave transformer |

HuBERT on speech over which a second voice was mixed, and at a middle layer h a term that makes states tell whose they are.
With a_t = S(h_t), v_t = P(quantized h_t), and C_t of frame t itself and K hidden frames of the whole micro-batch,

    loss = HuBERT's + speaker_weight · Σ_hidden mean_{s ∈ C_t} BCE(cos(a_t, v_s)/temperature, s in t's utterance)
         + M · diversity_weight · (GV − perplexity)/GV
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, final

import torch
from pydantic import Field
from torch import Tensor, nn

from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Share, Weight
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.corruption.mixing import Mixing
from isogloss.encoders.base import Encoder
from isogloss.encoders.wave import WaveConfig
from isogloss.losses.same_utterance import (
    area_under_curve,
    draw_from_all,
    same_utterance_logits,
    same_utterance_loss,
)
from isogloss.objectives._gumbel import GumbelConfig, WithGumbelCodes, perplexity_watch
from isogloss.objectives._masked_units import MaskedUnits, MaskedUnitsConfig
from isogloss.objectives.base import Watch


class Config(GumbelConfig, MaskedUnitsConfig):
    """Settings of UniSpeech-SAT; the defaults are BASE. LARGE: target_width = final_width = 768.

    speaker_layer, speaker_weight, speaker_loss, num_candidates
        The layer (0 is the input of the first; half-way where none is stated: the sixth of BASE), weight and form of the
        same-utterance term, and K. "binary" is released, "softmax" printed.
    mixing_probability, mixing_share
        Share of the utterances that get a second voice, and the largest share of an utterance that it covers.
    """

    name: Literal["unispeech_sat"] = "unispeech_sat"
    speaker_layer: Annotated[int, Field(ge=0)] | None = None
    speaker_weight: Weight = 1.0
    speaker_loss: Literal["binary", "softmax"] = "binary"
    num_candidates: Count = 100
    mixing_probability: Share = 0.2
    mixing_share: Share = 0.5

    @classmethod
    def of_heads(cls, heads: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the number of units and the widths of the heads, and of the quantizer where there is one."""
        units = super().of_heads(heads)
        codes = cls.of_quantizer(heads)
        # Without the projection of speakers the quantizer is another objective's, and reads something else.
        return units if units is None or codes is None or "project_speaker.weight" not in heads else units | codes


@final
class UniSpeechSat(WithGumbelCodes, MaskedUnits):
    """Units of hidden frames, and the utterance of each of them."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder.width, encoder.num_layers)
        layer = encoder.num_layers // 2 if config.speaker_layer is None else config.speaker_layer
        if layer > encoder.num_layers:
            raise ConfigError(
                f"`objective.speaker_layer` must be at most {encoder.num_layers}, the layers of the encoder, but is {layer}"
            )
        self.speaker_layer = layer
        self.additive = False
        self.build_codes(encoder.width)
        self.project_speaker = nn.Linear(encoder.width, config.final_width)
        # States between pre-norm layers have no norm of their own.
        is_pre_norm = isinstance(encoder.config, WaveConfig) and encoder.config.norm_first
        self.middle_norm = nn.LayerNorm(encoder.width) if is_pre_norm else nn.Identity()
        self.watches = (
            *self.watches,
            perplexity_watch(config),
            Watch(
                metric="same_utterance_auc",
                low=0.52,
                meaning="middle states do not tell one utterance from another",
                advice="raise `objective.speaker_weight`, or put utterances of more speakers into a micro-batch",
                patience=1000,
                grace=5000,
            ),
        )

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss over the target frames of a batch."""
        mixing = Mixing(self.config.mixing_probability, 0.0, self.config.mixing_share)
        audio, is_mixed_B = self.mixed(encoder, batch, mixing)
        terms, states, is_masked_N = self.unit_terms(encoder, batch, audio)
        speaker = self._speaker_terms(states[self.speaker_layer], is_masked_N, batch.seeds_B)
        terms.total = terms.total + speaker.total
        terms.metrics |= speaker.metrics
        terms.metrics["mixed_fraction"] = (int(is_mixed_B.sum()), len(is_mixed_B))
        return terms

    def _speaker_terms(self, states: Packed, is_masked_N: Tensor, seeds_B: Tensor) -> LossTerms:
        config, device = self.config, states.values_ND.device
        rows_M = is_masked_N.nonzero().squeeze(1).to(device)
        counts_B = torch.stack([part.sum() for part in is_masked_N.split(states.sizes)])
        hidden = Packed(self.middle_norm(states.values_ND.index_select(0, rows_M)), counts_B)
        quantized = self.quantizer(hidden, self.gumbel_temperature, utterance_generators(seeds_B, "codes", device))
        candidates_MK = draw_from_all(
            hidden.sizes, seeds_B, config.num_candidates, utterance_generators(seeds_B, "candidates", device), device
        )
        logits_MK, is_same_MK = same_utterance_logits(
            hidden.with_values(self.project_speaker(hidden.values_ND)),
            self.project_targets(quantized.targets_MD),
            candidates_MK,
            temperature=config.temperature,
        )
        loss = same_utterance_loss(logits_MK, is_same_MK, config.speaker_loss)
        num_masked = len(rows_M)
        diversity, code_metrics = self.diversity(quantized, num_masked)
        return LossTerms(
            config.speaker_weight * loss + config.diversity_weight * diversity,
            num_masked,
            {
                "same_utterance_loss": (loss.detach(), num_masked),
                "same_utterance_auc": area_under_curve(logits_MK.detach(), is_same_MK),
                **code_metrics,
            },
        )
