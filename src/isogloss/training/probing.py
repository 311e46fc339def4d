"""What may look at a run while it trains: a probe that is logged, and a judge that also ends the run and chooses its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from isogloss.core.errors import ConfigError
from isogloss.encoders.base import Encoder

Probe = Callable[[Encoder, int], dict[str, Any]]  # the encoder and the update → what is logged


def check_probed(probe_every: int | None, *, has_probe: bool, remedy: str = "give the training a probe") -> None:
    """Refuse `training.probe_every` where there is nothing to probe with: it would be left unused.

    `remedy` is how the caller's user would give it.
    """
    if probe_every is not None and not has_probe:
        raise ConfigError(
            f"`training.probe_every` is {probe_every}, but there is nothing to probe with; {remedy}, or leave it out"
        )


class Judge(Protocol):
    """A probe that also says when the run has learned enough, and which of its checkpoints is the model.

    Whatever it remembers must follow from the logged results: a resumed run asks a new one.
    """

    def __call__(self, encoder: Encoder, step: int) -> dict[str, Any]:
        """Return what is logged."""
        ...

    def enough(self, step: int) -> bool:
        """Return whether the run may end after this update; the same on every rank."""
        ...

    def best(self, last: int) -> int:
        """Return the update whose checkpoint becomes the model, at most `last`; 0 for the model that the run starts from."""
        ...
