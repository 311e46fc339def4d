"""Transcription by CTC: characters, words, or phones (arXiv 2006.11477, §4.2: one linear map on the fine-tuned encoder).

Decoding is greedy, or a prefix beam search without a language model. The same head serves phone recognition: `labels.unit` is
"phones" (of an alignment) or "ipa" (a text that is IPA).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, final

import numpy as np
import torch
from pydantic import Field
from torch import nn

from isogloss.core.fields import Count, Probability
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.core.vocabulary import BLANK, Labels, Vocabulary
from isogloss.core.watch import Watch
from isogloss.data.index import CorpusIndex
from isogloss.data.phones import aligned_phones
from isogloss.data.text import labels_of_corpus
from isogloss.encoders.base import Encoder
from isogloss.losses.ctc import greedy_decode, prefix_beam_search
from isogloss.losses.edit_distance import edit_distance
from isogloss.losses.transcripts import encode_labels, transcript_loss
from isogloss.nn.dropout import Dropout
from isogloss.tasks.base import Task, TaskConfig


class Config(TaskConfig):
    """Settings of transcription.

    labels
        What is written (`core.vocabulary.Labels`); the symbols are found in the training corpus.
    hidden_width
        Of a layer with GELU before the symbols (SUPERB's phone head projects to 256); 0 for none.
    dropout
        On the states that the head sees.
    beam
        Prefixes that decoding keeps; 1 is greedy.
    """

    name: Literal["asr"] = "asr"
    labels: Labels = Labels()
    hidden_width: Annotated[int, Field(ge=0)] = 0
    dropout: Probability = 0.0
    beam: Count = 1

    def for_corpus(self, index: CorpusIndex) -> Self:
        """Return the settings with the symbols of the corpus."""
        return self.model_copy(update={"labels": labels_of_corpus(self.labels, index)})


@final
class Asr(Task):
    """CTC on one linear map, or a small network, of each frame."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        self.vocabulary = Vocabulary(config.labels)
        self.requires = frozenset({config.labels.needs})
        self.dropout = Dropout(config.dropout)
        width, hidden = encoder.width, config.hidden_width
        self.hidden = nn.Sequential(nn.Linear(width, hidden), nn.GELU()) if hidden else nn.Identity()
        self.project = nn.Linear(hidden or width, len(self.vocabulary))
        # character and word error rate, or the phone error rate
        names = {"characters": ("cer", "wer"), "words": ("wer",)}.get(config.labels.unit, ("per",))
        self.metrics = dict.fromkeys(names, False)
        self.watches = (
            Watch(
                metric="error_rate",
                high=0.995,
                patience=1000,
                grace=1000,
                meaning="the model writes nothing: every frame is blank",
                advice="raise `optim.head_lr` or `optim.lr`, train for longer, or check that the texts belong to the recordings",
            ),
        )

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed negative log-likelihood of the transcripts and the number of their symbols."""
        return transcript_loss(self.logits(encoder, batch), encode_labels(self.vocabulary, batch))

    def logits(self, encoder: Encoder, batch: SpeechBatch) -> Packed:
        """Return the scores of blank, unknown and symbols, N×C."""
        states = self.states(encoder, batch)
        return states.with_values(self.project(self.hidden(self.dropout(states.values_ND))))

    @torch.no_grad()
    def predict(self, encoder: Encoder, batch: SpeechBatch) -> list[str]:
        """Return the transcript of each utterance."""
        logits, beam = self.logits(encoder, batch), self.config.beam
        decoded = (
            greedy_decode(logits, blank=BLANK) if beam == 1 else prefix_beam_search(logits, beam=beam, blank=BLANK)
        )
        return [self.vocabulary.decode(numbers) for numbers in decoded]

    def reference(self, cut: Any) -> str | None:
        """Return the cut's transcript in normal form, None where it has none or nothing is left of it ("!?")."""
        labels = self.config.labels
        if labels.unit == "phones":
            phones = aligned_phones(cut)
            return labels.join(phones or ()) or None
        text = cut.supervisions[0].text if cut.supervisions else None
        return labels.join(labels.split(text or "")) or None

    def counts(self, references: Sequence[str], predictions: Sequence[str]) -> dict[str, Any]:
        """Return errors and reference symbols of each utterance for every metric."""
        found = {}
        for metric in self.metrics:
            pairs = [(_split(metric, r), _split(metric, p)) for r, p in zip(references, predictions, strict=True)]
            found[metric] = np.array([(edit_distance(r, p), len(r)) for r, p in pairs], float).reshape(-1, 2)
        return found


def _split(metric: str, text: str) -> list[str]:
    return list(text) if metric == "cer" else text.split()
