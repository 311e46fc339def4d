"""SAPT (arXiv 2312.07338): continue the encoder's own objective, or another, on unlabelled target audio. Nothing else changes.

Step counter, schedule and moments start anew (training/start.py): LeBenchmark's adaptation restored them, at the end of their
schedule, where the learning rate is a hundredth of the stated peak. Settings that moved stay at their end (a Gumbel temperature).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from isogloss.adapt._edited import METHOD_OF, corpus_languages, edits_of_model
from isogloss.adapt.base import MethodConfig
from isogloss.core.errors import ConfigError
from isogloss.training.job import Job, build_job
from isogloss.training.recipe import Recipe


class Config(MethodConfig):
    """There is nothing to set: what is frozen stands in `[start]`, the objective in `[objective]`."""

    name: Literal["continued"] = "continued"


def build(recipe: Recipe, config: Config, run_dir: Path) -> Job:
    """Return the job: every parameter that `start.frozen` does not name is trained.

    A model that depends on the language is trained under what it has for each; `ConfigError` for a language that it does not know.
    """
    own = edits_of_model(recipe)
    new = [] if own is None else [name for name in corpus_languages(recipe) if name not in own.languages]
    if own is not None and new:
        raise ConfigError(
            f"the model has {own.kind} for each of {', '.join(own.languages)}, but not for {', '.join(new)}, which the audio holds; add "
            f"{'it' if len(new) == 1 else 'them'} with `--method {METHOD_OF[own.kind]}`, or leave {'it' if len(new) == 1 else 'them'} out "
            "with `data.languages`"
        )
    return build_job(recipe)
