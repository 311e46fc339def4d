"""Score files of hypotheses against a reference: every test id once, in the reference's order, or nothing at all.

A score is only worth something if it is of the whole test set. So a missing, additional, repeated or moved id is an error
that names it, and nothing is dropped, sorted or joined silently.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from isogloss.core.errors import DataError
from isogloss.evaluation import metrics
from isogloss.evaluation.bootstrap import Estimate, bootstrap, bootstrap_weighted, paired_difference
from isogloss.evaluation.tables import Labels, ResultRecord

Metric = Literal["wer", "cer", "per", "per_utterance", "accuracy", "macro_accuracy", "macro_f1", "eer", "min_dcf"]

_TEXT_FIELDS = ("text", "label", "language", "score")
_TARGETS = {"target": True, "1": True, "true": True, "nontarget": False, "0": False, "false": False}
_HIGHER = frozenset({"accuracy", "macro_accuracy", "macro_f1"})


@dataclass(frozen=True)
class Rows:
    """The rows of one file: ids, what is scored (text, label or score as written), speakers where told, and its SHA-256."""

    name: str
    ids: list[str]
    values: list[str]
    speakers: list[str | None]
    sha256: str


def read_rows(path: Path | str, name: str = "") -> Rows:
    """Read a file of ids and texts, labels or scores; `name` is its stem by default.

    `.jsonl` with the fields `id`, one of `text`, `label`, `language`, `score`, and optionally `speaker`; `.csv` and `.tsv`
    with those columns; any other file as Kaldi writes it, an id and the rest of the line. Faults are `file:line: reason`.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    readers = {".jsonl": _json_rows, ".csv": _csv_rows, ".tsv": _tsv_rows}
    rows = list(readers.get(path.suffix.lower(), _kaldi_rows)(text, str(path)))
    if not rows:
        raise DataError(f"{path}: has no rows")
    ids = [row[0] for row in rows]
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise DataError(f"{path}: {_some(repeated)} more than once; every id must be there exactly once")
    return Rows(
        name or path.stem, ids, [row[1] for row in rows], [row[2] for row in rows], hashlib.sha256(content).hexdigest()
    )


def check_ids(reference: Rows, hypothesis: Rows) -> None:
    """Raise `DataError`, naming ids, unless the hypothesis has exactly the reference's ids in the reference's order."""
    have, want = set(hypothesis.ids), set(reference.ids)
    missing = [i for i in reference.ids if i not in have]
    if missing:
        raise DataError(
            f"`{hypothesis.name}` lacks {_some(missing)} ({len(missing)} of {len(want)}); usually because decoding was "
            "interrupted or short utterances were dropped; give an empty text for an utterance without output"
        )
    unknown = [i for i in hypothesis.ids if i not in want]
    if unknown:
        raise DataError(
            f"`{hypothesis.name}` has {_some(unknown)}, which the reference lacks ({len(unknown)}); usually another test set"
        )
    for place, (got, wanted) in enumerate(zip(hypothesis.ids, reference.ids, strict=True), 1):
        if got != wanted:
            raise DataError(
                f"`{hypothesis.name}` is in another order than the reference: row {place} is `{got}`, but must be "
                f"`{wanted}`; usually rows were sorted or shuffled after decoding; write them in the reference's order"
            )


def score_files(
    reference: Rows,
    hypotheses: Sequence[Rows],
    metric: Metric,
    *,
    dataset: str,
    labels: Labels = "gold",
    synthetic_speech: bool = False,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> list[ResultRecord]:
    """Return one record per hypothesis file, and the paired difference of each further one to the first."""
    for hypothesis in hypotheses:
        check_ids(reference, hypothesis)
    clusters = reference.speakers if any(reference.speakers) else None
    settings: dict[str, Any] = {"clusters": clusters, "resamples": resamples, "level": level, "seed": seed}
    estimates: list[tuple[str, Estimate]] = []
    if metric in ("eer", "min_dcf"):
        statistics = [_detection(reference, hypothesis, metric) for hypothesis in hypotheses]
        size = len(reference.ids)
        for hypothesis, statistic in zip(hypotheses, statistics, strict=True):
            estimates.append((hypothesis.name, bootstrap_weighted(statistic, size, **settings)))
        for hypothesis, statistic in zip(hypotheses[1:], statistics[1:], strict=True):
            both = _minus(statistics[0], statistic)
            name = f"{hypotheses[0].name} − {hypothesis.name}"
            estimates.append((name, bootstrap_weighted(both, size, **settings)))
    else:
        classes = sorted({*reference.values, *(v for h in hypotheses for v in h.values)})
        counts = [_counts(reference, hypothesis, metric, classes) for hypothesis in hypotheses]
        statistic = _STATISTICS.get(metric, metrics.ratio)
        for hypothesis, count in zip(hypotheses, counts, strict=True):
            estimates.append((hypothesis.name, bootstrap(count, statistic, **settings)))
        for hypothesis, count in zip(hypotheses[1:], counts[1:], strict=True):
            name = f"{hypotheses[0].name} − {hypothesis.name}"
            estimates.append((name, paired_difference(counts[0], count, statistic, **settings)))
    return [
        ResultRecord.from_estimate(
            estimate,
            system=name,
            task="evaluate",
            dataset=dataset,
            metric=metric,
            higher_is_better=metric in _HIGHER,
            labels=labels,
            synthetic_speech=synthetic_speech,
            meta={"sha256": {row.name: row.sha256 for row in (reference, *hypotheses)}, "items": len(reference.ids)},
        )
        for name, estimate in estimates
    ]


_STATISTICS: dict[str, Callable[[metrics.Array], metrics.Array]] = {
    "macro_f1": metrics.macro_f1,
    "macro_accuracy": metrics.macro_accuracy,
}


def _counts(reference: Rows, hypothesis: Rows, metric: Metric, classes: Sequence[str]) -> metrics.Array:
    if metric in ("wer", "cer", "per", "per_utterance"):
        split = metrics.characters if metric == "cer" else metrics.words
        counts = metrics.error_counts([split(t) for t in reference.values], [split(t) for t in hypothesis.values])
        if counts[:, 1].sum() == 0:
            raise DataError(f"`{reference.name}` has no {metric} to count: every reference is empty")
        return metrics.per_utterance_counts(counts) if metric == "per_utterance" else counts
    if metric == "accuracy":
        return metrics.accuracy_counts(reference.values, hypothesis.values)
    # Two systems may err into different classes: the columns must be the same for their difference.
    make = metrics.f1_counts if metric == "macro_f1" else metrics.recall_counts
    return make([*reference.values, *classes], [*hypothesis.values, *classes])[: len(reference.values)]


def _detection(reference: Rows, hypothesis: Rows, metric: Metric) -> Callable[[metrics.Array], metrics.Array]:
    scores = []
    for name, value in zip(hypothesis.ids, hypothesis.values, strict=True):
        try:
            scores.append(float(value))
        except ValueError:
            scores.append(math.nan)
        if not math.isfinite(scores[-1]):
            raise DataError(f"the score of `{name}` must be a finite number, but is `{value}`")
    targets = []
    for name, value in zip(reference.ids, reference.values, strict=True):
        if value.strip().lower() not in _TARGETS:
            raise DataError(f"the reference of `{name}` must be `target` or `nontarget`, but is `{value}`")
        targets.append(_TARGETS[value.strip().lower()])
    make = metrics.equal_error_rate if metric == "eer" else metrics.min_dcf
    return make(np.array(scores), np.array(targets))


def _minus(
    a: Callable[[metrics.Array], metrics.Array], b: Callable[[metrics.Array], metrics.Array]
) -> Callable[[metrics.Array], metrics.Array]:
    return lambda weights: a(weights) - b(weights)


Row = tuple[str, str, str | None]


def _json_rows(text: str, path: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: must be an object with `id` and `text`, but is {type(row).__name__}")
        yield _row(row, f"{path}:{number}")


def _csv_rows(text: str, path: str, delimiter: str = ",") -> Iterator[Row]:
    lines = io.StringIO(text, newline="")
    if delimiter == "\t":
        reader = csv.DictReader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, restkey="")
    else:
        reader = csv.DictReader(lines, delimiter=delimiter, restkey="")
    try:
        for row in reader:
            if "" in row or None in row.values():
                raise DataError(f"{path}:{reader.line_num}: must have {len(reader.fieldnames or ())} columns")
            yield _row(row, f"{path}:{reader.line_num}")
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def _tsv_rows(text: str, path: str) -> Iterator[Row]:
    return _csv_rows(text, path, "\t")


def _kaldi_rows(text: str, path: str) -> Iterator[Row]:
    for line in text.split("\n"):
        if line.strip():
            name, *rest = line.split(maxsplit=1)
            yield name, rest[0].strip() if rest else "", None


def _row(row: dict[str, Any], place: str) -> Row:
    found = [name for name in _TEXT_FIELDS if name in row]
    if "id" not in row or not found:
        raise DataError(f"{place}: must have `id` and one of {', '.join(_TEXT_FIELDS)}, but has {', '.join(row)}")
    if len(found) > 1 and {"text", "score"} & set(found[1:]):
        raise DataError(f"{place}: has both `{found[0]}` and `{found[1]}`; keep the one that is to be scored")
    value, speaker = row[found[0]], row.get("speaker")
    if not isinstance(row["id"], str) or not row["id"] or not isinstance(value, (str, int, float)):
        raise DataError(f"{place}: `id` must be a text and `{found[0]}` a text or a number")
    return row["id"], str(value).strip(), None if speaker in (None, "") else str(speaker)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
