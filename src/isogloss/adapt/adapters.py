"""Bottleneck adapters per language (arXiv 1909.08478) after each part of each block."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from isogloss.adapt._edited import edited_job
from isogloss.adapt.base import MethodConfig
from isogloss.core.fields import Count
from isogloss.encoders.language_edits import AdaptersConfig
from isogloss.training.job import Job
from isogloss.training.recipe import Recipe


class Config(MethodConfig):
    """`bottleneck` is their inner width; `freeze_shared` trains the adapters only, as their paper does."""

    name: Literal["adapters"] = "adapters"
    bottleneck: Count = 256
    freeze_shared: bool = False


def build(recipe: Recipe, config: Config, run_dir: Path) -> Job:
    """Return the job: micro-batches of one language, each through its own adapters."""
    return edited_job(recipe, AdaptersConfig(bottleneck=config.bottleneck, freeze_shared=config.freeze_shared), run_dir)
