"""Before and after an adaptation: masked accuracy by language, perplexity, probes and forgetting, with paired intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isogloss.adapt._figures import Figures
from isogloss.adapt.heldout import Utterance
from isogloss.core.errors import DataError
from isogloss.evaluation.bootstrap import Estimate, paired_difference, ratio_of_sums
from isogloss.evaluation.tables import ResultRecord

Rows = Sequence[Utterance]
SYSTEMS = ("before", "after")
GIVEN = (
    "each utterance is heard under what belongs to its language, so the language is known at test time; compare with random masks "
    "and with a dense model that is told the language"
)


@dataclass(frozen=True)
class Choice:
    """How the update was chosen: which of how many updates, among how many measured models, on which utterances."""

    update: int
    last: int
    num_compared: int
    chosen_on: frozenset[str] = frozenset()

    def told(self, ids: Sequence[str] = ()) -> str:
        """Return the choice in words, and how many of these utterances it was made on."""
        text = f"update {self.update} of {self.last}, the best of {self.num_compared} models that were measured on held-out audio"
        shared = len(self.chosen_on.intersection(ids))
        return text + (f"; {shared} of these {len(ids)} utterances chose it, which flatters it" if shared else "")


def adaptation_records(
    before: Figures, after: Figures, choice: Choice, *, seed: int, is_given: bool, probe_note: str
) -> list[ResultRecord]:
    """Return everything that is reported: held-out target audio, source, codes, probes.

    `is_given` says that the encoder depends on the language; `probe_note` is told beside the probe.
    """
    more = [GIVEN] if is_given else []
    records = masked_records(
        before.target, after.target, dataset="target held out", seed=seed, choice=choice, notes=more
    )
    if before.source is not None and after.source is not None:
        # Nothing was chosen on it.
        own = replace(choice, chosen_on=frozenset())
        records += masked_records(before.source, after.source, dataset="source", seed=seed, choice=own, notes=more)
    for task, dataset, old, new, count, notes in (
        ("codes", "target held out", perplexities(before.means), perplexities(after.means), len(after.target), more),
        ("quick probe", "probe", before.probe, after.probe, 0, [probe_note]),
    ):
        told = "; ".join([choice.told(), *filter(None, notes)])
        records += plain_records(
            old,
            new,
            task=task,
            dataset=dataset,
            seed=seed,
            budget=choice.num_compared,
            notes=told,
            num_utterances=count,
        )
    return records


def masked_records(
    before: Rows, after: Rows, *, dataset: str, seed: int, choice: Choice, notes: Sequence[str] = ()
) -> list[ResultRecord]:
    """Return accuracy (loss, for objectives without accuracy) before, after and their paired difference: all, and each language.

    `before` and `after` are the same utterances with the same masks; intervals are over speakers, where they are known. The
    search budget is the number of models that were compared.
    """
    if [row.id for row in before] != [row.id for row in after]:
        raise ValueError("`before` and `after` must be the same utterances in the same order")
    languages = sorted({row.language for row in before})
    records: list[ResultRecord] = []
    for language in [None, *languages] if len(languages) > 1 else languages:
        chosen = [i for i, row in enumerate(before) if language in (None, row.language)]
        pair = [[rows[i] for i in chosen] for rows in (before, after)]
        place = dataset if language is None else f"{dataset}/{language}"
        told = "; ".join([choice.told([row.id for row in pair[0]]), *notes])
        records += [
            replace(record, search_budget=1 if record.system == SYSTEMS[0] else choice.num_compared, notes=told)
            for record in _triple(pair[0], pair[1], place, SYSTEMS, seed)
        ]
    return records


def paired_records(
    mine: Rows, theirs: Rows, *, dataset: str, systems: tuple[str, str], seed: int, budget: int, notes: str
) -> list[ResultRecord]:
    """Return the paired difference "mine − theirs" of two runs (`systems` are their names): all utterances, and each language.

    The runs must have measured the same utterances with the same masks. Raises `DataError`.
    """
    other = {row.id: row for row in theirs}
    if len(theirs) != len(mine) or other.keys() != {row.id for row in mine}:
        raise DataError(
            f"`{systems[0]}` and `{systems[1]}` must be measured on the same utterances of `{dataset}`, but are not; usually because the "
            "one was run with another `--source` or by an older isogloss; run both with the same options"
        )
    languages = sorted({row.language for row in mine})
    records = []
    for language in [None, *languages] if len(languages) > 1 else languages:
        rows = [row for row in mine if language in (None, row.language)]
        place = dataset if language is None else f"{dataset}/{language}"
        record = _triple([other[row.id] for row in rows], rows, place, (systems[1], systems[0]), seed)[-1]
        records.append(replace(record, search_budget=budget, notes=notes))
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
            labels="",
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
    seed: int,
    budget: int,
    notes: str,
    num_utterances: int = 0,
) -> list[ResultRecord]:
    """Return figures without intervals (perplexity, quick probes): what both have; of no number of utterances where it is not known."""
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
            # Languages are told by people; nothing tells who made the probe's phones, and codes have no reference.
            labels="gold" if name == "language_accuracy" else "",
            num_units=num_utterances,
            seeds=(seed,),
            search_budget=1 if system == SYSTEMS[0] else budget,
            notes=notes,
        )
        for name in sorted(before.keys() & after.keys())
        for system, figures in zip(SYSTEMS, (before, after), strict=True)
    ]


def perplexities(means: Mapping[str, float]) -> dict[str, float]:
    """Return the perplexities among an objective's metrics."""
    return {name: value for name, value in means.items() if "perplexity" in name}


def _ratio(sums_R2: Any) -> Any:
    return sums_R2[:, 0] / np.maximum(sums_R2[:, 1], 1e-12)
