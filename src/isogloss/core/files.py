"""Files that are whole, or as they were."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, *, is_flushed: bool = True) -> Iterator[IO[bytes]]:
    """Open a file beside `path` that takes its place when the block ends without an error, and vanishes otherwise.

    It is flushed to the disk first, so that after a power cut one of the two is whole. That costs milliseconds: many small files
    that can be computed again do without.
    """
    # Not `tempfile`: its files are the user's alone, and what is written here others may read as the umask has it.
    temporary = path.with_name(f".writing-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as stream:
            yield stream
            if is_flushed:
                stream.flush()
                os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(path) as stream:
        stream.write(text.encode("utf-8"))
