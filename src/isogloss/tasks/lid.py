"""Identification of languages, or of the varieties of one, from whole utterances.

Frames are pooled to one vector and classified. The two heads of the literature are there exactly: Hugging Face's sequence
classifier (Linear 256, mean, Linear) and fairseq's `wav2vec_classification` (Linear, mean, GELU, Linear).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.fields import Count, Probability
from isogloss.core.languages import UNDETERMINED, normalize_language
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.core.watch import Watch
from isogloss.data.folders import folder_of_cut
from isogloss.data.index import CorpusIndex
from isogloss.encoders.base import Encoder
from isogloss.nn.dropout import Dropout
from isogloss.nn.pooling import Pool, Pooling
from isogloss.tasks.base import Task, TaskConfig

# Individual languages that most corpora name by their macrolanguage, and Norwegian, which most mean as Bokmål: without this a model
# trained on FLEURS (`cmn`, `nb`) would know none of Common Voice's Chinese or of VoxLingua107's Norwegian.
_USUAL = {
    "cmn": "zh",
    "arb": "ar",
    "zsm": "ms",
    "pes": "fa",
    "swh": "sw",
    "ekk": "et",
    "lvs": "lv",
    "npi": "ne",
    "ory": "or",
    "uzn": "uz",
    "khk": "mn",
    "azj": "az",
    "als": "sq",
    "gaz": "om",
    "plt": "mg",
    "no": "nb",
}

LabelKind = Literal["language", "variety", "folder"]


class Config(TaskConfig):
    """Settings of language identification.

    labels
        What is told apart: "language" (`pt-BR` is Portuguese), "variety" (the whole BCP-47 tag: `ar-EG`, `ar-MA`), or "folder"
        (the name of the folder that a recording lies in, for dialects without a code).
    classes
        In order; found in the training corpus where they are not given, and kept in the model.
    head
        "hf": Linear to `hidden_width`, pooling, Linear. "fairseq": a GELU after the pooling, and the encoder's width by
        default. "linear": pooling and one linear map.
    hidden_width
        0 for the head's own: 256 (hf), the encoder's (fairseq); "linear" has none.
    pooling
        "mean", "statistics" (mean and deviation) or "attention" (attentive statistics, arXiv 1803.10963) with `attention_width`.
    label_smoothing, dropout
        Of the cross-entropy; on the states that the head sees.
    """

    name: Literal["lid"] = "lid"
    labels: LabelKind = "language"
    classes: tuple[str, ...] = ()
    head: Literal["hf", "fairseq", "linear"] = "hf"
    hidden_width: Annotated[int, Field(ge=0)] = 0
    pooling: Pooling = "mean"
    attention_width: Count = 128
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    dropout: Probability = 0.0

    def useless(self) -> list[str]:
        """Return which width belongs to a head or a pooling that is not chosen."""
        found = []
        if self.head == "linear" and self.hidden_width:
            found.append(
                f"`head` = linear has no hidden layer, so `hidden_width` must be 0, but is {self.hidden_width}"
            )
        if self.pooling != "attention" and self.changed("attention_width"):
            found.append(
                f"`attention_width` = {self.attention_width} belongs to `pooling` = attention, but `pooling` is {self.pooling}"
            )
        return found

    def for_corpus(self, index: CorpusIndex) -> Self:
        """Return the settings with the classes of the corpus, in order of their names; `DataError` for classes that it lacks."""
        found = self._labels_of(index)
        named = ", ".join(sorted(found)) or "none"
        if missing := [name for name in self.classes if name not in found]:
            raise DataError(
                f"`task.classes` must be labels of the training corpus, but {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not: by {self.labels} it has {named}; leave `task.classes` out to take them all, "
                "or give a corpus with speech of every class"
            )
        if self.classes:
            return self
        if len(found) < 2:
            raise DataError(
                f"`task.classes` must be two or more, but the corpus has {len(found)} by {self.labels} "
                f"({named}); usually because its folders are not named by language codes; "
                "try a folder per language (`fr/`, `ar-EG/`), a table with a column `language`, or `--set task.labels=folder`"
            )
        return self.model_copy(update={"classes": tuple(sorted(found))})

    def notes(self, index: CorpusIndex) -> list[str]:
        """Return which utterances teach nothing, as their label is no class or they have none."""
        found = self._labels_of(index)
        others = [f"{name} ({found[name]})" for name in sorted(found) if name not in self.classes]
        silent = len(index) - found.total()
        return [
            *([f"not learned, as `task.classes` leaves them out (utterances): {', '.join(others)}"] if others else []),
            *([f"not learned, as they have no label: {silent} of {len(index)} utterances"] if silent else []),
        ]

    def _labels_of(self, index: CorpusIndex) -> Counter[str]:
        """Return how many utterances of the corpus have each label."""
        found: Counter[str] = Counter()
        if self.labels == "folder":
            folders = Counter(folder_of_cut(index.cut(row, with_audio=False)) for row in range(len(index)))
            if None in folders and index.shards is not None:
                raise DataError(
                    "`task.labels=folder` needs to know the folder that each recording lay in, but these shards do not say it; usually "
                    "because they were not made by this isogloss; shard the corpus again with `isogloss corpus shard`"
                )
            found.update({folder: count for folder, count in folders.items() if folder is not None})
        else:
            numbers, counts = np.unique(index.languages, return_counts=True)
            for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
                label = label_of_tag(index.language_names[number], self.labels) if number >= 0 else None
                if label is not None:
                    found[label] += count
        return found


@final
class Lid(Task):
    """Cross-entropy on one vector per utterance; utterances whose label is no class teach nothing."""

    config: Config
    finds_language = True

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        if len(set(config.classes)) != len(config.classes) or len(config.classes) < 2:
            raise ConfigError(
                f"`task.classes` must be two or more different names, but is {list(config.classes)}; usually because no "
                "corpus was given; leave it out, and the classes of the training corpus are taken"
            )
        self.classes = config.classes
        self.metrics = {"accuracy": True, "macro_accuracy": True}
        self.dropout = Dropout(config.dropout)
        hidden = (
            0 if config.head == "linear" else config.hidden_width or (256 if config.head == "hf" else encoder.width)
        )
        self.project = nn.Linear(encoder.width, hidden) if hidden else nn.Identity()
        self.pool = Pool(hidden or encoder.width, config.pooling, config.attention_width)
        self.activation = nn.GELU() if config.head == "fairseq" else nn.Identity()
        self.classify = nn.Linear(self.pool.out_width, len(config.classes))
        self.watches = (
            Watch(
                metric="distinction",
                low=0.01,
                patience=500,
                grace=500,
                meaning="the head says the same of every utterance",
                advice="raise `optim.head_lr`, lower `optim.lr`, or balance the classes with `data.language_temperature=0.5`",
            ),
        )

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed cross-entropy and the number of utterances whose label is a class."""
        place = {name: number for number, name in enumerate(self.classes)}
        labels = [place.get(str(label)) for label in self.labels(batch)]
        kept = [row for row, label in enumerate(labels) if label is not None]
        logits_BC = self.logits(encoder, batch)
        if not kept:
            return LossTerms(0.0 * logits_BC.sum(), 0)
        target_B = torch.tensor([labels[row] for row in kept], device=logits_BC.device)
        logits_BC = logits_BC[kept]
        loss = functional.cross_entropy(
            logits_BC, target_B, reduction="sum", label_smoothing=self.config.label_smoothing
        )
        posteriors_BC = logits_BC.detach().softmax(1)
        hits = (posteriors_BC.argmax(1) == target_B).sum().float()
        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {"accuracy": (hits, float(len(kept)))}
        if len({labels[row] for row in kept}) > 1:  # of one language the same may well be said
            distances_B = 0.5 * (posteriors_BC - posteriors_BC.mean(0)).abs().sum(1)
            metrics["distinction"] = (distances_B.sum(), float(len(kept)))
        return LossTerms(loss, len(kept), metrics)

    def logits(self, encoder: Encoder, batch: SpeechBatch) -> Tensor:
        """Return a score per class, B×C; an utterance without frames gets the head's bias."""
        states = self.states(encoder, batch)
        projected = states.with_values(self.project(self.dropout(states.values_ND)))
        logits_BC: Tensor = self.classify(self.activation(self.pool(projected))).float()
        return logits_BC

    @torch.no_grad()
    def predict(self, encoder: Encoder, batch: SpeechBatch) -> list[str]:
        """Return the most probable class of each utterance."""
        return self.predict_scored(encoder, batch)[0]

    @torch.no_grad()
    def predict_scored(self, encoder: Encoder, batch: SpeechBatch) -> tuple[list[str], Tensor]:
        """Return the most probable class, and the log-posteriors of all classes, B×C."""
        scores_BC = self.logits(encoder, batch).log_softmax(1)
        return [self.classes[number] for number in scores_BC.argmax(1).tolist()], scores_BC

    def labels(self, batch: SpeechBatch) -> list[str | None]:
        """Return what would be right for each utterance, class or not; None where it is not labelled."""
        if self.config.labels == "folder":
            return list(batch.folders or [None] * len(batch))
        kind = self.config.labels
        return [None if tag is None else label_of_tag(tag, kind) for tag in batch.languages]

    def reference(self, cut: Any) -> str | None:
        """Return the cut's label, also where it is none of the classes: such an utterance tests the rejection."""
        if self.config.labels == "folder":
            return folder_of_cut(cut)
        tag = cut.supervisions[0].language if cut.supervisions else None
        return label_of_tag(tag, self.config.labels) if tag else None

    def counts(self, references: Sequence[str], predictions: Sequence[str]) -> dict[str, Any]:
        """Return hits and ones, and hits and ones weighted so that each class counts alike."""
        hits_B = np.array([r == p for r, p in zip(references, predictions, strict=True)], float)
        share = {name: 1.0 / references.count(name) for name in set(references)}
        weight_B = np.array([share[name] for name in references], float)
        return {
            "accuracy": np.stack([hits_B, np.ones_like(hits_B)], axis=1),
            "macro_accuracy": np.stack([hits_B * weight_B, weight_B], axis=1),
        }


def label_of_tag(tag: str, kind: LabelKind) -> str | None:
    """Return the class that a language tag means: the canonical tag, or its first subtag; None for "undetermined"."""
    canonical = normalize_language(tag)
    if canonical.tag == UNDETERMINED:
        return None
    if kind == "variety" or not canonical.is_known:
        return canonical.tag  # a private code such as `nst-tusom` is a language as a whole
    first = canonical.tag.partition("-")[0]
    return _USUAL.get(first, first)
