"""How well an objective solves its own task on audio that it is not trained on: the same masks before, between and after."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.data.index import CorpusIndex
from isogloss.encoders.language_edits import row_of, select
from isogloss.training.job import open_loader
from isogloss.training.parallel import Learner
from isogloss.training.recipe import Recipe

UNKNOWN = "und"  # BCP-47: language not determined


@dataclass
class Scores:
    """Sums of the loss and of each metric over targets, by language; `means()` over all of them."""

    sums: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)  # language → name → (sum, count)

    def add(self, language: str, terms: LossTerms) -> None:
        """Add the terms of a batch in one language."""
        own = self.sums.setdefault(language, {})
        for name, (total, count) in {"loss": (terms.total, terms.num_targets), **terms.metrics}.items():
            old = own.get(name, (0.0, 0.0))
            own[name] = (old[0] + float(total), old[1] + float(count))

    def means(self, language: str | None = None) -> dict[str, float]:
        """Return the mean of everything, of one language or of all."""
        chosen = list(self.sums.values()) if language is None else [self.sums.get(language, {})]
        names = sorted({name for own in chosen for name in own})
        result = {}
        for name in names:
            pairs = [own.get(name, (0.0, 0.0)) for own in chosen]
            count = sum(pair[1] for pair in pairs)
            if count:
                result[name] = sum(pair[0] for pair in pairs) / count
        return result


@dataclass(frozen=True)
class Utterance:
    """What one utterance contributes to a ratio: correct and all masked targets, and the loss over them."""

    id: str
    language: str
    speaker: str | None
    correct: float
    loss: float
    count: float


def heldout_batches(recipe: Recipe, corpus: Path | str, learner: Learner, *, max_seconds: float) -> list[SpeechBatch]:
    """Return each utterance of a corpus once (`max_seconds` of them at most), in micro-batches of one language, on the CPU.

    Every rank gets all of them. Windows, masks and negatives are the same whenever the recipe's seed is.
    """
    index = CorpusIndex.open(corpus)
    data = recipe.data.model_copy(
        update={
            "path": str(corpus),
            "num_workers": 0,
            "language_temperature": 1.0,
            "seconds_per_update": recipe.data.micro_batch_seconds,
            "bins_multiple_of": 1,
            "languages": None,
            "long": "crop",
        }
    )
    objective: Any = learner.objective
    loader = open_loader(recipe.model_copy(update={"data": data}), index, learner, grouping=objective.grouping)
    batches: list[SpeechBatch] = []
    seen: set[str] = set()
    seconds = 0.0
    for update in loader:
        before = len(seen)
        for batch in update.micro_batches:
            fresh = [i for i, name in enumerate(batch.ids) if name not in seen]
            seen.update(batch.ids)
            for language in sorted({batch.languages[i] or UNKNOWN for i in fresh}):
                part = batch.select([i for i in fresh if (batch.languages[i] or UNKNOWN) == language])
                batches.append(part)
                seconds += part.seconds
        if len(seen) == before or len(seen) >= loader.num_utterances or seconds >= max_seconds:
            break
    return batches


@torch.no_grad()
def score(learner: Learner, batches: Iterable[SpeechBatch], known: Collection[str] | None = None) -> Scores:
    """Return the objective's own metrics in evaluation mode, by language; batches hold one language each.

    An encoder that depends on the language is as it is for each (for those of `known` only, where they are given); languages that
    it has nothing for are measured on the model that all share.
    """
    scores = Scores()
    with _Evaluation(learner):
        device = next(learner.parameters()).device
        for batch in batches:
            scores.add(batch.languages[0] or UNKNOWN, _terms(learner, batch.to(device), known))
    return scores


@torch.no_grad()
def score_utterances(
    learner: Learner, batches: Iterable[SpeechBatch], known: Collection[str] | None = None
) -> list[Utterance]:
    """Return the same utterance by utterance, for intervals; negatives then come from the utterance alone."""
    rows: list[Utterance] = []
    with _Evaluation(learner):
        device = next(learner.parameters()).device
        for batch in batches:
            for i, name in enumerate(batch.ids):
                one = batch.select([i])
                terms = _terms(learner, one.to(device), known)
                correct, count = terms.metrics.get("accuracy", (math.nan, float(terms.num_targets)))
                speaker = None if batch.speakers is None else batch.speakers[i]
                language = batch.languages[i] or UNKNOWN
                rows.append(Utterance(name, language, speaker, float(correct), float(terms.total), float(count)))
    return rows


def _terms(learner: Learner, batch: SpeechBatch, known: Collection[str] | None) -> LossTerms:
    # Not the learner's own forward: its hooks count which languages an update has trained (training/by_language.py).
    edits, language = learner.encoder.edits, batch.languages[0]
    if edits is not None:
        acts = language in edits.languages and (known is None or language in known)
        # Below the learner, not the encoder: a teacher that is a copy of the encoder follows.
        select(learner, row_of(learner.encoder, language) if acts else None)
    terms: LossTerms = learner.objective(learner.encoder, batch)
    return terms


class _Evaluation:
    """Evaluation mode for encoder and objective while the block runs; no language is selected after it."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner

    def __enter__(self) -> None:
        self._were = {name: module.training for name, module in self._learner.named_modules()}
        self._learner.eval()

    def __exit__(self, *_: object) -> None:
        for name, module in self._learner.named_modules():
            module.training = self._were[name]
        select(self._learner, None)
