"""A file is replaced as a whole, as readable as the umask has it, or stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isogloss.core.files import replacing, write_whole


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "état.json"
    write_whole(path, "old ✓\n")
    with pytest.raises(ValueError, match="closed"), replacing(path) as stream:  # noqa: PT012
        stream.write(b"half")
        assert path.read_text(encoding="utf-8") == "old ✓\n"
        raise ValueError("closed")
    assert path.read_text(encoding="utf-8") == "old ✓\n"
    write_whole(path, "new\n")
    assert path.read_text(encoding="utf-8") == "new\n"
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
