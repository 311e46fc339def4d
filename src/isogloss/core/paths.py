"""Short names of paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def last_parts(paths: Sequence[Path]) -> list[str]:
    """Return a name for each path: as few of its last parts as tell it from the others; one that comes twice has all of its parts."""
    names = [path.parts[-1] for path in paths]
    for length in range(2, max((len(path.parts) for path in paths), default=0) + 1):
        names = [
            str(Path(*path.parts[-length:])) if names.count(name) > 1 else name
            for path, name in zip(paths, names, strict=True)
        ]
    return names
