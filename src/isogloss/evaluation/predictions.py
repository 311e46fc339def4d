"""What `isogloss predict --out` wrote, as errors of each utterance by language: what reports by language are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from isogloss.core.errors import DataError
from isogloss.evaluation import metrics
from isogloss.evaluation.language_reports import LanguageCounts

ErrorMetric = Literal["wer", "cer", "per", "error"]


def read_predictions(paths: Sequence[Path | str], metric: ErrorMetric) -> dict[str, LanguageCounts]:
    """Return errors and reference tokens of each utterance by language, of the files of one system together.

    `error` counts utterances whose text is not the reference (language identification). Utterances without a reference are left
    out; one without a language, an id that comes twice and a file without references are a `DataError`.
    """
    rows: dict[str, list[tuple[str, str, str, str | None]]] = {}
    seen: dict[str, str] = {}
    for path in map(Path, paths):
        for place, name, text, reference, language, speaker in _lines(path):
            if reference is None:
                continue
            if name in seen:
                raise DataError(f"{place}: `{name}` was there before, at {seen[name]}; every utterance counts once")
            if language is None:
                raise DataError(f"{place}: `{name}` has no language; say it with `--language` to `isogloss predict`")
            seen[name] = place
            rows.setdefault(language, []).append((name, text, reference, speaker))
    if not rows:
        raise DataError(
            f"{paths[0]}: has no utterance with a `reference`; usually because the corpus has no labels, or another version of "
            "isogloss wrote it; run `isogloss predict --out` again on labelled speech"
        )
    return {language: _counts(own, metric) for language, own in sorted(rows.items())}


def _counts(rows: Sequence[tuple[str, str, str, str | None]], metric: ErrorMetric) -> LanguageCounts:
    texts, references = [row[1] for row in rows], [row[2] for row in rows]
    if metric == "error":
        counts = metrics.accuracy_counts(references, texts)
        counts = counts @ [[-1.0, 0.0], [1.0, 1.0]]  # hits and ones → errors and ones
    else:
        split = metrics.characters if metric == "cer" else metrics.words
        counts = metrics.error_counts([split(r) for r in references], [split(t) for t in texts])
    return LanguageCounts(counts, [row[3] for row in rows], [row[0] for row in rows])


def _lines(path: Path) -> list[tuple[str, str, str, str | None, str | None, str | None]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
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
        told = [row.get(key) for key in ("reference", "language", "speaker")]
        if any(value is not None and not isinstance(value, str) for value in told):
            raise DataError(f"{path}:{number}: `reference`, `language` and `speaker` must be texts or null")
        rows.append((f"{path}:{number}", row["id"], row["text"], *told))
    return rows
