"""Short names of models, corpora and files of predictions, as tables and charts show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_INSIDE = ("model", "start", "cuts.jsonl", "cuts.jsonl.gz")  # named after the folder that they lie in


def short_name(path: Path) -> str:
    """Return the last part of a path that tells it from others: a run's folder for its `model/`, a file's name without `.jsonl`."""
    return _named(path).parts[-1]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each path: as few of its last parts as tell it from the others; a path that comes twice is a `ConfigError`."""
    from isogloss.core.errors import ConfigError
    from isogloss.core.paths import last_parts

    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise ConfigError(f"`{path}` is given for two systems; give each its own")
        seen.add(path.resolve())
    names = last_parts([_named(path) for path in paths])
    # What is left is one thing in two forms, such as a run and its model/.
    return [str(path) if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]


def _named(path: Path) -> Path:
    """Return the path that a path is called after."""
    resolved = path.resolve()
    if resolved.name in _INSIDE:
        resolved = resolved.parent
    elif resolved.suffix in (".json", ".jsonl"):
        resolved = resolved.with_suffix("")
    return resolved
