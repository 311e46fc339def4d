"""Reports by language as records: overlap and kinship, other masks and lesions, gains, transfer and interference, forgetting."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isogloss.core.errors import DataError
from isogloss.evaluation.bootstrap import Estimate, holm, two_sided_p
from isogloss.evaluation.language_reports import (
    GainByHours,
    TransferReport,
    error_rate,
)
from isogloss.evaluation.subnetworks import Overlap, Relatedness, mean_overlap
from isogloss.evaluation.tables import ResultRecord, read_results
from isogloss.evaluation.under_masks import Lesions, Rise, Table

_DIFFERENCES = {"masked_accuracy_difference": 1.0, "loss_difference": -1.0}  # which sign is better
_FALLS = {"masked_accuracy_difference": "masked_error", "loss_difference": "loss"}  # what a gain is a fall of


def overlap_records(
    overlap: Overlap, related: Relatedness | None, *, system: str, seed: int = 0, notes: str = ""
) -> list[ResultRecord]:
    """Return the mean overlap, with its random expectation, and its correlation with kinship where there is one."""
    pairs = overlap.pairs()
    expected = float(np.mean([pair[3] for pair in pairs]))
    common: dict[str, Any] = {"system": system, "task": "overlap of sub-networks", "dataset": "masks", "seeds": (seed,)}
    meta = {
        "expected_at_random": expected,
        "sparsity": dict(zip(overlap.languages, overlap.sparsity_L.tolist(), strict=True)),
        "pairs": [[first, second, round(value, 4), round(chance, 4)] for first, second, value, chance in pairs],
    }
    records = [
        ResultRecord.from_estimate(
            mean_overlap(overlap, seed=seed),
            metric="mask_overlap",
            higher_is_better=True,
            meta=meta,
            notes=notes,
            **common,
        )
    ]
    if related is not None:
        told = {"p_value": related.p_value, "test": f"Mantel, {related.num_permutations} permutations, one-sided"}
        records.append(
            ResultRecord.from_estimate(
                related.correlation, metric="spearman_kinship", higher_is_better=True, meta=told, notes=notes, **common
            )
        )
    return records


def lesion_records(
    masks: Table,
    rise: Estimate,
    cut: Lesions,
    rises: Mapping[str, Rise],
    *,
    system: str,
    dataset: str,
    metric: str,
    seed: int = 0,
) -> list[ResultRecord]:
    """Return the rise under another language's mask, and of lesions on the language itself, the others, and the difference.

    `rises` has "own" (weights that one language alone uses) and "random" (as many others).
    """
    common: dict[str, Any] = {"system": system, "dataset": dataset, "higher_is_better": False, "seeds": (seed,)}
    rates = {mask: {k: round(error_rate(c), 6) for k, c in row.items()} for mask, row in masks.items()}
    records = [
        ResultRecord.from_estimate(
            rise, task="another language's mask", metric=f"{metric}_rise", meta={metric: rates}, **common
        )
    ]
    tables = {"own": cut.own, "random": cut.random}
    for kind, name in (("own", "weights of one language alone"), ("random", "as many weights at random")):
        found = rises[kind]
        meta = {
            "weights": cut.sizes,
            "whole": {k: round(error_rate(c), 6) for k, c in cut.whole.items()},
            metric: {m: {k: round(error_rate(c), 6) for k, c in row.items()} for m, row in tables[kind].items()},
        }
        for of, estimate in (
            ("rise on that language", found.own),
            ("rise on the others", found.others),
            ("that language − others", found.difference),
        ):
            records.append(
                ResultRecord.from_estimate(
                    estimate,
                    task=f"lesion: {name}, {of}",
                    metric=f"{metric}_rise",
                    meta=meta if of == "rise on that language" else {},
                    **common,
                )
            )
    return records


def gain_records(found: GainByHours, *, system: str, dataset: str, metric: str, seed: int = 0) -> list[ResultRecord]:
    """Return the correlation of gains with hours, the mean gain of each bin of hours, and the gain of each language (Holm's p)."""
    common: dict[str, Any] = {
        "system": system,
        "task": "gain by hours heard",
        "seeds": (seed,),
        "higher_is_better": True,
    }
    records = [
        ResultRecord.from_estimate(
            found.correlation,
            dataset=dataset,
            metric="spearman_hours",
            meta={"p_value": found.p_value, "test": "permutation, two-sided"},
            **{**common, "higher_is_better": False},
        )
    ]
    for name, (languages, estimate) in found.bins.items():
        records.append(
            ResultRecord.from_estimate(
                estimate,
                dataset=f"{dataset} ({name})",
                metric=f"{metric}_gain",
                meta={"languages": languages},
                **common,
            )
        )
    adjusted = holm([two_sided_p(estimate) for estimate in found.gains.values()])
    for (language, estimate), p in zip(found.gains.items(), adjusted, strict=True):
        records.append(
            ResultRecord.from_estimate(
                estimate,
                dataset=f"{dataset} [{language}]",
                metric=f"{metric}_gain",
                meta={"language": language, "hours": found.hours[language], "p_holm": p},
                **common,
            )
        )
    return records


def transfer_records(
    found: TransferReport, *, multilingual: str, adapted: str, dataset: str, metric: str, seed: int = 0
) -> list[ResultRecord]:
    """Return what sharing brought and what the adapted system then brings, of both groups of languages, in error rate saved."""
    records = []
    for name, group in (("transfer", found.transfer), ("interference", found.interference)):
        if group is None:
            continue
        for system, estimate in (
            (f"monolingual − {multilingual}", group.shared),
            (f"{multilingual} − {adapted}", group.adapted),
        ):
            records.append(
                ResultRecord.from_estimate(
                    estimate,
                    system=system,
                    task=f"{name}: {', '.join(group.languages)}",
                    dataset=dataset,
                    metric=f"{metric}_gain",
                    higher_is_better=True,
                    seeds=(seed,),
                    meta={"group": name, "languages": group.languages},
                )
            )
    return records


def forgetting_records(
    table: Mapping[str, Mapping[str, Estimate]], *, dataset: str, metric: str, seed: int = 0
) -> list[ResultRecord]:
    """Return what each system forgot of each language (positive: errors rose), with Holm's p over all cells."""
    cells = [(system, name, estimate) for system, own in table.items() for name, estimate in own.items()]
    adjusted = holm([two_sided_p(estimate) for _, _, estimate in cells])
    return [
        ResultRecord.from_estimate(
            estimate,
            system=system,
            task="forgetting",
            dataset=f"{dataset} [{name}]",
            metric=f"{metric}_rise",
            higher_is_better=False,
            seeds=(seed,),
            meta={"language": name, "p_holm": p},
        )
        for (system, name, estimate), p in zip(cells, adjusted, strict=True)
    ]


def adapted_gains(run: Path | str) -> tuple[dict[str, Estimate], dict[str, Estimate], str]:
    """Return what a run of `isogloss adapt` gained on each target and source language, and which error or loss fell by it.

    Read from the paired differences in its `results.jsonl`; `DataError` where it has none by language.
    """
    path = Path(run) / "results.jsonl" if Path(run).is_dir() else Path(run)
    found: dict[str, dict[str, Estimate]] = {"target held out": {}, "source": {}}
    metrics = set()
    for record in read_results(path):
        place, slash, language = record.dataset.rpartition("/")
        if record.metric in _DIFFERENCES and slash and place in found:
            metrics.add(record.metric)
            sign = _DIFFERENCES[record.metric]
            found[place][language] = signed(record.estimate, sign)
    if not metrics:
        raise DataError(
            f"{path}: has no differences by language; give the folder of a run of `isogloss adapt`, or predictions of two systems"
        )
    if len(metrics) > 1:
        raise DataError(f"{path}: has differences in {' and '.join(sorted(metrics))}; give one run at a time")
    return found["target held out"], found["source"], _FALLS[metrics.pop()]


def signed(estimate: Estimate, sign: float) -> Estimate:
    """Return an estimate, or its negative."""
    if sign > 0:
        return estimate
    return Estimate(**{**vars(estimate), "value": -estimate.value, "low": -estimate.high, "high": -estimate.low})
