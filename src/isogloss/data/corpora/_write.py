"""What all prepared corpora share: how a cut is written, the tables of the report, and files that are whole or absent."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isogloss.core.errors import DataError
from isogloss.data.corpora._decode import SAMPLE_RATE


def describe_cut(
    name: str, path: str, num_samples: int, supervision: dict[str, Any], custom: dict[str, Any]
) -> dict[str, Any]:
    """Return a lhotse cut (as JSON) of a whole 16 kHz recording at a path relative to the corpus; None values are left out.

    A dictionary and not a `MonoCut`: corpora are prepared without importing lhotse, and with it torch.
    """
    duration = num_samples / SAMPLE_RATE
    span = {"recording_id": name, "start": 0.0, "duration": duration, "channel": 0}
    return {
        "id": name,
        "start": 0,
        "duration": duration,
        "channel": 0,
        "supervisions": [{"id": name, **span, **_known(supervision)}],
        "recording": {
            "id": name,
            "sources": [{"type": "file", "channels": [0], "source": path}],
            "sampling_rate": SAMPLE_RATE,
            "num_samples": num_samples,
            "duration": duration,
            "channel_ids": [0],
        },
        "custom": _known(custom),
        "type": "MonoCut",
    }


def tables(cuts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return `hours`, `minutes` by language and source, and `with_text` of a report."""
    minutes: dict[str, dict[str, float]] = {}
    for cut in cuts:
        of_language = minutes.setdefault(cut["supervisions"][0]["language"], {})
        source = cut["custom"]["source"]
        of_language[source] = of_language.get(source, 0.0) + cut["duration"] / 60
    return {
        "hours": round(sum(cut["duration"] for cut in cuts) / 3600, 4),
        "minutes": {
            language: {source: round(value, 2) for source, value in sorted(of_language.items())}
            for language, of_language in sorted(minutes.items())
        },
        "with_text": sum("text" in cut["supervisions"][0] for cut in cuts),
    }


def write_json(tree: dict[str, Any], path: Path) -> None:
    """Write readable JSON."""
    _write(path, (json.dumps(tree, ensure_ascii=False, indent=1) + "\n").encode())


def write_cuts(cuts: Iterable[dict[str, Any]], path: Path) -> None:
    """Write one cut a line, gzip-compressed without a time stamp: the same cuts give the same bytes."""
    lines = "".join(json.dumps(cut, ensure_ascii=False) + "\n" for cut in cuts)
    _write(path, gzip.compress(lines.encode(), compresslevel=6, mtime=0))


def make_folder(folder: Path) -> None:
    """Create a folder; `DataError` if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made: {error.strerror or error}; try another folder") from None


def _write(path: Path, data: bytes) -> None:
    from isogloss.data._write import atomic_file  # brings lhotse along, which worker processes do without

    with atomic_file(path) as stream:
        stream.write(data)


def _known(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}
