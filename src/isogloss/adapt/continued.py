"""SAPT (arXiv 2312.07338): continue the encoder's own objective, or another, on unlabelled target audio. Nothing else changes.

Step counter, schedule and moments start anew (training/start.py): LeBenchmark's adaptation restored them, at the end of their
schedule, where the learning rate is a hundredth of the stated peak. Settings that moved stay at their end (a Gumbel temperature).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from isogloss.adapt.base import MethodConfig
from isogloss.training.job import Job, build_job
from isogloss.training.recipe import Recipe


class Config(MethodConfig):
    """There is nothing to set: what is frozen stands in `[start]`, the objective in `[objective]`."""

    name: Literal["continued"] = "continued"


def build(recipe: Recipe, config: Config, run_dir: Path) -> Job:
    """Return the job: every parameter that `start.frozen` does not name is trained."""
    return build_job(recipe)
