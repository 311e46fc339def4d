"""What the objectives with Gumbel product codes share: their settings, the falling temperature, the diversity of codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from isogloss.core.fields import Count, Positive, Weight
from isogloss.losses.diversity import diversity_loss
from isogloss.losses.prediction import Metrics
from isogloss.objectives.base import Objective, ObjectiveConfig, Watch
from isogloss.targets.base import Quantized
from isogloss.targets.gumbel import GumbelQuantizer


class TemperatureConfig(ObjectiveConfig):
    """Settings of a Gumbel temperature.

    gumbel_temperature_start, gumbel_temperature_end, temperature_decay_fraction
        The temperature falls exponentially and reaches its end after this fraction of the run.
    """

    gumbel_temperature_start: Positive = 2.0
    gumbel_temperature_end: Positive = 0.5
    temperature_decay_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.7

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.gumbel_temperature_end > self.gumbel_temperature_start:
            raise ValueError(
                f"gumbel_temperature_end must be at most gumbel_temperature_start ({self.gumbel_temperature_start:g}), "
                f"but is {self.gumbel_temperature_end:g}"
            )
        return self

    def continued(self) -> Self:
        """Return the settings with the Gumbel temperature at its end."""
        return self.model_copy(update={"gumbel_temperature_start": self.gumbel_temperature_end})

    def gumbel_temperature(self, progress: float) -> float:
        """Return the temperature after this fraction of the run."""
        start, end = self.gumbel_temperature_start, self.gumbel_temperature_end
        share = min(progress / self.temperature_decay_fraction, 1.0)
        return float(start * (end / start) ** share)


class GumbelConfig(TemperatureConfig):
    """Settings of a Gumbel quantizer (arXiv 2006.11477, §2 and eq. 4).

    num_codebooks, num_codes, target_width, final_width
        G, V, the width of the concatenated codes, and that of the space in which they meet the context.
    diversity_weight
        Weight of the diversity term.
    """

    num_codebooks: Count = 2
    num_codes: Annotated[int, Field(ge=2)] = 320
    target_width: Count = 256
    final_width: Count = 256
    diversity_weight: Weight = 0.1

    @model_validator(mode="after")
    def _has_codes(self) -> Self:
        if self.target_width % self.num_codebooks:
            raise ValueError(
                f"target_width must be a multiple of num_codebooks, but {self.target_width} is not one of {self.num_codebooks}"
            )
        return self

    @classmethod
    def of_quantizer(cls, heads: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the sizes of a checkpoint's quantizer; None where it has none."""
        codebook, targets = heads.get("quantizer.codebook"), heads.get("project_targets.weight")
        if codebook is None or targets is None or codebook.shape[-1] == 0:
            return None
        num_codebooks = targets.shape[1] // codebook.shape[-1]
        num_codes = codebook.numel() // codebook.shape[-1] // max(num_codebooks, 1)
        return {"num_codebooks": num_codebooks, "num_codes": num_codes, "target_width": targets.shape[1]}


class WithTemperature(Objective):
    """An objective whose Gumbel temperature falls over the run; `gumbel_temperature` is saved with it."""

    config: TemperatureConfig
    gumbel_temperature: Tensor

    def start_temperature(self) -> None:
        """Set the temperature to its start."""
        self.register_buffer("gumbel_temperature", torch.tensor(self.config.gumbel_temperature_start))

    def after_step(self, progress: float) -> None:
        """Lower the temperature: it follows from the progress alone."""
        self.gumbel_temperature.fill_(self.config.gumbel_temperature(progress))


class WithGumbelCodes(WithTemperature):
    """An objective whose targets are Gumbel codes, projected to the space in which they meet the context."""

    config: GumbelConfig

    def build_codes(self, width: int) -> None:
        """Make quantizer and projection for frames of this width, and start the temperature."""
        config = self.config
        self.quantizer = GumbelQuantizer(
            width, config.target_width, num_groups=config.num_codebooks, num_codes=config.num_codes
        )
        self.project_targets = nn.Linear(config.target_width, config.final_width)
        self.start_temperature()

    def diversity(self, quantized: Quantized, num_targets: int) -> tuple[Tensor, Metrics]:
        """Return the diversity loss of a micro-batch, without its weight, and what to log of the codes."""
        num_codes = self.config.num_codebooks * self.config.num_codes
        loss = diversity_loss(quantized.probability_perplexity, num_codes, num_targets)
        return loss, {
            "diversity_loss": (loss.detach(), num_targets),
            **temperature_metrics(self.gumbel_temperature, quantized, num_targets),
        }


def temperature_metrics(temperature: Tensor, quantized: Quantized, num_targets: int) -> Metrics:
    """Return the perplexities of codes and probabilities, and the temperature; nothing where there is no target."""
    count = float(num_targets > 0)
    return {
        "code_perplexity": (quantized.code_perplexity * count, count),
        "probability_perplexity": (quantized.probability_perplexity.detach() * count, count),
        "gumbel_temperature": (temperature * count, count),
    }


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
