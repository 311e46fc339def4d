"""Settings of the objectives whose targets are Gumbel product codes: sizes, temperature, diversity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, model_validator
from torch import Tensor

from isogloss.objectives.base import ObjectiveConfig, Watch

Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]


class GumbelConfig(ObjectiveConfig):
    """Settings of a Gumbel quantizer (arXiv 2006.11477, §2 and eq. 4).

    num_codebooks, num_codes, target_width
        G, V, and the width of the concatenated codes.
    gumbel_temperature_start, gumbel_temperature_end, temperature_decay_fraction
        The temperature falls exponentially and reaches its end after this fraction of the run.
    diversity_weight
        Weight of the diversity term.
    """

    num_codebooks: Count = 2
    num_codes: Annotated[int, Field(ge=2)] = 320
    target_width: Count = 256
    gumbel_temperature_start: Positive = 2.0
    gumbel_temperature_end: Positive = 0.5
    temperature_decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7
    diversity_weight: Weight = 0.1

    @model_validator(mode="after")
    def _has_codes(self) -> Self:
        if self.target_width % self.num_codebooks:
            raise ValueError(
                f"target_width must be a multiple of num_codebooks, but {self.target_width} is not one of {self.num_codebooks}"
            )
        if self.gumbel_temperature_end > self.gumbel_temperature_start:
            raise ValueError(
                f"gumbel_temperature_end must be at most gumbel_temperature_start ({self.gumbel_temperature_start:g}), "
                f"but is {self.gumbel_temperature_end:g}"
            )
        return self

    def continued(self) -> Self:
        """Return the settings with the Gumbel temperature at its end."""
        return self.model_copy(update={"gumbel_temperature_start": self.gumbel_temperature_end})

    @classmethod
    def of_quantizer(cls, heads: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the sizes of a checkpoint's quantizer; None where it has none."""
        codebook, targets = heads.get("quantizer.codebook"), heads.get("project_targets.weight")
        if codebook is None or targets is None or codebook.shape[-1] == 0:
            return None
        num_codebooks = targets.shape[1] // codebook.shape[-1]
        num_codes = codebook.numel() // codebook.shape[-1] // max(num_codebooks, 1)
        return {"num_codebooks": num_codebooks, "num_codes": num_codes, "target_width": targets.shape[1]}

    def gumbel_temperature(self, progress: float) -> float:
        """Return the temperature after this fraction of the run."""
        start, end = self.gumbel_temperature_start, self.gumbel_temperature_end
        share = min(progress / self.temperature_decay_fraction, 1.0)
        return float(start * (end / start) ** share)


def perplexity_watch(config: GumbelConfig) -> Watch:
    """Return the sign of collapsed codebooks."""
    num_codes = config.num_codebooks * config.num_codes
    return Watch(
        metric="probability_perplexity",
        low=0.1 * num_codes,
        meaning=f"the codebooks have collapsed to a few of their {num_codes} codes",
        advice="raise `objective.diversity_weight`, lower the learning rate, or put more seconds into an update",
        patience=200,
        grace=100,
    )
