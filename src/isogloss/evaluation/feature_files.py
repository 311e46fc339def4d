"""Read features from disk: what `isogloss extract` wrote, or anyone's .npy files with an index like its."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from isogloss.core.errors import DataError
from isogloss.evaluation.features import FeatureStore


def read_feature_files(folder: Path | str) -> FeatureStore:
    """Return the features that a folder's `features.jsonl` lists, memory-mapped; nothing pickled is read.

    Each line has `id`, `layer`, `file` (relative, inside the folder), `frame_rate_hz`, `first_center_seconds`. Files must be
    S×D floating point, and all lines of one rate.
    """
    folder = Path(folder)
    index = folder / "features.jsonl"
    try:
        lines = index.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{index}: cannot be read; give a folder that `isogloss extract` wrote") from None
    arrays: dict[tuple[str, int], Any] = {}
    times: set[tuple[float, float]] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{index}:{number}"
        try:
            row = json.loads(line)
            key = (str(row["id"]), int(row["layer"]))
            times.add((float(row["frame_rate_hz"]), float(row["first_center_seconds"])))
            name = PurePosixPath(row["file"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(f"{place}: not an entry of features: {error!r}") from None
        if key in arrays:
            raise DataError(f"{place}: layer {key[1]} of `{key[0]}` is there twice")
        if name.is_absolute() or ".." in name.parts:
            raise DataError(f"{place}: `file` must lie inside the folder, but is `{name}`")
        arrays[key] = _read_array(folder / name, place)
    if len(times) != 1:
        raise DataError(f"{index}: must be of one frame rate and first centre, but has {len(times)}")
    layers = tuple(sorted({layer for _, layer in arrays}))
    ids = {key for key, _ in arrays}
    if len(arrays) != len(ids) * len(layers):
        raise DataError(f"{index}: has {len(ids)} ids and {len(layers)} layers, but only {len(arrays)} files")
    too_short = [key for key in sorted(ids) if len(arrays[key, layers[0]]) == 0]
    ((rate, center),) = times
    return FeatureStore(folder.resolve().name, rate, center, layers, too_short, arrays)


def _read_array(path: Path, place: str) -> Any:
    try:
        # An empty array cannot be mapped.
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{place}: {path.name} is not an array: {error}") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{place}: {path.name} cannot be read: {error}") from None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f":
        raise DataError(f"{place}: {path.name} must hold S×D floating-point values")
    return values
