"""Several objectives on one encoder: a weighted sum, each on what a batch has for it (speech, text, pairs).

| objective | corruption | target | loss | encoder |
|---|---|---|---|---|
| multi | of its parts | of its parts | Σ_k weight_k · mean loss_k | any that all parts accept |

    loss of an update = Σ_k weight_k · (Σ loss_k) / N_k,   N_k the targets of part k in the update, over all processes

The loop divides once, by one count, after the backward passes: the N_k are not known before. So part k is scaled by the mean
number r_k of its targets per utterance, measured over all processes in the updates before this one (decay 0.9; a first update
takes each micro-batch's own), and the count that is returned is of utterances: Σ_k weight_k · Σ loss_k / (r_k · B) is the formula
above but for how N_k/B differs from its recent mean. Nothing is added to the loop, no gradient is kept twice, and as r_k is the
same on every process, two processes compute what one does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, final

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from isogloss.core import dist
from isogloss.core.config import Config as PlainConfig
from isogloss.core.errors import ConfigError
from isogloss.core.fields import Positive
from isogloss.core.types import LossTerms, SpeechBatch
from isogloss.data.index import CorpusIndex
from isogloss.encoders.base import Encoder
from isogloss.nn.anchor import zero_of
from isogloss.objectives.base import HeadReport, Objective, ObjectiveConfig, build_objective, parse_objective

DECAY = 0.9  # of the counts of earlier updates
Route = Literal["any", "speech", "text", "pairs", "speech_only", "text_only"]


class Part(PlainConfig):
    """One objective of several: its settings, its weight, and which utterances of a batch it gets.

    "speech" and "text" are those that have it, "pairs" have both, "speech_only" and "text_only" have not the other.
    """

    objective: dict[str, Any]
    weight: Positive = 1.0
    on: Route = "any"

    @field_validator("objective")
    @classmethod
    def _complete(cls, tree: dict[str, Any]) -> dict[str, Any]:
        try:
            config = parse_objective(tree, "[objective.parts.….objective]")
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return config.model_dump(mode="json")


def _predicts_units(tree: Any) -> bool:
    """True if these are settings of an objective that predicts units; what is wrong with them is told where they are read."""
    try:
        return isinstance(tree, dict) and "num_units" in type(parse_objective(tree)).model_fields
    except ConfigError:
        return False


class Config(ObjectiveConfig):
    """`parts`, by names of one's own: `[objective.parts.NAME]` with `weight`, `on` and `[objective.parts.NAME.objective]`."""

    name: Literal["multi"] = "multi"
    parts: Annotated[dict[str, Part], Field(min_length=1)]

    @field_validator("parts")
    @classmethod
    def _have_usable_names(cls, parts: dict[str, Part]) -> dict[str, Part]:
        for name in parts:
            # Names become those of modules, tensors and metrics.
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or hasattr(nn.ModuleDict(), name):
                raise ValueError(
                    f"a part must be called by a letter and then letters, digits, _ and -, and not like a method of a dictionary, but "
                    f"one is called `{name}`; try `{re.sub('[^A-Za-z0-9_-]', '_', name) or 'part'}_1`"
                )
        return parts

    @model_validator(mode="before")
    @classmethod
    def _hand_on_the_number_of_units(cls, tree: Any) -> Any:
        """Give `num_units`, which a recipe's [labels] sets, to every part that predicts units."""
        if not isinstance(tree, dict) or "num_units" not in tree or not isinstance(tree.get("parts"), dict):
            return tree
        units = {"num_units": tree["num_units"]}
        takers = {
            name: part | {"objective": part["objective"] | units}
            for name, part in tree["parts"].items()
            if isinstance(part, dict) and _predicts_units(part.get("objective"))
        }
        if not takers:
            return tree  # where it is an unknown key, as in any objective without units
        return {key: value for key, value in tree.items() if key != "num_units"} | {"parts": tree["parts"] | takers}

    def for_corpus(self, index: CorpusIndex) -> Self:
        """Return the settings with every part's completed."""
        return self._each(lambda config: config.for_corpus(index))

    def continued(self) -> Self:
        """Return the settings with which a finished run goes on."""
        return self._each(lambda config: config.continued())

    def _each(self, change: Any) -> Self:
        parts = {
            name: part.model_copy(update={"objective": change(parse_objective(part.objective)).model_dump(mode="json")})
            for name, part in self.parts.items()
        }
        return self.model_copy(update={"parts": parts})


@final
class Multi(Objective):
    """Its parts, each with heads of its own, on the same encoder."""

    config: Config

    def __init__(self, config: Config, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.parts = nn.ModuleDict(
            {name: build_objective(part.objective, encoder) for name, part in config.parts.items()}
        )
        self.additive = False  # until rates are known, a micro-batch is scaled by its own
        self.requires = frozenset().union(*(part.requires for _, part in self._named()))
        groupings = {part.grouping for _, part in self._named()} - {None}
        if len(groupings) > 1:
            raise ConfigError(
                f"the parts want micro-batches of one {' and of one '.join(sorted(map(str, groupings)))}; one of them only"
            )
        self.grouping = next(iter(groupings), None)
        numbers = {part.num_units for _, part in self._named()} - {None}
        if len(numbers) > 1:
            raise ConfigError(
                f"the parts must predict equally many units, since a batch has one kind, but they predict {sorted(map(int, numbers))}; "  # type: ignore[arg-type]
                "set `num_units` of all to that of `data.units`"
            )
        self.num_units = next(iter(numbers), None)
        self.watches = tuple(
            replace(watch, metric=f"{name}/{watch.metric}") for name, part in self._named() for watch in part.watches
        )
        self.sums: Tensor  # utterances, then targets of each part, of the updates so far, older ones less
        self.register_buffer("sums", torch.zeros(1 + len(self.parts), dtype=torch.float64))
        self._seen = [0.0] * (1 + len(self.parts))  # of this process in the running update

    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the weighted sum over the parts that the batch has something for, and the number of utterances."""
        size = len(batch)
        total = torch.zeros((), device=self.sums.device)
        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {}
        idle: list[nn.Parameter] = []
        if self.training:
            self._seen[0] += size
        for number, (name, part) in enumerate(self._named(), 1):
            chosen = routed(batch, self.config.parts[name].on)
            if not chosen:
                idle += [*part.parameters(), *encoder.parameters()]
                metrics |= {f"{name}/{watch.metric}": (0.0, 0.0) for watch in part.watches}
                continue
            terms: LossTerms = part(encoder, batch if len(chosen) == size else batch.select(chosen))
            if self.training:
                self._seen[number] += terms.num_targets
            total = (
                total + self.config.parts[name].weight * self._per_target(number, terms.num_targets, size) * terms.total
            )
            metrics |= {f"{name}/{metric}": pair for metric, pair in terms.metrics.items()}
            metrics[f"{name}/loss"] = (terms.total.detach(), terms.num_targets)
            metrics[f"{name}/targets"] = (terms.num_targets, size)
        if idle:
            total = total + zero_of(dict.fromkeys(idle))
        return LossTerms(total, size, metrics)

    def _per_target(self, number: int, num_targets: int, size: int) -> Tensor | float:
        """Return utterances per target of a part: the recent mean over all processes, this micro-batch's own before there is one."""
        own = size / max(num_targets, 1)
        known = self.sums[number]
        return torch.where(known > 0, self.sums[0] / known.clamp(min=1e-9), own).float()

    def after_step(self, progress: float) -> None:
        """Take the counts of the update into the means, the same on every process, and tell the parts."""
        seen = dist.sum_over_ranks(torch.tensor(self._seen, dtype=torch.float64, device=self.sums.device))
        self._seen = [0.0] * len(self._seen)
        if float(seen[0]):
            self.sums.mul_(DECAY).add_(seen)
        for _, part in self._named():
            part.after_step(progress)

    def forget_update(self) -> None:
        """Drop the counts of an update that is left out, and let the parts drop theirs."""
        self._seen = [0.0] * len(self._seen)
        for _, part in self._named():
            part.forget_update()

    def follow(self, encoder: Encoder, progress: float) -> None:
        """Let the parts' teachers follow."""
        for _, part in self._named():
            part.follow(encoder, progress)

    def take_heads(self, tensors: Mapping[str, Tensor]) -> HeadReport:
        """Give each part its own heads (`parts.NAME.…`), or, where there are none of it, those of a single objective."""
        report = HeadReport()
        for name, part in self._named():
            prefix = f"parts.{name}."
            own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            found = part.take_heads(own or {k: v for k, v in tensors.items() if not k.startswith("parts.")})
            report.taken += [prefix + key for key in found.taken]
            report.fresh += [prefix + key for key in found.fresh]
            report.sources += [prefix + key for key in found.sources] if own else found.sources
        if "sums" in tensors and tensors["sums"].shape == self.sums.shape:
            self.sums.copy_(tensors["sums"])
            report.taken.append("sums")
        else:
            report.fresh.append("sums")
        return report

    def rebuild_heads(self, encoder: Encoder, names: Sequence[str]) -> str:
        """Let each part make the heads that it lacks."""
        rules = []
        for name, part in self._named():
            prefix = f"parts.{name}."
            missing = [key.removeprefix(prefix) for key in names if key.startswith(prefix)]
            if missing:
                rules.append(f"{name}: {part.rebuild_heads(encoder, missing)}")
        return "; ".join(rules)

    def _named(self) -> Iterator[tuple[str, Objective]]:
        for name, part in self.parts.items():
            assert isinstance(part, Objective)
            yield name, part


def routed(batch: SpeechBatch, on: Route) -> list[int]:
    """Return the utterances of a batch that have what a route asks for."""
    has_speech = [n > 0 for n in batch.audio.sizes]
    has_text = [bool(text) for text in batch.text or [None] * len(batch)]
    return [i for i, pair in enumerate(zip(has_speech, has_text, strict=True)) if pair in _WANTED[on]]


_WANTED: dict[Route, tuple[tuple[bool, bool], ...]] = {  # (has speech, has text)
    "any": ((True, True), (True, False), (False, True), (False, False)),
    "speech": ((True, True), (True, False)),
    "text": ((True, True), (False, True)),
    "pairs": ((True, True),),
    "speech_only": ((True, False),),
    "text_only": ((False, True),),
}
