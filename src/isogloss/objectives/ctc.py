"""Supervised pretraining by connectionist temporal classification (Graves et al. 2006): the baseline of arXiv 2002.02848, table 3.

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| supervised (CTC) | none; spans | characters, words or phones of the utterance | CTC | any |

One linear map from the last states to the symbols and the blank; the loss is summed over utterances and divided (by the loop) by
the number of their symbols.
"""

from __future__ import annotations

from typing import Literal, Self, final

from torch import nn

from isogloss.core.fields import Count, Probability
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.core.vocabulary import Labels, Vocabulary
from isogloss.corruption.spans import mask_spans
from isogloss.data.index import CorpusIndex
from isogloss.data.text import labels_of_corpus
from isogloss.encoders.base import Encoder
from isogloss.losses.transcripts import encode_labels, transcript_loss
from isogloss.nn.dropout import Dropout
from isogloss.objectives.base import Objective, ObjectiveConfig, Watch


class Config(ObjectiveConfig):
    """Settings of supervised pretraining.

    labels
        What is learned (`core.vocabulary.Labels`); the symbols are found in the corpus.
    mask_probability, mask_span
        Spans of latents that are hidden, as in wav2vec 2.0's fine-tuning; 0 hides nothing.
    dropout
        On the states that the linear map sees.
    """

    name: Literal["ctc"] = "ctc"
    labels: Labels = Labels()
    mask_probability: Probability = 0.0
    mask_span: Count = 10
    dropout: Probability = 0.0

    def for_corpus(self, index: CorpusIndex) -> Self:
        """Return the settings with the symbols of the corpus."""
        return self.model_copy(update={"labels": labels_of_corpus(self.labels, index)})


@final
class Ctc(Objective):
    """Transcripts of the speech, by CTC."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = Vocabulary(config.labels)
        self.requires = frozenset({config.labels.needs})
        self.dropout = Dropout(config.dropout)
        self.project = nn.Linear(encoder.width, len(self.vocabulary))
        self.watches = (
            Watch(
                metric="error_rate",
                high=0.995,
                patience=1000,
                grace=1000,
                meaning="the model writes nothing: every frame is blank",
                advice="train for longer or with a higher learning rate; check that the texts belong to the recordings",
            ),
        )

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed negative log-likelihood of the batch's transcripts and the number of their symbols."""
        config = self.config
        latents = encoder.frontend(batch.audio).latents
        is_masked_N = None
        if config.mask_probability:
            generators = utterance_generators(batch.seeds_B, "masks")
            is_masked_N = mask_spans(
                latents.sizes, generators, probability=config.mask_probability, span=config.mask_span
            ).to(latents.values_ND.device)
        states = encoder.context(latents, is_masked_N).last
        logits = states.with_values(self.project(self.dropout(states.values_ND)))
        return transcript_loss(logits, encode_labels(self.vocabulary, batch))
