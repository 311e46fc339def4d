"""LoRA per language (arXiv 2106.09685) on every matrix of the blocks.

Our own, not peft's: peft replaces a linear layer by a wrapper that must be called, and the feed-forward here multiplies by the
weight itself (the GELU is computed while the product is in the cache), so peft's update would silently be left out there; it
also has no update per language that one stacked tensor, and so DDP and FSDP2, can hold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from isogloss.adapt._edited import edited_job
from isogloss.adapt.base import MethodConfig
from isogloss.core.fields import Count, Positive
from isogloss.encoders.language_edits import LoraConfig
from isogloss.training.job import Job
from isogloss.training.recipe import Recipe


class Config(MethodConfig):
    """`rank` and `alpha` of the updates α/r · B A; `freeze_shared` trains them only, as their paper does."""

    name: Literal["lora"] = "lora"
    rank: Count = 8
    alpha: Positive = 16.0
    freeze_shared: bool = False


def build(recipe: Recipe, config: Config, run_dir: Path) -> Job:
    """Return the job: micro-batches of one language, each through its own update."""
    return edited_job(
        recipe, LoraConfig(rank=config.rank, alpha=config.alpha, freeze_shared=config.freeze_shared), run_dir
    )
