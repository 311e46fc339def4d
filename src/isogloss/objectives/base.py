"""What trains: an objective (self-supervised) or a task (supervised). One protocol, so one loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from isogloss.core.config import Config, parse
from isogloss.core.errors import ConfigError
from isogloss.core.lookup import find_class, find_module
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.core.watch import Watch
from isogloss.data.index import CorpusIndex
from isogloss.encoders.base import Encoder

__all__ = [
    "HeadReport",
    "Objective",
    "ObjectiveConfig",
    "Trainable",
    "Watch",
    "build_objective",
    "parse_objective",
]


@dataclass
class HeadReport:
    """Which heads an objective took from a foreign checkpoint, and which it had to initialise afresh.

    `sources` are the checkpoint's names of what was taken where they are not the objective's own.
    """

    taken: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)


@runtime_checkable
class Trainable(Protocol):
    """What the loop needs of an objective or a task."""

    requires: frozenset[str]  # optional fields of `SpeechBatch` that must be present
    watches: tuple[Watch, ...]

    def __call__(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss of a batch."""
        ...

    def after_step(self, progress: float) -> None:
        """Follow an update; `progress` is the fraction of the run that is done (0 to 1)."""
        ...


class Objective(nn.Module, ABC):
    """A self-supervised objective: it owns its heads, quantizers and teachers and is built from its config and an encoder.

    `additive` says that the loss of a batch is the sum of the losses of its parts (False where a batch statistic enters).
    `grouping` names the field that all utterances of a micro-batch share (CPC draws negatives within a speaker).
    """

    config: ObjectiveConfig  # what it was built from; checkpoints keep it
    additive: bool = True
    requires: frozenset[str] = frozenset()
    watches: tuple[Watch, ...] = ()
    grouping: Literal["speaker", "language"] | None = None
    num_units: int | None = None  # how many units it predicts, where it requires them

    @abstractmethod
    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss, the number of targets, and metrics."""

    def after_step(self, progress: float) -> None:
        """Follow an update (temperatures, codebooks); `progress` in [0, 1] is the fraction of the run that is done."""

    def follow(self, encoder: Encoder, progress: float) -> None:
        """Let teachers follow the encoder, right after `after_step`; under FSDP2 its parameters are sharded here.

        Every rank calls it. An objective made of others passes it on.
        """

    def forget_update(self) -> None:
        """Drop what the forward passes of an update collected for `after_step`: the update is left out.

        An objective that keeps sums between the two has this, so that a checkpoint need not hold them.
        """

    def take_heads(self, tensors: Mapping[str, Tensor]) -> HeadReport:
        """Copy heads from tensors that bear this objective's own names; name the taken and the fresh ones."""
        own = self.state_dict()
        report = HeadReport()
        for name, value in own.items():
            foreign = tensors.get(name)
            if foreign is not None and foreign.shape == value.shape:
                value.copy_(foreign)
                report.taken.append(name)
            else:
                report.fresh.append(name)
        return report

    def rebuild_heads(self, encoder: Encoder, names: Sequence[str]) -> str:
        """Make the heads (names of parameters) that a checkpoint lacks; return the rule, in a phrase.

        Called after `take_heads`, with the checkpoint's encoder. By default they stay as they were initialised.
        """
        return "they are initialised afresh"


class ObjectiveConfig(Config):
    """Base of every objective's config; `name` is the file's name."""

    name: str

    def for_corpus(self, index: CorpusIndex) -> Self:
        """Return the settings with what follows from the corpus filled in (a vocabulary): a run's config and its model hold it."""
        return self

    def continued(self) -> Self:
        """Return the settings with which a finished run goes on: temperatures and rates that moved stay at their end."""
        return self

    @classmethod
    def of_heads(cls, heads: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return what the shapes of a checkpoint's heads tell about the settings; None where they are not this objective's."""
        return None


def parse_objective(tree: Mapping[str, Any], where: str = "[objective]") -> ObjectiveConfig:
    """Return the settings of the objective that `tree["name"]` names, defaults filled in; `ConfigError` for an unknown name or key."""
    if "name" not in tree:
        raise ConfigError(f'{where} needs `name`, for instance `name = "wav2vec2"`')
    config: ObjectiveConfig = parse(find_module("isogloss.objectives", str(tree["name"])).Config, tree, where)
    return config


def build_objective(tree: Mapping[str, Any], encoder: Encoder) -> Objective:
    """Build the objective that `tree["name"]` names from the rest of the tree, for an encoder.

    Raises `ConfigError` for an unknown name or key.
    """
    config = parse_objective(tree)
    build: Any = find_class(find_module("isogloss.objectives", config.name), Objective)
    objective: Objective = build(config, encoder)
    return objective
