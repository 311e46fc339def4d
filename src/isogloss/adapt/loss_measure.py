"""The loss of a model's own objective on audio that it was not trained on, by language: what reports of sub-networks measure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isogloss.adapt.heldout import heldout_batches, score_utterances
from isogloss.core.config import apply_overrides
from isogloss.core.errors import ConfigError, DataError
from isogloss.core.types import SpeechBatch
from isogloss.data.inputs import open_corpus
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import edits_of, own_name
from isogloss.evaluation.labels import alignment_kind
from isogloss.evaluation.language_reports import LanguageCounts
from isogloss.evaluation.tables import Labels
from isogloss.evaluation.under_masks import Measure
from isogloss.training.parallel import Learner
from isogloss.training.recipe import merge_trees, parse_recipe
from isogloss.training.start import start_learner

_DATA = {
    "num_workers": 0,
    "min_seconds": 0.5,
    "max_seconds": 20.0,
    "micro_batch_seconds": 60.0,
    "seconds_per_update": 60.0,
}


def loss_measure(model: Path | str, corpus: Path | str, overrides: Sequence[str] = ()) -> tuple[Encoder, Measure]:
    """Return the encoder of a pretrained model, and what measures its objective's loss (nats a target, smaller is better).

    Windows, masks and negatives of an utterance are the same whichever encoder is measured. `overrides` are `section.key=value` of
    a recipe, for instance `data.units=FOLDER`. Raises `ConfigError` for a model without an objective, or without its heads.
    """
    tree: dict[str, Any] = {
        "start": {"model": str(model)},
        "data": {**_DATA, "path": str(corpus)},
        "training": {"updates": 1},
    }
    recipe = parse_recipe(merge_trees(tree, apply_overrides({}, overrides)), str(model))
    assert recipe.start is not None
    learner, report = start_learner(recipe.start, recipe.encoder, recipe.objective, recipe.edits)
    if report.fresh:
        lacking = ", ".join(report.fresh[:3]) + (", …" if len(report.fresh) > 3 else "")
        raise ConfigError(
            f"{model} must hold the heads of the objective `{report.objective}` whose loss is measured, but lacks {lacking}; usually "
            "because it was trained with another objective or exported without heads: give the model of the run"
        )
    learner.to("cuda" if torch.cuda.is_available() else "cpu")
    objective: Any = learner.objective
    cuts = list(open_corpus(corpus))
    labels = _label_kind(objective.requires, cuts)
    is_synthetic = any((cut.custom or {}).get("synthetic") for cut in cuts)
    batches: dict[str, list[SpeechBatch]] = {}
    for batch in heldout_batches(recipe, corpus, learner, max_seconds=float("inf")):
        language = batch.languages[0]
        batches.setdefault(own_name(learner.encoder, language) or str(language), []).append(batch)

    def measure(encoder: Encoder, language: str) -> LanguageCounts:
        if language not in batches:
            raise DataError(f"the corpus has no utterance of `{language}` that is long enough for the objective")
        assert not edits_of(encoder)
        rows = score_utterances(Learner(encoder, objective), batches[language])
        counts = np.array([[row.loss, row.count] for row in rows], float)
        return LanguageCounts(counts, [row.speaker for row in rows], [row.id for row in rows], labels, is_synthetic)

    return learner.encoder, measure


def _label_kind(requires: Collection[str], cuts: Sequence[Any]) -> Labels:
    if "phones" in requires:
        return alignment_kind(cuts)
    return "gold" if "text" in requires else ""  # an objective without labels
