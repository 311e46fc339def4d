"""Reports by language as records: overlap and kinship, other masks and lesions, gains, transfer and interference, forgetting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isogloss.core.errors import DataError
from isogloss.evaluation.bootstrap import Estimate, holm, two_sided_p
from isogloss.evaluation.language_reports import GainByHours, LanguageCounts, TransferReport, error_rate
from isogloss.evaluation.subnetworks import Overlap, Relatedness, mean_overlap
from isogloss.evaluation.tables import Labels, ResultRecord, read_results, worst_labels
from isogloss.evaluation.under_masks import Lesions, Rise, Table

_DIFFERENCES = {"masked_accuracy_difference": 1.0, "loss_difference": -1.0}  # which sign is better
_FALLS = {"masked_accuracy_difference": "masked_error", "loss_difference": "loss"}  # what a gain is a fall of
_PLACES = {"target held out": "target", "source": "source"}


@dataclass(frozen=True)
class Told:
    """How figures came about, as far as it is known: what their records pass on (fields as in `ResultRecord`)."""

    labels: Labels = ""
    synthetic_speech: bool = False
    search_budget: int = 1
    notes: str = ""

    @classmethod
    def of_record(cls, record: ResultRecord) -> Told:
        """Return what a record tells."""
        return cls(record.labels, record.synthetic_speech, record.search_budget, record.notes)

    @classmethod
    def of_counts(cls, *tables: Mapping[str, LanguageCounts]) -> dict[str, Told]:
        """Return what is known of each language that systems were scored on."""
        found: dict[str, list[Told]] = {}
        for table in tables:
            for name, counts in table.items():
                found.setdefault(name, []).append(cls(counts.labels, counts.synthetic_speech))
        return {name: cls.together(own) for name, own in found.items()}

    @classmethod
    def together(cls, told: Iterable[Told]) -> Told:
        """Return what holds of figures together: the worst labels, the largest search, all notes."""
        told = list(told)
        return cls(
            worst_labels(own.labels for own in told),
            any(own.synthetic_speech for own in told),
            max((own.search_budget for own in told), default=1),
            "; ".join(dict.fromkeys(own.notes for own in told if own.notes)),
        )


def overlap_records(
    overlap: Overlap, related: Relatedness | None, *, system: str, seed: int = 0, notes: str = ""
) -> list[ResultRecord]:
    """Return the mean overlap, with its random expectation, and its correlation with kinship where there is one."""
    pairs = overlap.pairs()
    expected = float(np.mean([pair[3] for pair in pairs]))
    common: dict[str, Any] = {
        "system": system,
        "task": "overlap of sub-networks",
        "dataset": "masks",
        "labels": "",
        "seeds": (seed,),
    }
    meta = {
        "expected_at_random": expected,
        "sparsity": dict(zip(overlap.languages, overlap.sparsity_L.tolist(), strict=True)),
        "pairs": [[first, second, round(value, 4), round(chance, 4)] for first, second, value, chance in pairs],
    }
    records = [
        ResultRecord.from_estimate(
            mean_overlap(overlap),
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
    told = Told.together(Told.of_counts(cut.whole).values())
    common: dict[str, Any] = {
        "system": system,
        "dataset": dataset,
        "higher_is_better": False,
        "labels": told.labels,
        "synthetic_speech": told.synthetic_speech,
        "seeds": (seed,),
    }
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


def gain_records(
    found: GainByHours,
    *,
    system: str,
    dataset: str,
    metric: str,
    seed: int = 0,
    told: Mapping[str, Told] | None = None,
) -> list[ResultRecord]:
    """Return the correlation of gains with hours, the mean gain of each bin of hours, and the gain of each language (Holm's p).

    `told` is what is known of each language's figure.
    """
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
            **_passed_on(told, found.gains),
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
                **_passed_on(told, languages),
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
                **_passed_on(told, [language]),
                **common,
            )
        )
    return records


def transfer_records(
    found: TransferReport,
    *,
    multilingual: str,
    adapted: str,
    dataset: str,
    metric: str,
    seed: int = 0,
    told: Mapping[str, Told] | None = None,
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
                    **_passed_on(told, group.languages),
                )
            )
    return records


def forgetting_records(
    table: Mapping[str, Mapping[str, Estimate]],
    *,
    dataset: str,
    metric: str,
    seed: int = 0,
    told: Mapping[str, Mapping[str, Told]] | None = None,
) -> list[ResultRecord]:
    """Return what each system forgot of each language (positive: errors rose), with Holm's p over all cells.

    Languages may be in places, as `source/cs`: their dataset is then `source [cs]`.
    """
    cells = [(system, name, estimate) for system, own in table.items() for name, estimate in own.items()]
    adjusted = holm([two_sided_p(estimate) for _, _, estimate in cells])
    records = []
    for (system, name, estimate), p in zip(cells, adjusted, strict=True):
        place, _, language = name.rpartition("/")
        records.append(
            ResultRecord.from_estimate(
                estimate,
                system=system,
                task="forgetting",
                dataset=f"{' '.join(filter(None, (dataset, place)))} [{language}]",
                metric=f"{metric}_rise",
                higher_is_better=False,
                seeds=(seed,),
                meta={"language": language, "p_holm": p, **({"place": place} if place else {})},
                **_passed_on((told or {}).get(system), [name]),
            )
        )
    return records


@dataclass(frozen=True)
class AdaptedGains:
    """What a run of `isogloss adapt` gained: `target/cs` or `source/cs` → the record of the difference, positive where it got better.

    `metric` is the error or the loss that a gain is a fall of.
    """

    records: dict[str, ResultRecord]
    metric: str

    def of(self, place: str) -> dict[str, ResultRecord]:
        """Return the languages of the target, or of the source, by their own names."""
        return {name.partition("/")[2]: own for name, own in self.records.items() if name.partition("/")[0] == place}

    @property
    def told(self) -> dict[str, Told]:
        """What the run says of each figure."""
        return {name: Told.of_record(own) for name, own in self.records.items()}


def adapted_gains(run: Path | str) -> AdaptedGains:
    """Return what a run of `isogloss adapt` gained on each target and source language.

    Read from the paired differences in its `results.jsonl`; `DataError` where it has none by language.
    """
    path = Path(run) / "results.jsonl" if Path(run).is_dir() else Path(run)
    found: dict[str, ResultRecord] = {}
    metrics = set()
    for record in read_results(path):
        place, slash, language = record.dataset.rpartition("/")
        if record.metric in _DIFFERENCES and slash and place in _PLACES:
            metrics.add(record.metric)
            own = signed(record.estimate, _DIFFERENCES[record.metric])
            found[f"{_PLACES[place]}/{language}"] = replace(record, value=own.value, low=own.low, high=own.high)
    if not metrics:
        raise DataError(
            f"{path}: has no differences by language; give the folder of a run of `isogloss adapt`, or predictions of two systems"
        )
    if len(metrics) > 1:
        raise DataError(f"{path}: has differences in {' and '.join(sorted(metrics))}; give one run at a time")
    return AdaptedGains(found, _FALLS[metrics.pop()])


def notes_of(told: Mapping[str, Told]) -> list[str]:
    """Return each note once, with the languages that it is about."""
    about: dict[str, list[str]] = {}
    for name, own in told.items():
        if own.notes:
            about.setdefault(own.notes, []).append(name)
    return [f"{', '.join(names)}: {note}" for note, names in about.items()]


def signed(estimate: Estimate, sign: float) -> Estimate:
    """Return an estimate, or its negative."""
    if sign > 0:
        return estimate
    return Estimate(**{**vars(estimate), "value": -estimate.value, "low": -estimate.high, "high": -estimate.low})


def _passed_on(told: Mapping[str, Told] | None, languages: Iterable[str]) -> dict[str, Any]:
    return vars(Told.together((told or {}).get(name, Told()) for name in languages))
