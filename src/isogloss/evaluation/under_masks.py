"""Whom another language's mask hurts, and whom the loss of a language's own weights hurts.

What is measured is left to a `Measure`: the errors of a fine-tuned model (`task_measure`), or the loss of an objective on audio
that was not trained on (`adapt/losses.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isogloss.core.errors import DataError
from isogloss.core.rng import derive_seed
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import fixed_to, matrices, remove, row_of
from isogloss.evaluation.bootstrap import Estimate, from_replicates
from isogloss.evaluation.language_reports import Array, LanguageCounts, changes, error_rate
from isogloss.evaluation.subnetworks import lesioned, masks_of
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
        return LanguageCounts(counts, [result.speakers[i] for i in kept], [result.ids[i] for i in kept])

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
        sizes[name] = lesion_size(encoder, name)
        for table, at_random in zip(tables, (None, seed), strict=True):
            cut = lesioned(encoder, name, at_random=at_random)
            table[name] = {}
            for tested in languages:
                table[name][tested] = measure(cut, tested)
                done += 1
                if progress is not None:
                    progress(done, total)
    return Lesions(whole, tables[0], tables[1], sizes)


def lesion_size(encoder: Encoder, language: str) -> int:
    """Return how many weights only this language uses."""
    row, found = row_of(encoder, language), masks_of(encoder)
    assert encoder.edits is not None
    others = [other for other in range(len(encoder.edits.languages)) if other != row]
    size = 0
    for name in matrices(encoder):
        unique = found[name].mask(row)
        for other in others:
            unique = unique & ~found[name].mask(other)
        size += int(unique.sum())
    return size


@dataclass(frozen=True)
class Rise:
    """How much the errors rise: of the language itself, of the others (mean), and the one minus the other; over languages."""

    own: Estimate
    others: Estimate
    difference: Estimate


def mask_rise(table: Table, *, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Estimate:
    """Return how much more a language errs under another's mask than under its own, mean over pairs.

    The interval resamples languages, and speakers (or utterances) within each.
    """
    languages = list(table)
    own = {name: table[name][name] for name in languages}
    rises_MKR, values_MK = _rises(table, own, resamples, seed)
    off = ~np.eye(len(languages), dtype=bool)
    values_K = (values_MK * off).sum(0) / off.sum(0)
    draws_KR = (rises_MKR * off[..., None]).sum(0) / off.sum(0)[:, None]
    return _over_languages(values_K, draws_KR, level, seed)


def lesion_rise(
    whole: Mapping[str, LanguageCounts], table: Table, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> Rise:
    """Return whom lesions hurt; the interval resamples lesions, and speakers (or utterances) within each tested language."""
    rises_MKR, values_MK = _rises(table, whole, resamples, seed)
    count = len(values_MK)
    index = np.arange(count)
    own_M, own_MR = values_MK[index, index], rises_MKR[index, index]
    others_M = (values_MK.sum(1) - own_M) / (count - 1)
    others_MR = (rises_MKR.sum(1) - own_MR) / (count - 1)
    return Rise(
        _over_languages(own_M, own_MR, level, seed),
        _over_languages(others_M, others_MR, level, seed),
        _over_languages(own_M - others_M, own_MR - others_MR, level, seed),
    )


def rise_of(table: Table, base: Mapping[str, LanguageCounts]) -> Array:
    """Return the rise of the error rate over `base`, M×K: rows are masks or lesions, columns what is tested."""
    return np.array([[error_rate(own[k]) - error_rate(base[k]) for k in table] for own in table.values()])


def _rises(table: Table, base: Mapping[str, LanguageCounts], resamples: int, seed: int) -> tuple[Array, Array]:
    """Return rises M×K×R and M×K; the resamples of a tested language are the same under every mask."""
    if len(table) < 2:
        raise DataError("this needs two languages or more that have a mask and speech to test on")
    rows = [changes(row, dict(base), resamples=resamples, seed=seed) for row in table.values()]
    return (
        np.stack([[row[name].draws_R for name in table] for row in rows]),
        np.array([[row[name].estimate.value for name in table] for row in rows]),
    )


def _over_languages(values_L: Array, draws_LR: Array, level: float, seed: int) -> Estimate:
    count, resamples = draws_LR.shape
    chosen_RL = np.random.default_rng(derive_seed("languages", seed)).integers(count, size=(resamples, count))
    draws_R = draws_LR[chosen_RL, np.arange(resamples)[:, None]].mean(1)
    caveat = f"only {count} languages" if count < 10 else ""
    return from_replicates(
        float(values_L.mean()), draws_R, num_units=count, unit="language", level=level, caveat=caveat
    )
