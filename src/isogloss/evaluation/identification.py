"""The figures of a task that chooses among classes: accuracies, length bins, calibration, detection, rejection, confusions.

Utterances whose label is none of the model's classes are of unknown languages: they are left out of the accuracies, and test
the rejection. The temperature and the threshold come from a development set (`Calibration.fit`), never from the test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from isogloss.core.errors import DataError
from isogloss.evaluation.bootstrap import Estimate, bootstrap, bootstrap_weighted, half_width
from isogloss.evaluation.calibration import (
    area_under_curve,
    calibration_counts,
    calibration_error,
    fit_temperature,
    log_loss_counts,
    log_normalize,
    rejection_threshold,
)
from isogloss.evaluation.metrics import (
    accuracy_counts,
    cavg,
    cavg_counts,
    detection_llr,
    equal_error_rate,
    macro_accuracy,
    ratio,
    recall_counts,
)
from isogloss.evaluation.relatedness import groups_of, region_of
from isogloss.evaluation.tables import ResultRecord

Array = npt.NDArray[np.float64]
SHORT_SECONDS = 5.0
_SHOWN_CONFUSIONS = 10


@dataclass(frozen=True)
class Scored:
    """Labelled utterances with their log-posteriors over `classes`; a label may be none of them."""

    classes: tuple[str, ...]
    labels: list[str]
    scores_BC: Array
    seconds_B: Array
    speakers: list[str | None]

    @property
    def is_known_B(self) -> npt.NDArray[np.bool_]:
        """True where the label is a class."""
        return np.array([label in self.classes for label in self.labels], bool)

    def rows(self, keep_B: npt.NDArray[np.bool_]) -> Scored:
        """Return the utterances where `keep_B` is True."""
        kept = np.flatnonzero(keep_B).tolist()
        return Scored(
            self.classes,
            [self.labels[i] for i in kept],
            self.scores_BC[kept],
            self.seconds_B[kept],
            [self.speakers[i] for i in kept],
        )

    def at_temperature(self, temperature: float) -> Scored:
        """Return the same with softmax(score / T)."""
        scaled_BC = log_normalize(self.scores_BC / temperature)
        return Scored(self.classes, self.labels, scaled_BC, self.seconds_B, self.speakers)

    @property
    def predictions(self) -> list[str]:
        """The most probable class of each utterance."""
        return [self.classes[number] for number in self.scores_BC.argmax(axis=1).tolist()]

    @property
    def numbers_B(self) -> npt.NDArray[np.int64]:
        """The number of each label among the classes; every label must be one."""
        return np.array([self.classes.index(label) for label in self.labels], np.int64)


@dataclass(frozen=True)
class Calibration:
    """What a development set gives: the temperature, and the log-posterior below which an utterance is rejected."""

    temperature: float
    threshold: float
    how: str

    @classmethod
    def fit(cls, dev: Scored) -> Calibration:
        """Fit the temperature on the known languages, then the threshold.

        At equal errors where there are unknown languages, else where 5 % of the known are rejected.
        """
        is_known_B = dev.is_known_B
        if not is_known_B.any():
            raise DataError("the development set has no utterance of the model's classes; is it labelled the same way?")
        known = dev.rows(is_known_B)
        temperature = fit_temperature(known.scores_BC, known.numbers_B)
        best_B = dev.at_temperature(temperature).scores_BC.max(axis=1)
        threshold = rejection_threshold(best_B, is_known_B)
        how = "5 % of the known rejected" if is_known_B.all() else "equal errors"
        return cls(temperature, threshold, f"{how} on {len(dev.labels)} development utterances")


def identification_records(
    scored: Scored,
    *,
    system: str,
    task: str,
    dataset: str,
    calibration: Calibration | None = None,
    seed: int = 0,
    synthetic: bool = False,
    notes: str = "",
    meta: dict[str, Any] | None = None,
) -> list[ResultRecord]:
    """Return every figure that the labels allow, the overall ones first, then one per region and language.

    Intervals resample speakers (`bootstrap`). Cavg and EER are those of detection by each language's log-likelihood ratio under
    a flat prior. `cluster_error_share` is the part of all errors that stay inside a group of related languages. `DataError` where no label
    is a class and nothing says what to reject.
    """
    is_known_B = scored.is_known_B
    known = scored.rows(is_known_B)
    records: list[ResultRecord] = []

    def add(metric: str, estimate: Estimate, higher: bool, *, of: str = "", **more: Any) -> None:
        records.append(
            ResultRecord.from_estimate(
                estimate,
                system=system,
                task=task,
                dataset=f"{dataset} {of}".strip(),
                metric=metric,
                higher_is_better=higher,
                synthetic_speech=synthetic,
                seeds=(seed,),
                notes=notes,
                meta={**(meta or {}), **more},
            )
        )

    def of_counts(counts: Array, statistic: Callable[[Array], Array], part: Scored) -> Estimate:
        return bootstrap(counts, statistic, clusters=part.speakers, seed=seed)

    if known.labels:
        hits = accuracy_counts(known.labels, known.predictions)
        mistakes = Counter((r, p) for r, p in zip(known.labels, known.predictions, strict=True) if r != p)
        confused = [[r, p, n] for (r, p), n in mistakes.most_common(_SHOWN_CONFUSIONS)]
        size: dict[str, Any] = {
            "utterances": len(known.labels),
            "unknown": int((~is_known_B).sum()),
            "confusions": confused,
        }
        add("accuracy", of_counts(hits, ratio, known), True, **size)
        recalls = recall_counts(known.labels, known.predictions)
        add("macro_accuracy", of_counts(recalls, macro_accuracy, known), True, languages=len(set(known.labels)))
        is_short_B = known.seconds_B < SHORT_SECONDS
        for name, keep_B in (("short", is_short_B), ("long", ~is_short_B)):
            part = known.rows(keep_B)
            if part.labels:
                more: dict[str, Any] = {
                    "utterances": len(part.labels),
                    "bin": f"{'<' if name == 'short' else '≥'} {SHORT_SECONDS:g} s",
                }
                counts = accuracy_counts(part.labels, part.predictions)
                add(f"accuracy_{name}", of_counts(counts, ratio, part), True, **more)
        _add_calibration(known, calibration, add, of_counts)
        _add_detection(known, add, of_counts, seed)
        _add_clusters(known, mistakes, add, of_counts)
    if not is_known_B.all():
        _add_rejection(scored, calibration, add, seed)
    if not records:
        raise DataError(
            f"no label of `{dataset}` ({', '.join(sorted(set(scored.labels))[:5])}) is a class of the model "
            f"({', '.join(scored.classes[:5])}); is it labelled the same way? Of unknown languages only, `--dev` tells what is accepted"
        )
    _add_languages(known, add, of_counts)
    return records


def domain_gap(
    first: Scored, second: Scored, *, system: str, task: str, datasets: tuple[str, str], seed: int = 0
) -> ResultRecord | None:
    """Return by how much the macro-accuracy falls from the first corpus to the second, over the languages that both test.

    The corpora are resampled independently, and Student's t is taken for few speakers (`bootstrap.spread`); None where they share
    fewer than two classes.
    """
    shared = sorted(set(first.labels) & set(second.labels) & set(first.classes))
    if len(shared) < 2:
        return None
    estimates = []
    for scored in (first, second):
        part = scored.rows(np.array([label in shared for label in scored.labels], bool))
        counts = recall_counts(part.labels, part.predictions)
        estimates.append(bootstrap(counts, macro_accuracy, clusters=part.speakers, seed=seed))
    value = estimates[0].value - estimates[1].value
    sd = float(np.hypot(estimates[0].sd, estimates[1].sd))
    half = half_width(*estimates)
    sizes = [estimate.num_units for estimate in estimates]
    units = {estimate.unit for estimate in estimates}
    caveats = dict.fromkeys(estimate.caveat for estimate in estimates if estimate.caveat)
    gap = Estimate(
        value,
        value - half,
        value + half,
        sd,
        "independent bootstraps of both corpora, Welch's t",
        min(sizes),
        unit=units.pop() if len(units) == 1 else "unit",
        caveat="; ".join(caveats),
    )
    return ResultRecord.from_estimate(
        gap,
        system=system,
        task=task,
        dataset=f"{datasets[0]} − {datasets[1]}",
        metric="macro_accuracy_difference",
        higher_is_better=False,
        seeds=(seed,),
        meta={"languages": shared, "values": [estimate.value for estimate in estimates]},
    )


def _add_calibration(known: Scored, calibration: Calibration | None, add: Any, of_counts: Any) -> None:
    variants = [("", known)]
    if calibration is not None:
        variants.append(("_scaled", known.at_temperature(calibration.temperature)))
    for ending, part in variants:
        more = {"temperature": 1.0 if not ending or calibration is None else calibration.temperature}
        counts = calibration_counts(part.scores_BC, part.numbers_B)
        add(f"ece{ending}", of_counts(counts, calibration_error, part), False, **more)
        add(f"log_loss{ending}", of_counts(log_loss_counts(part.scores_BC, part.numbers_B), ratio, part), False, **more)


def _add_detection(known: Scored, add: Any, of_counts: Any, seed: int) -> None:
    llr_BC = detection_llr(known.scores_BC)
    num_classes = len(known.classes)
    if len(set(known.labels)) > 1:
        add("cavg", of_counts(cavg_counts(known.numbers_B, llr_BC), cavg(num_classes), known), False, p_target=0.5)
    is_target_BC = np.eye(num_classes, dtype=bool)[known.numbers_B]
    tradeoff = equal_error_rate(llr_BC.ravel(), is_target_BC.ravel())

    def pooled(weights_RB: Array) -> Array:
        # a resample at a time: there are as many trials as utterances × languages
        return np.concatenate([tradeoff(np.repeat(weights_B, num_classes)[None]) for weights_B in weights_RB])

    resamples = 2000 if llr_BC.size < 20_000 else 200  # trials are utterances × languages
    estimate = bootstrap_weighted(pooled, len(known.labels), clusters=known.speakers, seed=seed, resamples=resamples)
    add("eer", estimate, False, trials=int(llr_BC.size))


def _add_clusters(known: Scored, mistakes: Counter[tuple[str, str]], add: Any, of_counts: Any) -> None:
    group_of = dict(zip(known.classes, groups_of(known.classes), strict=True))
    sizes = Counter(group_of.values())
    if max(sizes.values()) < 2:
        return
    is_hit_B = np.array([group_of[r] == group_of[p] for r, p in zip(known.labels, known.predictions, strict=True)])
    is_right_B = np.array([r == p for r, p in zip(known.labels, known.predictions, strict=True)])
    ones_B = np.ones(len(is_hit_B))
    add("accuracy_clusters", of_counts(np.stack([is_hit_B, ones_B], axis=1), ratio, known), True)
    if not mistakes:
        return
    inside = np.stack([is_hit_B & ~is_right_B, ~is_right_B], axis=1).astype(float)
    # what blind errors would give: any other class as likely as another
    blind = sum(n * (sizes[group_of[r]] - 1) for (r, _), n in mistakes.items()) / (
        sum(mistakes.values()) * (len(known.classes) - 1)
    )
    groups = [[c for c in known.classes if group_of[c] == name] for name, n in sorted(sizes.items()) if n > 1]
    add("cluster_error_share", of_counts(inside, ratio, known), False, blind=blind, clusters=groups)


def _add_rejection(scored: Scored, calibration: Calibration | None, add: Any, seed: int) -> None:
    part = scored if calibration is None else scored.at_temperature(calibration.temperature)
    best_B, is_known_B = part.scores_BC.max(axis=1), part.is_known_B
    unknown = sorted({label for label in part.labels if label not in part.classes})
    if is_known_B.any():
        for metric, statistic, higher in (
            ("unknown_auroc", area_under_curve(best_B, is_known_B), True),
            ("unknown_eer", equal_error_rate(best_B, is_known_B), False),
        ):
            estimate = bootstrap_weighted(statistic, len(best_B), clusters=part.speakers, seed=seed)
            add(metric, estimate, higher, unknown_languages=unknown)
    if calibration is None:
        return
    is_accepted_B = best_B >= calibration.threshold
    for metric, wrong_B, of_B in (
        ("false_rejection", ~is_accepted_B, is_known_B),
        ("false_acceptance", is_accepted_B, ~is_known_B),
    ):
        if not of_B.any():
            continue
        counts = np.stack([wrong_B & of_B, of_B], axis=1).astype(float)
        estimate = bootstrap(counts, ratio, clusters=part.speakers, seed=seed)
        add(metric, estimate, False, threshold=calibration.threshold, chosen=calibration.how)


def _add_languages(known: Scored, add: Any, of_counts: Any) -> None:
    region_B = [region_of(label) for label in known.labels]
    regions: Sequence[str] = sorted({region for region in region_B if region is not None})
    for region in regions if len(regions) > 1 else ():
        part = known.rows(np.array([own == region for own in region_B]))
        counts = recall_counts(part.labels, part.predictions)
        # a class that is only said of others has no references, and does not count
        add("macro_accuracy", of_counts(counts, macro_accuracy, part), True, of=f"({region})", region=region)
    for label in sorted(set(known.labels)):
        part = known.rows(np.array([own == label for own in known.labels]))
        taken_for = Counter(p for p in part.predictions if p != label).most_common(3)
        speakers = {speaker for speaker in part.speakers if speaker is not None}
        add(
            "accuracy",
            of_counts(accuracy_counts(part.labels, part.predictions), ratio, part),
            True,
            of=f"[{label}]",
            language=label,
            region=region_of(label),
            utterances=len(part.labels),
            speakers=len(speakers),
            taken_for=[[name, number] for name, number in taken_for],
        )
