"""What the objectives with a teacher share: what the teacher says, which of its parts are averaged, and when the run is ill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from isogloss.core.errors import ConfigError
from isogloss.core.types import Packed
from isogloss.encoders.base import Encoder, recorded
from isogloss.objectives.base import Watch
from isogloss.targets.layer_outputs import instance_norm
from isogloss.targets.teacher import EmaTeacher

Decay = Annotated[float, Field(ge=0.0, le=1.0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]

# The convolutions over the waveform, and the norm behind them: teacher and student read the same latents.
FRONTEND = ("convolutions.", "latent_norm.")


def check_layers(encoder: Encoder, top_layers: int) -> None:
    """Raise `ConfigError` where the encoder has fewer feed-forwards than the targets are made of."""
    num_layers = len(encoder.feed_forwards())
    if top_layers > num_layers:
        raise ConfigError(
            f"`objective.top_layers` must be at most the number of transformer layers, but is {top_layers} for an encoder with "
            f"{num_layers}; try `objective.top_layers={max(num_layers // 2, 1)}`"
            if num_layers
            else f"`encoder.kind` must be one with transformer layers, whose feed-forwards are the targets, but is {encoder.config.kind}"  # type: ignore[attr-defined]
        )


def is_in_blocks(encoder: Encoder) -> frozenset[str]:
    """Return the names of the encoder's tensors that belong to its transformer layers."""
    own = {id(tensor) for block in encoder.blocks() for tensor in block.state_dict(keep_vars=True).values()}
    return frozenset(name for name, tensor in encoder.state_dict(keep_vars=True).items() if id(tensor) in own)


@torch.no_grad()
def layer_targets(teacher: EmaTeacher[Encoder], latents: Packed, top_layers: int) -> list[Tensor]:
    """Return the teacher's feed-forward outputs *before the residual* in its top layers, instance-normalised: N×D each, fp32.

    The teacher sees all frames (arXiv 2202.03555, §3.2–3.3). `latents` are the student's: the frontend is shared.
    """
    with recorded(teacher.model.feed_forwards()[-top_layers:]) as outputs:
        teacher.model.context(latents.with_values(latents.values_ND.detach()))
    return [instance_norm(latents.with_values(output_ND)) for output_ND in outputs]


def mean_of(targets: Sequence[Tensor]) -> Tensor:
    """Return the mean of the layers' targets."""
    return torch.stack(list(targets)).mean(0)


def rule_of_start(names: Sequence[str], *, is_random: bool = False) -> str:
    """Tell how the heads of these names began, which a checkpoint lacked (`Objective.rebuild_heads`)."""
    rules = []
    if any(name.startswith("teacher.") for name in names):
        rules.append(
            "the teacher's layers have random weights of their own" if is_random else "the teacher copies the encoder"
        )
    if any(not name.startswith("teacher.") for name in names):
        rules.append("the heads are initialised afresh")
    return ", ".join(rules)


_FASTER_TEACHER = (
    "bring `objective.decay_start` nearer to 1 (a teacher that follows at once collapses), lower the learning rate"
)

# The first two are what fairseq aborts a run for, after 5000 updates.
REGRESSION_WATCHES = (
    Watch(
        metric="target_std",
        low=0.1,
        patience=100,
        grace=100,
        meaning="the teacher says the same of every frame: it has collapsed",
        advice=_FASTER_TEACHER,
    ),
    Watch(
        metric="prediction_std",
        low=0.01,
        patience=500,
        grace=200,  # real speech, 400 updates: a healthy run passes through .016 near the 60th; a dead one stays below .001
        meaning="the student predicts the same of every frame: it has collapsed",
        advice=_FASTER_TEACHER,
    ),
    Watch(
        metric="fvu",
        low=0.005,
        high=1.0,
        patience=500,
        grace=2000,
        meaning="below, the targets have become trivial to predict; above 1, the student does worse than predicting zero",
        advice=_FASTER_TEACHER + ", warm up for longer",
    ),
)
