"""Before and after an adaptation: masked accuracy by language, perplexity, probes and forgetting, with paired intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isogloss.adapt.heldout import Utterance
from isogloss.evaluation.bootstrap import Estimate, paired_difference, ratio_of_sums
from isogloss.evaluation.tables import ResultRecord

Rows = Sequence[Utterance]


def masked_records(
    before: Rows, after: Rows, *, dataset: str, systems: tuple[str, str], seed: int
) -> list[ResultRecord]:
    """Return accuracy (loss, for objectives without accuracy) before, after and their paired difference: all, and each language.

    `before` and `after` are the same utterances with the same masks; intervals are over speakers, where they are known.
    """
    if [row.id for row in before] != [row.id for row in after]:
        raise ValueError("`before` and `after` must be the same utterances in the same order")
    languages = sorted({row.language for row in before})
    records: list[ResultRecord] = []
    for language in [None, *languages] if len(languages) > 1 else languages:
        chosen = [i for i, row in enumerate(before) if language in (None, row.language)]
        pair = [[rows[i] for i in chosen] for rows in (before, after)]
        place = dataset if language is None else f"{dataset}/{language}"
        records += _triple(pair[0], pair[1], place, systems, seed)
    return records


def _triple(before: Rows, after: Rows, dataset: str, systems: tuple[str, str], seed: int) -> list[ResultRecord]:
    has_accuracy = not any(math.isnan(row.correct) for row in (*before, *after))
    metric = "masked_accuracy" if has_accuracy else "loss"
    clusters = [row.speaker for row in before]
    counts = [
        np.array([[row.correct if has_accuracy else row.loss, row.count] for row in rows], float).reshape(-1, 2)
        for rows in (before, after)
    ]
    estimates: list[tuple[str, str, Estimate]] = [
        (system, metric, ratio_of_sums(own[:, 0], own[:, 1], clusters=clusters))
        for system, own in zip(systems, counts, strict=True)
    ]
    difference = paired_difference(counts[1], counts[0], _ratio, clusters=clusters)
    estimates.append((f"{systems[1]} − {systems[0]}", f"{metric}_difference", difference))
    return [
        ResultRecord.from_estimate(
            estimate,
            system=system,
            task="masked prediction",
            dataset=dataset,
            metric=name,
            higher_is_better=has_accuracy,
            seeds=(seed,),
        )
        for system, name, estimate in estimates
    ]


def plain_records(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    task: str,
    dataset: str,
    systems: tuple[str, str],
    seed: int,
) -> list[ResultRecord]:
    """Return figures without intervals (perplexity, quick probes): what both have."""
    return [
        ResultRecord(
            system=system,
            task=task,
            dataset=dataset,
            metric=name,
            value=figures[name],
            low=math.nan,
            high=math.nan,
            method="no interval",
            higher_is_better=True,
            seeds=(seed,),
        )
        for name in sorted(before.keys() & after.keys())
        for system, figures in zip(systems, (before, after), strict=True)
    ]


def perplexities(means: Mapping[str, float]) -> dict[str, float]:
    """Return the perplexities among an objective's metrics."""
    return {name: value for name, value in means.items() if "perplexity" in name}


def _ratio(sums_R2: Any) -> Any:
    return sums_R2[:, 0] / np.maximum(sums_R2[:, 1], 1e-12)
