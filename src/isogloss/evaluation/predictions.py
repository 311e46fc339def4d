"""What `isogloss predict --out` wrote, as errors of each utterance by language: what reports by language are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from isogloss.core.errors import DataError
from isogloss.evaluation import metrics
from isogloss.evaluation.language_reports import LanguageCounts
from isogloss.evaluation.tables import Labels, worst_labels

ErrorMetric = Literal["wer", "cer", "per", "error"]


@dataclass(frozen=True)
class _Row:
    place: str
    id: str
    text: str
    reference: str | None
    language: str | None
    speaker: str | None
    labels: Labels
    synthetic: bool


def read_predictions(paths: Sequence[Path | str], metric: ErrorMetric) -> dict[str, LanguageCounts]:
    """Return errors and reference tokens of each utterance by language, of the files of one system together.

    `error` counts utterances whose text is not the reference (language identification). Utterances without a reference, or with
    an empty one, are left out; one without a language, an id that comes twice and a file without references are a `DataError`.
    """
    rows: dict[str, list[_Row]] = {}
    seen: dict[str, str] = {}
    for path in map(Path, paths):
        for row in _lines(path):
            if not row.reference:  # an empty one was written without labels, and has nothing to be right about
                continue
            if row.id in seen:
                raise DataError(
                    f"{row.place}: `{row.id}` was there before, at {seen[row.id]}; every utterance counts once"
                )
            if row.language is None:
                raise DataError(
                    f"{row.place}: `{row.id}` has no language; say it with `--language` to `isogloss predict`"
                )
            seen[row.id] = row.place
            rows.setdefault(row.language, []).append(row)
    if not rows:
        raise DataError(
            f"{paths[0]}: has no utterance with a `reference`; usually because the corpus has no labels, or another version of "
            "isogloss wrote it; run `isogloss predict --out` again on labelled speech"
        )
    return {language: _counts(own, metric) for language, own in sorted(rows.items())}


def _counts(rows: Sequence[_Row], metric: ErrorMetric) -> LanguageCounts:
    texts, references = [row.text for row in rows], [str(row.reference) for row in rows]
    if metric == "error":
        counts = metrics.accuracy_counts(references, texts)
        counts = counts @ [[-1.0, 0.0], [1.0, 1.0]]  # hits and ones → errors and ones
    else:
        split = metrics.characters if metric == "cer" else metrics.words
        counts = metrics.error_counts([split(r) for r in references], [split(t) for t in texts])
    return LanguageCounts(
        counts,
        [row.speaker for row in rows],
        [row.id for row in rows],
        worst_labels(row.labels for row in rows),
        any(row.synthetic for row in rows),
    )


def _lines(path: Path) -> list[_Row]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as predictions: {error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not isinstance(row.get("text"), str):
            raise DataError(f"{path}:{number}: must have `id` and `text`, as `isogloss predict --out` writes them")
        reference, language, speaker = (row.get(key) for key in ("reference", "language", "speaker"))
        if any(value is not None and not isinstance(value, str) for value in (reference, language, speaker)):
            raise DataError(f"{path}:{number}: `reference`, `language` and `speaker` must be texts or null")
        labels, synthetic = row.get("labels", ""), row.get("synthetic", False)
        if labels not in get_args(Labels) or not isinstance(synthetic, bool):
            raise DataError(
                f"{path}:{number}: `labels` must be gold, silver or synthetic, and `synthetic` true or false, where they are there"
            )
        rows.append(_Row(f"{path}:{number}", row["id"], row["text"], reference, language, speaker, labels, synthetic))
    return rows
