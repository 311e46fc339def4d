"""Places that a verb is going to write to, checked before it computes anything."""

from __future__ import annotations

import os
from pathlib import Path

from isogloss.core.errors import ConfigError


def check_folder(out: Path | None, option: str = "--out") -> None:
    """Refuse a folder that cannot be made or written; nothing is made yet, and None is no place."""
    if out is None:
        return
    place = out
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"`{option} {out}` must be a folder, but {place} is a file; choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(
            f"`{option} {out}` must be a place to write, but {place} cannot be written by you; change its permissions, or choose "
            "another place"
        )


def check_file(out: Path | None, option: str = "--out", *, is_replaced: bool = False) -> None:
    """Refuse a file that cannot be made or written; nothing is made yet, and None is no place.

    One that `is_replaced` is written beside the old one, and takes its place: its folder is written, too.
    """
    if out is None:
        return
    if out.is_dir():
        raise ConfigError(f"`{option} {out}` must be a file, but is a folder; name a file in it")
    if out.exists():
        if not os.access(out, os.W_OK):
            raise ConfigError(
                f"`{option} {out}` cannot be written by you; change its permissions, or choose another place"
            )
        if not is_replaced:
            return  # whoever may write to its folder: /dev/stdout, a file that a group shares
    check_folder(out.parent, option)
