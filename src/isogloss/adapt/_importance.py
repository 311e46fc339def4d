"""How much each weight matters to a language: from the loss's gradient, batch by batch, or from where training takes it.

The mean gradient of a converged model goes to zero, and |mean g · θ| is then noise; so |g · θ| is taken of each batch and
added up (arXiv 1906.10771, eq. 8; (g · θ)² is its eq. 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from isogloss.core import dist
from isogloss.core.errors import ConfigError
from isogloss.core.rng import generator
from isogloss.core.types import SpeechBatch
from isogloss.data.index import CorpusIndex
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import matrices, select
from isogloss.training.job import open_loader
from isogloss.training.parallel import Learner
from isogloss.training.recipe import Recipe

Scores = dict[str, Tensor]  # name of a matrix → importance of each of its weights, float64, O×D, on the CPU


def taylor_scores(learner: Learner, batches: Iterable[SpeechBatch], power: Literal[1, 2]) -> Scores:
    """Return Σ over batches of |g · θ|^power, g the gradient of a batch's mean loss, dropout off; the learner is left as it was.

    The learner is whole on every rank; rank r of R takes batches r, r + R, … and the sums go over all ranks, so the scores
    do not depend on their number.
    """
    found = matrices(learner.encoder)
    weights = [matrix.weight for matrix in found.values()]
    sums = [torch.zeros_like(weight, dtype=torch.float64, requires_grad=False) for weight in weights]
    device, was_training = weights[0].device, learner.training
    learner.eval()
    select(learner, None)
    num_batches = 0
    for number, batch in enumerate(batches):
        num_batches += 1
        if number % dist.world_size() != dist.rank():
            continue
        terms = learner.objective(learner.encoder, batch.to(device))
        gradients = torch.autograd.grad(terms.total / max(terms.num_targets, 1), weights, allow_unused=True)
        for total, weight, gradient in zip(sums, weights, gradients, strict=True):
            if gradient is not None:
                total += (gradient.double() * weight.detach()).abs() ** power
    learner.train(was_training)
    if not num_batches:
        raise ConfigError("importance needs at least one batch of each language, but there is none")
    return {name: dist.sum_over_ranks(total).cpu() for name, total in zip(found, sums, strict=True)}


def language_batches(recipe: Recipe, learner: Learner, language: str, count: int) -> Iterator[SpeechBatch]:
    """Yield the first `count` micro-batches of one language, as a recipe has them; every rank gets all of them."""
    data = recipe.data.model_copy(
        update={"languages": [language], "language_temperature": 1.0, "bins_multiple_of": 1, "num_workers": 0}
    )
    index = CorpusIndex.open(data.path)
    loader = open_loader(recipe.model_copy(update={"data": data}), index, learner, grouping="language")
    yield from islice((batch for update in loader for batch in update.micro_batches), count)


def magnitude_scores(encoder: Encoder) -> Scores:
    """Return |θ|; of an encoder that was trained on one language it is that language's (arXiv 1803.03635)."""
    return {name: matrix.weight.detach().abs().double().cpu() for name, matrix in matrices(encoder).items()}


def random_scores(encoder: Encoder, language: str, seed: int) -> Scores:
    """Return uniform numbers, a function of seed, language and name: the control that every sub-network needs."""
    return {
        name: torch.rand(
            matrix.weight.shape, dtype=torch.float64, generator=generator(seed, "random mask", language, name)
        )
        for name, matrix in matrices(encoder).items()
    }


def added(scores: Iterable[Scores]) -> Scores:
    """Return the sum of several languages' scores, each brought to mean one over all its weights: no language outweighs the others."""
    total: Scores = {}
    for own in scores:
        mean = sum(float(score.sum()) for score in own.values()) / sum(score.numel() for score in own.values())
        for name, score in own.items():
            total[name] = total.get(name, torch.zeros_like(score)) + score / max(mean, 1e-300)
    return total
