"""What the objectives with a teacher share: its decay, what it says, which of its parts are averaged, and when the run is ill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Share
from isogloss.core.types import LossTerms, Packed
from isogloss.encoders.base import Encoder, recorded
from isogloss.losses.regression import regression, regression_metrics
from isogloss.objectives.base import Objective, ObjectiveConfig, Watch
from isogloss.targets.layer_outputs import instance_norm
from isogloss.targets.teacher import EmaTeacher, linear_decay

# The convolutions over the waveform, and the norm behind them: teacher and student read the same latents.
FRONTEND = ("convolutions.", "latent_norm.")


class LinearDecayConfig(ObjectiveConfig):
    """Settings of a teacher whose τ rises linearly.

    decay_start, decay_end, decay_fraction
        From where to where, and over which fraction of the run. A teacher remembers 1/(1−τ) updates, so a short run wants a
        smaller τ.
    """

    decay_start: Share = 0.999
    decay_end: Share = 0.9999
    decay_fraction: Share = 0.075

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.decay_end < self.decay_start:
            raise ValueError(
                f"decay_end must be at least decay_start ({self.decay_start:g}), but is {self.decay_end:g}; usually because only one "
                "of them was set; set both"
            )
        return self

    def continued(self) -> Self:
        """Return the settings with τ at its end."""
        return self.model_copy(update={"decay_start": self.decay_end})

    def decay(self, progress: float) -> float:
        """Return τ after this fraction of the run."""
        return linear_decay(progress, self.decay_start, self.decay_end, self.decay_fraction)


class RegressionConfig(LinearDecayConfig):
    """Settings that data2vec and data2vec 2.0 share.

    top_layers
        K, the layers whose feed-forwards are averaged into the target.
    smooth_l1
        β of the smooth L1 loss, which is quadratic below it; 0 for the squared error, as in the audio models.
    """

    top_layers: Count = 8
    smooth_l1: Annotated[float, Field(ge=0.0)] = 0.0


class TeacherRegression(Objective):
    """Parts of data2vec and data2vec 2.0: the targets, the loss, and how the teacher follows."""

    config: RegressionConfig
    teacher: EmaTeacher[Encoder]

    def __init__(self, config: RegressionConfig, encoder: Encoder) -> None:
        super().__init__()
        check_layers(encoder, config.top_layers)
        self.config = config
        self.watches = REGRESSION_WATCHES

    def targets(self, latents: Packed) -> Tensor:
        """Return y, the mean of the teacher's normalised feed-forward outputs in its top K layers, N×D in fp32."""
        return torch.stack(layer_targets(self.teacher, latents, self.config.top_layers)).mean(0)

    def terms(self, guesses_MD: Tensor, targets_MD: Tensor, num_frames: int) -> LossTerms:
        """Return the summed loss of M guesses, of `num_frames` that could have been hidden."""
        total = regression(guesses_MD, targets_MD, self.config.smooth_l1)
        metrics = regression_metrics(guesses_MD, targets_MD)
        return LossTerms(total, len(targets_MD), {**metrics, "masked_fraction": (len(targets_MD), num_frames)})

    def follow(self, encoder: Encoder, progress: float) -> None:
        """Average the encoder into the teacher."""
        self.teacher.follow(encoder, self.config.decay(progress))

    def rebuild_heads(self, encoder: Encoder, names: Sequence[str]) -> str:
        """Leave them as they are: the teacher was made from the checkpoint's encoder."""
        return rule_of_start(names)


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

    The teacher sees all frames (data2vec, arXiv 2202.03555). `latents` are the student's: the frontend is shared.
    """
    with recorded(teacher.model.feed_forwards()[-top_layers:]) as outputs:
        teacher.model.context(latents.with_values(latents.values_ND.detach()))
    return [instance_norm(latents.with_values(output_ND)) for output_ND in outputs]


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

# The first two are what fairseq aborts a run for, after 5000 updates; the third is how tiny models died without EMA on real speech.
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
        metric="target_rank",
        low=1.5,
        patience=100,
        grace=100,
        meaning="the teacher's frames differ along one direction only: it has collapsed to a single number a frame",
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
