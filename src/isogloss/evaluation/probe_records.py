"""Results of probes as records: a figure with its interval over speakers, its search budget, and where its labels are from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from isogloss.evaluation.bootstrap import Estimate, bootstrap, paired_difference
from isogloss.evaluation.ctc_probe import CtcProbe
from isogloss.evaluation.lid import LidResult
from isogloss.evaluation.metrics import accuracy_counts, f1_counts, macro_f1, per_utterance_counts, ratio
from isogloss.evaluation.probes import PhoneProbe
from isogloss.evaluation.tables import Labels, ResultRecord
from isogloss.evaluation.weighted_probe import WeightedProbe


def phone_records(
    probes: list[PhoneProbe], best: PhoneProbe, *, dataset: str, synthetic_speech: bool = False, notes: str = ""
) -> list[ResultRecord]:
    """Return the record of the layer that the development split chose; its `meta` has every layer's accuracies."""
    layers = {
        str(probe.layer): {"dev": probe.dev_accuracy, "test": probe.accuracy, "macro": probe.macro_accuracy}
        for probe in probes
    }
    meta = {
        "layer": best.layer,
        "layers": layers,
        "macro_accuracy": best.macro_accuracy,
        "weight_decay": best.weight_decay,
        "num_phones": best.num_phones,
        "num_train_frames": best.num_train_frames,
        "budget": asdict(best.budget),
        "recalls": best.recalls,
    }
    return [
        _record(
            bootstrap(phone_counts(best), ratio, clusters=best.speakers, seed=best.budget.seed),
            system=best.source,
            task="phones, linear",
            dataset=dataset,
            metric="accuracy",
            higher_is_better=True,
            labels=best.labels,
            synthetic_speech=synthetic_speech,
            seed=best.budget.seed,
            search_budget=len(probes) * len(best.budget.weight_decays),
            notes=notes,
            meta=meta,
        )
    ]


def weighted_records(
    found: WeightedProbe, *, dataset: str, synthetic_speech: bool = False, notes: str = ""
) -> list[ResultRecord]:
    """Return the record of a mixture of layers; its `meta` has the weight of each, and the passes that fitted them as `budget`."""
    probe = found.probe
    records = phone_records([probe], probe, dataset=dataset, synthetic_speech=synthetic_speech, notes=notes)
    budget = {**asdict(probe.budget), **asdict(found.fitting)}
    del budget["max_iterations"]  # of the solver for one layer
    changed = {"layer": "weighted", "layers": {}, "weights": found.weights, "budget": budget}
    return [replace(r, meta={**r.meta, **changed}) for r in records]


def phone_counts(probe: PhoneProbe) -> Any:
    """Return correct and all frames per utterance, B×2."""
    return np.stack([probe.correct_B, probe.total_B], axis=1).astype(float)


def ctc_records(
    probe: CtcProbe, *, dataset: str, synthetic_speech: bool = False, notes: str = ""
) -> list[ResultRecord]:
    """Return the corpus-level PER, and the mean of the utterances' rates as the reference reports it."""
    meta = {
        "layer": probe.layer,
        "kernel": probe.kernel,
        "stride": probe.stride,
        "best_epoch": probe.best_epoch,
        "left_out": probe.left_out,
        "settings": asdict(probe.settings),
    }
    records = []
    for metric, counts in (("per", ctc_counts(probe)), ("per_utterance", per_utterance_counts(ctc_counts(probe)))):
        records.append(
            _record(
                bootstrap(counts, ratio, clusters=probe.speakers, seed=probe.settings.seed),
                system=probe.source,
                task="phones, CTC",
                dataset=dataset,
                metric=metric,
                higher_is_better=False,
                labels=probe.labels,
                synthetic_speech=synthetic_speech,
                seed=probe.settings.seed,
                search_budget=1,
                notes=notes,
                meta=meta,
            )
        )
    return records


def ctc_counts(probe: CtcProbe) -> Any:
    """Return errors and reference phones per utterance, B×2."""
    return np.stack([probe.errors_B, probe.num_phones_B], axis=1).astype(float)


def lid_records(
    result: LidResult, *, dataset: str, synthetic_speech: bool = False, notes: str = ""
) -> list[ResultRecord]:
    """Return accuracy and macro-F1; the `meta` of both has each language's recall and what could not be tested."""
    recalls = {}
    for language in sorted(set(result.languages)):
        hits = [p == language for p, t in zip(result.predictions, result.languages, strict=True) if t == language]
        recalls[language] = {"recall": float(np.mean(hits)), "utterances": len(hits)}
    meta = {
        "layers": result.layers,
        "languages": recalls,
        "left_out": result.left_out,
        "why": result.why,
        "sources": sorted(set(result.sources)),
    }
    f1 = f1_counts(result.languages, result.predictions)
    estimates = {
        "accuracy": bootstrap(lid_counts(result), ratio, clusters=result.speakers),
        "macro_f1": bootstrap(f1, macro_f1, clusters=result.speakers),
    }
    return [
        _record(
            estimate,
            system=result.source,
            task=f"language, {result.method}, held-out {result.held_out}",
            dataset=dataset,
            metric=metric,
            higher_is_better=True,
            labels="gold",
            synthetic_speech=synthetic_speech,
            seed=0,
            search_budget=result.num_layers_tried,
            notes=notes,
            meta=meta,
        )
        for metric, estimate in estimates.items()
    ]


def lid_counts(result: LidResult) -> Any:
    """Return hits and ones per utterance, B×2."""
    return accuracy_counts(result.languages, result.predictions)


def difference_record(
    ours: ResultRecord, theirs: ResultRecord, counts: tuple[Any, Any], speakers: list[str | None]
) -> ResultRecord:
    """Return the paired difference of two systems' ratios on the same test utterances, ours − theirs."""
    estimate = paired_difference(counts[0], counts[1], ratio, clusters=speakers)
    return _record(
        estimate,
        system=f"{ours.system} − {theirs.system}",
        task=ours.task,
        dataset=ours.dataset,
        metric=f"{ours.metric}_difference",
        higher_is_better=ours.higher_is_better,
        labels=ours.labels,
        synthetic_speech=ours.synthetic_speech,
        seed=ours.seeds[0] if ours.seeds else 0,
        search_budget=max(ours.search_budget, theirs.search_budget),
        notes=ours.notes,
        meta={},
    )


def _record(
    estimate: Estimate,
    *,
    system: str,
    task: str,
    dataset: str,
    metric: str,
    higher_is_better: bool,
    labels: Labels,
    synthetic_speech: bool,
    seed: int,
    search_budget: int,
    notes: str,
    meta: Mapping[str, Any],
) -> ResultRecord:
    return ResultRecord.from_estimate(
        estimate,
        system=system,
        task=task,
        dataset=dataset,
        metric=metric,
        higher_is_better=higher_is_better,
        labels=labels,
        synthetic_speech=synthetic_speech,
        seeds=(seed,),
        search_budget=search_budget,
        notes=notes,
        meta=meta,
    )
