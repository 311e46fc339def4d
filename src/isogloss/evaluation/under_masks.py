"""Whom another language's mask hurts, and whom the loss of a language's own weights hurts.

What is measured is left to a `Measure`: the errors of a fine-tuned model (`task_measure`), or the loss of an objective on audio
that was not trained on (`adapt/loss_measure.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isogloss.core.errors import DataError
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import fixed_to, remove
from isogloss.evaluation.bootstrap import Estimate, off_diagonal, over_pairs
from isogloss.evaluation.language_reports import Array, LanguageCounts, error_rate
from isogloss.evaluation.subnetworks import as_many, masks_of, own_weights, without
from isogloss.evaluation.tables import worst_labels
from isogloss.evaluation.tasks import run_task
from isogloss.tasks.base import Task

# An encoder that is the same for all languages, and a language → errors (or loss) and targets of its utterances
Measure = Callable[[Encoder, str], LanguageCounts]
Table = dict[str, dict[str, LanguageCounts]]  # whose mask or weights → tested on
Progress = Callable[[float, float], None]


def task_measure(task: Task, cuts: Mapping[str, Sequence[Any]]) -> Measure:
    """Return what measures a task's errors by its first metric; `DataError` for a language without references."""
    metric = next(iter(task.metrics))

    def measure(encoder: Encoder, language: str) -> LanguageCounts:
        result = run_task(encoder, task, cuts[language])
        kept = [i for i, reference in enumerate(result.references) if reference]
        if not kept:
            raise DataError(f"no utterance of `{language}` has a reference for {task.config.name}")
        counts = task.counts([str(result.references[i]) for i in kept], [result.predictions[i] for i in kept])[metric]
        if task.metrics[metric]:
            counts = counts @ [[-1.0, 0.0], [1.0, 1.0]]  # hits and ones → errors and ones
        return LanguageCounts(
            counts,
            [result.speakers[i] for i in kept],
            [result.ids[i] for i in kept],
            worst_labels(result.labels[i] for i in kept),
            any(result.synthetic[i] for i in kept),
        )

    return measure


def dense(encoder: Encoder) -> Encoder:
    """Return the encoder without its masks, in eval mode, sharing its weights."""
    shared = [*encoder.parameters(), *encoder.buffers()]
    whole = copy.deepcopy(encoder, {id(tensor): tensor for tensor in shared})
    remove(whole)
    return whole.eval()


def under_masks(
    encoder: Encoder, languages: Sequence[str], measure: Measure, *, progress: Progress | None = None
) -> Table:
    """Measure each language under the mask of each; the diagonal is under its own."""
    masks_of(encoder)
    table: Table = {}
    for done, mask in enumerate(languages):
        fixed = fixed_to(encoder, mask)
        table[mask] = {}
        for place, name in enumerate(languages):
            table[mask][name] = measure(fixed, name)
            if progress is not None:
                progress(done * len(languages) + place + 1, len(languages) ** 2)
    return table


@dataclass(frozen=True)
class Lesions:
    """The dense model as it is (`whole`), without what only one language uses (`own`), and without as many others (`random`)."""

    whole: dict[str, LanguageCounts]
    own: Table
    random: Table
    sizes: dict[str, int]


def lesions(
    encoder: Encoder, languages: Sequence[str], measure: Measure, *, seed: int = 0, progress: Progress | None = None
) -> Lesions:
    """Measure every language on the dense model with the lesion of each, and with random ones of the same sizes.

    Under its own mask a language would never notice the loss of another's weights, so no mask is used here.
    """
    whole_encoder = dense(encoder)
    whole = {name: measure(whole_encoder, name) for name in languages}
    tables: list[Table] = [{}, {}]
    sizes = {}
    total, done = 2 * len(languages) ** 2, 0
    for name in languages:
        own = own_weights(encoder, name)
        sizes[name] = sum(int(matrix.sum()) for matrix in own.values())
        for table, lesion in zip(tables, (own, as_many(own, name, seed)), strict=True):
            cut = without(encoder, lesion)
            table[name] = {}
            for tested in languages:
                table[name][tested] = measure(cut, tested)
                done += 1
                if progress is not None:
                    progress(done, total)
    return Lesions(whole, tables[0], tables[1], sizes)


@dataclass(frozen=True)
class Rise:
    """How much the errors rise: of the language itself, of the others (mean), and the one minus the other; over languages."""

    own: Estimate
    others: Estimate
    difference: Estimate


def mask_rise(table: Table, *, level: float = 0.95) -> Estimate:
    """Return how much more a language errs under another's mask than under its own, mean over pairs; interval as in `lesion_rise`."""
    return _over_languages(rise_of(table, {name: table[name][name] for name in table}), off_diagonal, level)


def lesion_rise(whole: Mapping[str, LanguageCounts], table: Table, *, level: float = 0.95) -> Rise:
    """Return whom lesions hurt.

    The interval leaves out one language at a time, as a lesion and as what is tested (`over_pairs`).
    """
    rises_MK = rise_of(table, whole)
    return Rise(
        _over_languages(rises_MK, _of_own, level),
        _over_languages(rises_MK, off_diagonal, level),
        _over_languages(rises_MK, lambda own_MK: _of_own(own_MK) - off_diagonal(own_MK), level),
    )


def rise_of(table: Table, base: Mapping[str, LanguageCounts]) -> Array:
    """Return the rise of the error rate over `base`, M×K: rows are masks or lesions, columns what is tested."""
    return np.array([[error_rate(own[k]) - error_rate(base[k]) for k in table] for own in table.values()])


def _of_own(rises_MK: Array) -> float:
    return float(np.diagonal(rises_MK).mean())


def _over_languages(rises_MK: Array, mean: Callable[[Array], float], level: float) -> Estimate:
    if len(rises_MK) < 2:
        raise DataError("this needs two languages or more that have a mask and speech to test on")
    return over_pairs(rises_MK, mean, level=level)
