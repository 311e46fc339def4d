"""Short names of models, corpora and files of predictions, as tables and charts show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_INSIDE = ("model", "start", "cuts.jsonl", "cuts.jsonl.gz")  # named after the folder that they lie in


def short_name(path: Path) -> str:
    """Return the last part of a path that tells it from others: a run's folder for its `model/`, a file's name without `.jsonl`."""
    resolved = path.resolve()
    if resolved.name in _INSIDE:
        return resolved.parent.name
    return resolved.stem if resolved.suffix in (".json", ".jsonl") else resolved.name


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each path, the whole path where short ones are the same; a path that comes twice is a `ConfigError`."""
    from isogloss.core.errors import ConfigError

    names = [short_name(path) for path in paths]
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise ConfigError(f"`{path}` is given for two systems; give each its own")
        seen.add(path.resolve())
    return [str(path) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
