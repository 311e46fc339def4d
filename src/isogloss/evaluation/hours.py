"""Hours of each language that pretraining heard: from a corpus, or from a table that somebody published."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from isogloss.core.errors import DataError
from isogloss.core.languages import normalize_language
from isogloss.data.index import CorpusIndex


def read_hours(sources: Sequence[Path | str]) -> dict[str, float]:
    """Return hours by language, added up over sources: each a corpus in any accepted form, or a .csv or .tsv with the columns
    `language` and `hours`.
    """
    total: dict[str, float] = defaultdict(float)
    for source in map(Path, sources):
        is_table = source.is_file() and source.suffix in (".csv", ".tsv")
        for language, hours in _of_table(source) if is_table else _of_corpus(source):
            total[language] += hours
    return dict(total)


def hours_heard(languages: Iterable[str], known: Mapping[str, float]) -> dict[str, float]:
    """Return the hours of each language, 0 for one that was never heard.

    A tag with a region is looked up as it is; otherwise, and where it is not there, all varieties of the language count.
    """
    heard = {}
    for tag in languages:
        primary = tag.partition("-")[0]
        varieties = sum(hours for other, hours in known.items() if other.partition("-")[0] == primary)
        heard[tag] = known[tag] if tag != primary and tag in known else float(varieties)
    return heard


def _of_corpus(path: Path) -> list[tuple[str, float]]:
    index = CorpusIndex.open(path)
    return [
        (name, float(index.durations[np.asarray(index.languages) == number].sum(dtype=np.float64)) / 3600)
        for number, name in enumerate(index.language_names)
    ]


def _of_table(path: Path) -> list[tuple[str, float]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table: {error}") from None
    found = []
    for number, row in enumerate(rows, 2):
        if "language" not in row or "hours" not in row:
            raise DataError(f"{path}: must have the columns `language` and `hours`, but has {', '.join(map(str, row))}")
        try:
            hours = float(row["hours"] or "")
            tag = normalize_language(row["language"] or "").tag
        except (ValueError, DataError) as error:
            raise DataError(f"{path}:{number}: {error}") from None
        if not 0 <= hours < float("inf"):
            raise DataError(f"{path}:{number}: `hours` must be a number from 0 on, but is {row['hours']}")
        found.append((tag, hours))
    if not found:
        raise DataError(f"{path}: has no languages under its header")
    return found
