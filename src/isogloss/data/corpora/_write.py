"""Write what a prepared corpus consists of, beside the target first and then in its place, so no half file is ever seen."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_json(tree: dict[str, Any], path: Path) -> None:
    """Write readable JSON."""
    _replace(path, (json.dumps(tree, ensure_ascii=False, indent=1) + "\n").encode())


def write_cuts(cuts: Iterable[dict[str, Any]], path: Path) -> None:
    """Write one cut a line, gzip-compressed without a time stamp: the same cuts give the same bytes."""
    lines = "".join(json.dumps(cut, ensure_ascii=False) + "\n" for cut in cuts)
    _replace(path, gzip.compress(lines.encode(), compresslevel=6, mtime=0))


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
