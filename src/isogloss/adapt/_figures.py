"""What an adaptation is reported by: the objective on held-out audio, on the source corpus, and a quick probe."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isogloss.adapt.heldout import Utterance, heldout_batches, score, score_utterances
from isogloss.adapt.mixture import Mixture
from isogloss.core.errors import DataError
from isogloss.core.types import SpeechBatch
from isogloss.data.inputs import open_corpus
from isogloss.evaluation.quick import quick_probe
from isogloss.training.parallel import Learner
from isogloss.training.recipe import Recipe


@dataclass(frozen=True)
class Corpora:
    """Where figures are taken: held-out target audio, source audio, labelled cuts of the probe."""

    reporting: list[SpeechBatch]
    source: list[SpeechBatch] | None
    probe: list[Any]


@dataclass(frozen=True)
class Figures:
    """Utterances of target and source, means of all the objective's metrics on the target, accuracies of the probe."""

    target: list[Utterance]
    source: list[Utterance] | None
    means: dict[str, float]
    probe: dict[str, float]


def open_corpora(
    recipe: Recipe,
    mixture: Mixture,
    learner: Learner,
    *,
    source: Path | str | None,
    source_units: str | None,
    probe_data: Path | str,
    max_seconds: float,
) -> Corpora:
    """Open what is measured; `DataError` for a corpus of which nothing can be."""
    batches = None
    if source is not None:
        units = recipe.data.units if source_units is None else source_units
        own = recipe.model_copy(update={"data": recipe.data.model_copy(update={"units": units})})
        batches = _some(heldout_batches(own, source, learner, max_seconds=max_seconds), str(source))
    reporting = heldout_batches(recipe, mixture.reporting, learner, max_seconds=max_seconds)
    return Corpora(_some(reporting, "the held-out target audio"), batches, list(open_corpus(probe_data)))


def measure(learner: Learner, corpora: Corpora, known: Collection[str] | None = None) -> Figures:
    """Return the figures of a model as it is; `known` as in `score`.

    The probe sees the model that all languages share: a mask would tell it the language.
    """
    return Figures(
        target=score_utterances(learner, corpora.reporting, known),
        source=None if corpora.source is None else score_utterances(learner, corpora.source, known),
        means=score(learner, corpora.reporting, known).means(),
        probe=_probe(learner, corpora.probe),
    )


def _some(batches: list[SpeechBatch], where: str) -> list[SpeechBatch]:
    if not batches:
        raise DataError(
            f"{where} must hold an utterance that the objective can be measured on, but has none; usually because all are shorter than "
            "`data.min_seconds`; lower it, or segment the recordings into longer ones"
        )
    return batches


def _probe(learner: Learner, cuts: list[Any]) -> dict[str, float]:
    was_training = learner.training
    learner.eval()
    with torch.no_grad():
        figures = quick_probe(learner.encoder, cuts)
    learner.train(was_training)
    return {name.removeprefix("probe/"): value for name, value in figures.items() if name.endswith("accuracy")}
