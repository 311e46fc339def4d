"""What Mockingjay, TERA and APC share: the spectrum as a target, the head that guesses it, and the L1 loss on chosen cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Share
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, Packed, iterate_spans
from isogloss.corruption.replace import Replacement, replace_spans
from isogloss.encoders.base import Encoder
from isogloss.encoders.spectral import SPECTRUM_STRIDE, SpectralEncoder
from isogloss.nn.product import Linear
from isogloss.objectives.base import Objective, ObjectiveConfig, Watch


def spectral(encoder: Encoder, objective: str) -> SpectralEncoder:
    """Return the encoder if it reads a spectrum; otherwise `ConfigError`."""
    if not isinstance(encoder, SpectralEncoder):
        raise ConfigError(
            f"objective `{objective}` reconstructs a spectrum and needs an encoder that reads one, but {type(encoder).__name__} "
            "reads samples; try an encoder of kind `mel`, `apc` or `conformer`"
        )
    return encoder


def frames_per_state(encoder: SpectralEncoder) -> int:
    """Return how many frames of the spectrum (100 Hz) one state of the encoder stands for."""
    return encoder.geometry.hop // SPECTRUM_STRIDE


@dataclass
class Targets:
    """The spectrum as the states' targets: state n of utterance i stands for `frames` rows of it, laid side by side.

    `values_ME` has E = frames·F columns; `rows_M` says which packed rows of the states they belong to. States that stand for less
    than `frames` rows (an encoder that pads may have one at the end) have no target.
    """

    values_ME: Tensor
    rows_M: Tensor
    lengths: list[int]
    frames: int

    @classmethod
    def of(cls, spectrum: Packed, encoder: SpectralEncoder, num_samples_B: list[int]) -> Targets:
        """Lay the spectrum beside the states that the encoder will make of it."""
        frames = frames_per_state(encoder)
        states = [encoder.num_frames(n) for n in num_samples_B]
        lengths = [min(n // frames, m) for n, m in zip(spectrum.sizes, states, strict=True)]
        parts = [
            part[: n * frames].unflatten(0, (n, frames)).flatten(1) if n else part.new_zeros(0, frames * part.shape[1])
            for part, n in zip(spectrum.split(), lengths, strict=True)
        ]
        spans = zip(iterate_spans(states), lengths, strict=True)
        rows_M = torch.cat([torch.arange(start, start + n) for (start, _), n in spans])
        return cls(torch.cat(parts), rows_M.to(spectrum.values_ND.device), lengths, frames)


class SpectrumHead(nn.Module):
    """Linear, GELU, norm, linear (Mockingjay's and TERA's head in s3prl), from N(0, 0.02)."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.inner = Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.out = Linear(width, out_width)
        for layer in (self.inner, self.out):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, values_ND: Tensor) -> Tensor:
        """Guess the frames of each state, N×E."""
        guesses_NE: Tensor = self.out(self.norm(F.gelu(self.inner(values_ND))))
        return guesses_NE


def absolute_error(
    guesses_ME: Tensor, targets_ME: Tensor, is_chosen_ME: Tensor | None = None, last_ME: Tensor | None = None
) -> LossTerms:
    """Return Σ |guess − target| over the chosen cells (booleans on the CPU; all without them), their number, and metrics.

    They compare it with guesses that know nothing: `loss_vs_zero` is the error over that of guessing zero, the mean of a
    normalised spectrum; `loss_vs_last` over that of `last_ME`, the last frames that were seen; `guess_spread` is the standard
    deviation of the guesses from row to row over that of the targets: 0 where they are constant.
    """
    guesses_ME, targets_ME = guesses_ME.float(), targets_ME.float()
    num_cells = guesses_ME.numel() if is_chosen_ME is None else int(is_chosen_ME.sum())
    is_left_out_ME = None if is_chosen_ME is None else ~is_chosen_ME.to(guesses_ME.device)

    def add_up(values_ME: Tensor) -> Tensor:
        return (values_ME if is_left_out_ME is None else values_ME.masked_fill(is_left_out_ME, 0.0)).sum()

    total = add_up((guesses_ME - targets_ME).abs())
    error = total.detach()
    metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {
        "l1": (error, num_cells),
        "loss_vs_zero": (error, add_up(targets_ME.abs())),
        "guess_spread": (_spread(guesses_ME.detach()), _spread(targets_ME)),
    }
    if last_ME is not None:
        metrics["loss_vs_last"] = (error, add_up((last_ME.float() - targets_ME).abs()))
    return LossTerms(total, num_cells, metrics)


def _spread(values_ME: Tensor) -> Tensor | float:
    return values_ME.std(0, unbiased=False).mean() * len(values_ME) if len(values_ME) else 0.0


WATCHES = (
    Watch(
        metric="guess_spread",
        low=0.05,
        patience=500,
        grace=2000,
        meaning="the guesses hardly differ from frame to frame: the model has learned the mean spectrum and nothing else",
        advice="raise or lower the learning rate, warm up for longer, or check `encoder.normalization`",
    ),
    Watch(
        metric="loss_vs_zero",
        high=1.0,
        patience=500,
        grace=2000,
        meaning="the guesses are no better than zero, the mean of a normalised spectrum",
        advice="lower the learning rate, or check that `encoder.normalization` is 'utterance'",
    ),
)


class AlteredSpansConfig(ObjectiveConfig):
    """Settings of Mockingjay's alteration of time (arXiv 1910.12638, in s3prl's present form).

    mask_probability, mask_span
        Share of the frames that spans would cover if they did not overlap, and states in a span (of `stack` frames each).
    zeroed, replaced
        Probabilities that spans become zero, or other frames of the utterance; otherwise they stay.
    """

    mask_probability: Annotated[float, Field(gt=0.0, le=1.0)] = 0.15
    mask_span: Count = 7
    zeroed: Share = 0.8
    replaced: Share = 0.1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.zeroed + self.replaced > 1:
            raise ValueError(f"zeroed + replaced must be at most 1, but is {self.zeroed + self.replaced:g}")
        return self

    def draw_spans(
        self, targets: Targets, seeds_B: Tensor, decide: Literal["utterance", "span"] = "utterance"
    ) -> Replacement:
        """Choose the spans of a batch, and what becomes of them: one die for all spans of an utterance, or one for each."""
        return replace_spans(
            targets.lengths,
            utterance_generators(seeds_B, "masks"),
            probability=self.mask_probability,
            span=self.mask_span,
            zeroed=self.zeroed,
            replaced=self.replaced,
            decide=decide,
        )


class Reconstruction(Objective):
    """Parts of the objectives that rebuild an altered spectrum: a head on the last state of an encoder that reads one."""

    watches = WATCHES

    def __init__(self, config: AlteredSpansConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        encoder = spectral(encoder, config.name)
        self.head = SpectrumHead(encoder.width, frames_per_state(encoder) * encoder.spectrum_width)
