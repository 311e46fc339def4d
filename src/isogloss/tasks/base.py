"""What every task is: a head with its loss, decoding and metric, over an encoder that is frozen, partly frozen or fine-tuned.

A task trains by the same loop as an objective (`objectives.base.Trainable`). What of the encoder learns is not the task's
business but the run's (`training.start.freeze`): the task only saves work where nothing of it does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from isogloss.core.config import Config, parse
from isogloss.core.errors import ConfigError
from isogloss.core.fields import Count, Probability
from isogloss.core.lookup import find_class, find_module
from isogloss.core.rng import utterance_generators
from isogloss.core.types import LossTerms, Packed, SpeechBatch
from isogloss.core.watch import Watch
from isogloss.corruption.spans import mask_spans
from isogloss.data.index import CorpusIndex
from isogloss.encoders.base import Encoder
from isogloss.nn.anchor import zero_of


class TaskConfig(Config):
    """Base of every task's settings; `name` is the file's name.

    layers
        What the head reads: the "last" state, or all L+1 states "weighted" by a learned softmax (SUPERB's featuriser, arXiv
        2105.01051, §3), each brought to zero mean and unit variance per frame first.
    head_only
        The fraction of the run in which the head learns alone (fairseq's `freeze_finetune_updates`).
    mask_probability, mask_span
        Spans of latents that are hidden in training, as in wav2vec 2.0's fine-tuning (arXiv 2006.11477, §4.2 and appendix B);
        nothing is hidden from an encoder that does not learn.
    """

    name: str
    layers: Literal["last", "weighted"] = "last"
    head_only: Probability = 0.0
    mask_probability: Probability = 0.0
    mask_span: Count = 10

    def for_corpus(self, index: CorpusIndex) -> Self:
        """Return the settings with what follows from the corpus filled in (a vocabulary, the classes): a model holds them."""
        return self

    def useless(self) -> list[str]:
        """Return what is set and would do nothing, a clause each; a recipe is refused for it, a model that is finished is not."""
        return []

    def notes(self, index: CorpusIndex) -> list[str]:
        """Return sentences on what of the corpus these settings leave out, for the start of the run."""
        return []


class Task(nn.Module, ABC):
    """A head over an encoder; built from its config and the encoder, as an objective is.

    `metrics` are the figures that `counts` gives, the one to choose a model by first.
    """

    config: TaskConfig
    requires: frozenset[str] = frozenset()
    watches: tuple[Watch, ...] = ()
    metrics: Mapping[str, bool]  # whether higher is better
    classes: tuple[str, ...] = ()  # of a task that chooses among some
    finds_language: bool = False  # its answer is the language: an encoder that is told it would give the answer away

    def __init__(self, config: TaskConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        if config.layers == "weighted":
            self.layer_logits_L = nn.Parameter(torch.zeros(encoder.num_layers + 1))
        self.progress: Tensor
        self.register_buffer("progress", torch.zeros((), dtype=torch.float64))

    @abstractmethod
    def forward(self, encoder: Encoder, batch: SpeechBatch) -> LossTerms:
        """Return the summed loss, the number of targets, and metrics."""

    @abstractmethod
    def predict(self, encoder: Encoder, batch: SpeechBatch) -> list[str]:
        """Return what the task says of each utterance, as text."""

    def predict_scored(self, encoder: Encoder, batch: SpeechBatch) -> tuple[list[str], Tensor | None]:
        """Return `predict`'s answers, and from a task that chooses among `classes` their log-posteriors, B×C, else None."""
        return self.predict(encoder, batch), None

    @abstractmethod
    def reference(self, cut: Any) -> str | None:
        """Return what would be right for a cut, in the form of `predict`, never empty; None where it is not labelled."""

    @abstractmethod
    def counts(self, references: Sequence[str], predictions: Sequence[str]) -> dict[str, Any]:
        """Return for each of `metrics` the counts of every utterance whose `ratio` of sums is the figure, B×2."""

    def after_step(self, progress: float) -> None:
        """Follow an update."""
        self.progress.fill_(progress)

    def states(self, encoder: Encoder, batch: SpeechBatch) -> Packed:
        """Return what the head reads, N×width: masked in training, without a graph through an encoder that does not learn now."""
        learns = any(p.requires_grad for p in encoder.parameters())
        waits = self.training and float(self.progress) < self.config.head_only
        if not learns and self.training:
            encoder.eval()  # its dropout would only blur what the head sees
        with torch.no_grad() if waits or not learns else nullcontext():
            latents = encoder.frontend(batch.audio).latents
            is_masked_N = None
            if self.training and learns and self.config.mask_probability:
                is_masked_N = mask_spans(
                    latents.sizes,
                    utterance_generators(batch.seeds_B, "masks"),
                    probability=self.config.mask_probability,
                    span=self.config.mask_span,
                ).to(latents.values_ND.device)
            states = encoder.context(latents, is_masked_N).states
        if self.config.layers == "last":
            mixed = states[-1]
        else:
            weights_L = self.layer_logits_L.softmax(0)
            width = states[-1].values_ND.shape[1:]
            # States of another width (a frontend's latents) cannot be mixed; their weight is learned away.
            parts = [
                weight * nn.functional.layer_norm(state.values_ND.float(), width)
                for weight, state in zip(weights_L, states, strict=True)
                if state.values_ND.shape[1:] == width
            ]
            mixed = states[-1].with_values(torch.stack(parts).sum(0))
        if waits and learns:
            mixed = mixed.with_values(mixed.values_ND + zero_of(encoder.parameters()))
        return mixed


def parse_task(tree: Mapping[str, Any], where: str = "[task]") -> TaskConfig:
    """Return a recipe's settings of the task that `tree["name"]` names; `ConfigError` for what is unknown or would do nothing."""
    config = _settings(tree, where)
    if useless := config.useless():
        raise ConfigError(f"{where}: " + "; ".join(useless))
    return config


def _settings(tree: Mapping[str, Any], where: str) -> TaskConfig:
    if "name" not in tree:
        raise ConfigError(f'{where} needs `name`, for instance `name = "asr"`')
    config: TaskConfig = parse(find_module("isogloss.tasks", str(tree["name"])).Config, tree, where)
    return config


def build_task(tree: Mapping[str, Any], encoder: Encoder) -> Task:
    """Build the task that `tree["name"]` names, for an encoder: that of a recipe, or one that a model holds."""
    config = _settings(tree, "[task]")
    build: Any = find_class(find_module("isogloss.tasks", config.name), Task)
    task: Task = build(config, encoder)
    return task
