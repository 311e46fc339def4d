"""BERT on text (arXiv 1810.04805; spans as SpanBERT, arXiv 1907.10529, and SLAM, arXiv 2110.10329).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| BERT on text | tokens or spans of tokens, 80/10/10 | tokens | cross-entropy | text; any that reads text |

    loss = Σ_{u hidden} −log softmax(E · head(state_u) + b)[token_u]

E are the encoder's own token embeddings. No next-sentence prediction, which later work found useless.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, final

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.fields import Count, Share
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.core.vocabulary import FIRST
from isogloss.core.watch import Watch
from isogloss.corruption.tokens import corrupt_tokens
from isogloss.encoders._token_frontend import ReadsText
from isogloss.encoders.base import Encoder
from isogloss.losses.prediction import unit_metrics
from isogloss.objectives.base import Objective, ObjectiveConfig


class Config(ObjectiveConfig):
    """Settings of BERT; the defaults are the paper's. SLAM: mask_span 5.

    mask_probability, mask_span
        Share of the tokens that are guessed, and how many of them lie together.
    random_share, kept_share
        Of these, the share that random tokens replace and the share that stays as it is; the rest is hidden.
    """

    name: Literal["bert"] = "bert"
    mask_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    mask_span: Count = 1
    random_share: Share = 0.1
    kept_share: Share = 0.1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.random_share + self.kept_share > 1:
            raise ValueError(
                f"random_share + kept_share must be at most 1, but is {self.random_share + self.kept_share}"
            )
        return self


@final
class Bert(Objective):
    """Hidden tokens from those around them; `batch.text` is read, `batch.audio` is not."""

    config: Config
    requires = frozenset({"text"})

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        if not isinstance(encoder, ReadsText):
            raise ConfigError(
                f"the objective bert needs an encoder that reads text, but `{type(encoder).__name__}` reads audio only; "
                "try `--set encoder.preset=text-small`"
            )
        width = encoder.text.embedding.embedding_dim
        self.head = nn.Sequential(nn.Linear(encoder.width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias_C = nn.Parameter(torch.zeros(encoder.text.mask_token))
        self.watches = (
            Watch(
                # The commonest of some thirty characters is one in six: a share of the vocabulary would say nothing.
                metric="gain_over_majority",
                low=0.0,
                patience=1000,
                grace=5000,
                meaning="hidden tokens are guessed no better than by always guessing the commonest",
                advice="change the learning rate, warm up for longer, or check that the texts are of one script",
            ),
        )

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed cross-entropy of the hidden tokens."""
        assert isinstance(encoder, ReadsText)
        tokens = self._tokens(encoder, batch)
        corrupted = corrupt_tokens(
            tokens.values_ND,
            tokens.sizes,
            utterance_generators(batch.seeds_B, "tokens"),
            mask_token=encoder.text.mask_token,
            choices=(FIRST, max(encoder.text.mask_token, FIRST + 1)),
            probability=self.config.mask_probability,
            span=self.config.mask_span,
            random_share=self.config.random_share,
            kept_share=self.config.kept_share,
        )
        states = encoder.context(encoder.text(tokens.with_values(corrupted.tokens_N))).last
        device = states.values_ND.device
        rows_M = corrupted.is_target_N.nonzero().squeeze(1)
        targets_M = tokens.values_ND[rows_M].to(device)
        scores_MC = encoder.text.scores(self.head(states.values_ND.index_select(0, rows_M.to(device)))) + self.bias_C
        loss = F.cross_entropy(scores_MC.float(), targets_M, reduction="sum")
        num_targets = len(rows_M)
        guessed = unit_metrics(scores_MC, targets_M)
        metrics = {name: guessed[name] for name in ("accuracy", "majority_share", "gain_over_majority")}
        metrics["masked_fraction"] = (num_targets, len(tokens.values_ND))
        return LossTerms(loss, num_targets, metrics)

    def _tokens(self, encoder: ReadsText, batch: SpeechBatch) -> Packed:
        """Return the numbered tokens of the batch's texts, on the CPU; a long text gives a random window of its own."""
        if batch.text is None:
            raise DataError(
                "the batch has no `text`; usually because the corpus has no transcripts: give texts with `[text]`"
            )
        longest = encoder.text.max_tokens
        parts: list[Tensor] = []
        for text, generator in zip(batch.text, utterance_generators(batch.seeds_B, "window"), strict=True):
            numbers = encoder.text.vocabulary.encode(text) if text else torch.zeros(0, dtype=torch.int64)
            spare = len(numbers) - longest
            start = int(torch.randint(spare + 1, (), generator=generator)) if spare > 0 else 0
            parts.append(numbers[start : start + longest])
        return Packed.from_list(parts)
