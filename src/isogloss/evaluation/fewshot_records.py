"""Few-shot curves as records: every point, the area, and paired differences with what they are worth in labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from isogloss.evaluation.bootstrap import Estimate
from isogloss.evaluation.fewshot import FewShotCurve, accuracy_difference, area_difference, equivalent_shots
from isogloss.evaluation.tables import ResultRecord


def few_shot_records(
    curve: FewShotCurve,
    others: Sequence[FewShotCurve] = (),
    *,
    dataset: str,
    synthetic_speech: bool = False,
    notes: str = "",
) -> list[ResultRecord]:
    """Return the macro-accuracy at each number of shots, the area under the curve, and paired differences to other systems."""
    tried = max(own.num_layers_tried for own in (curve, *others))
    told = [notes] if notes else []
    if tried > 1:
        told.append("the layer was chosen with all labels of the training part, not with the shots alone")
    if curve.fewest:
        told.append(f"fewer training utterances than shots: {curve.fewest}")

    def record(estimate: Estimate, system: str, what: str, metric: str, meta: dict[str, Any]) -> ResultRecord:
        return ResultRecord.from_estimate(
            estimate,
            system=system,
            task=f"languages, {curve.held_out}s held out, {what}",
            dataset=dataset,
            metric=metric,
            higher_is_better=True,
            labels="gold",
            synthetic_speech=synthetic_speech,
            search_budget=tried,
            notes="; ".join(told),
            meta={"layer": curve.layer, **meta},
        )

    records = [
        record(curve.accuracy(i), curve.source, _shots(n), "accuracy_macro", {"shots": n})
        for i, n in enumerate(curve.shots)
    ]
    records.append(record(curve.area(), curve.source, "area over log shots", "accuracy_macro", {}))
    for other in others:
        pair = f"{curve.source} − {other.source}"
        for i, n in enumerate(curve.shots):
            theirs = other.accuracy(i).value
            ours = curve.accuracy(i).value
            meta = {
                "shots": n,
                "equivalent_shots": _finite(equivalent_shots(curve, other, i)),
                "relative_gain": (ours - theirs) / theirs if theirs else None,
                "relative_error_reduction": (ours - theirs) / (1 - theirs) if theirs < 1 else None,
            }
            records.append(
                record(accuracy_difference(curve, other, i), pair, _shots(n), "accuracy_macro_difference", meta)
            )
        records.append(
            record(area_difference(curve, other), pair, "area over log shots", "accuracy_macro_difference", {})
        )
    return records


def few_shot_table(curves: Sequence[FewShotCurve]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows for people: each system's accuracy, then the first one's differences to the others, and what it is worth.

    The last rows tell how many shots the other system needs for what the first one has with the number in the column.
    """
    first, others = curves[0], curves[1:]
    header = ["macro-accuracy, %", *(str(n) for n in first.shots), "area over log shots"]
    numbers = range(len(first.shots))
    rows = [
        [own.source, *(own.accuracy(i).format(scale=100.0) for i in numbers), own.area().format(scale=100.0)]
        for own in curves
    ]
    for other in others:
        cells = [accuracy_difference(first, other, i).format(scale=100.0) for i in numbers]
        rows.append([f"{first.source} − {other.source}", *cells, area_difference(first, other).format(scale=100.0)])
    for other in others:
        worth = [equivalent_shots(first, other, i) for i in numbers]
        rows.append([f"shots of {other.source} for as much", *(_worth(n, other.shots) for n in worth), ""])
    return header, rows


def _worth(shots: float, measured: Sequence[int]) -> str:
    if not shots:
        return f"below {measured[0]}"
    return f"{shots:.1f}" if math.isfinite(shots) else f"above {measured[-1]}"


def _shots(number: int) -> str:
    return f"{number} shot{'' if number == 1 else 's'}"


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else "never"
