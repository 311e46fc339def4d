"""Gating: a scale per language and channel after each part of each block."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from isogloss.adapt._edited import edited_job
from isogloss.adapt.base import MethodConfig
from isogloss.encoders.language_edits import GatesConfig
from isogloss.training.job import Job
from isogloss.training.recipe import Recipe


class Config(MethodConfig):
    """`freeze_shared` trains the scales only."""

    name: Literal["gates"] = "gates"
    freeze_shared: bool = False


def build(recipe: Recipe, config: Config, run_dir: Path) -> Job:
    """Return the job: micro-batches of one language, each through its own gates."""
    return edited_job(recipe, GatesConfig(freeze_shared=config.freeze_shared), run_dir)
