"""The dense model, told the language: a vector per language on every frame. The control that sub-networks must beat."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from isogloss.adapt._edited import edited_job
from isogloss.adapt.base import MethodConfig
from isogloss.encoders.language_edits import OneHotConfig
from isogloss.training.job import Job
from isogloss.training.recipe import Recipe


class Config(MethodConfig):
    """`freeze_shared` trains the vectors only."""

    name: Literal["one_hot"] = "one_hot"
    freeze_shared: bool = False


def build(recipe: Recipe, config: Config, run_dir: Path) -> Job:
    """Return the job: micro-batches of one language, each through its own vector."""
    return edited_job(recipe, OneHotConfig(freeze_shared=config.freeze_shared), run_dir)
