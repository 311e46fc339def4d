"""What the operating system refused, in one sentence: which path, why, and what to do."""

from __future__ import annotations

import errno
import os

_ADVICE = {
    errno.EACCES: "you may not use it; change its permissions, or choose another place",
    errno.EPERM: "you may not use it; change its permissions, or choose another place",
    errno.EROFS: "it lies on a disk that cannot be written; choose another place",
    errno.ENOENT: "it is not there; check how the path is written",
    errno.EEXIST: "something else of this name is there already; choose another place",
    errno.ENOTDIR: "a file stands where a folder must be; choose another place",
    errno.EISDIR: "a folder stands where a file must be; choose another place",
    errno.ENOTEMPTY: "the folder is not empty; choose another place",
    errno.ENOSPC: "the disk is full; free some space, or choose another place",
    errno.EDQUOT: "your share of the disk is used up; free some space, or choose another place",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EMFILE: "too many files are open; raise the limit with `ulimit -n`",
    errno.EIO: "the disk reports a fault; check it, and its cable or network",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)


def advice(error: OSError) -> str:
    """Return what was refused and what to do, without the path."""
    known = _ADVICE.get(error.errno or 0)
    said = error.strerror or str(error) or type(error).__name__
    return f"{said}: {known}" if known else said


def explain(error: OSError) -> str | None:
    """Return path, reason and advice; None where the error names no path, so that it is probably a defect of the program.

    A full disk is told without a path too: writing to an open file does not know its name.
    """
    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, str | bytes)]
    if not paths:
        return advice(error) if error.errno in _FULL else None
    return f"{' → '.join(paths)}: {advice(error)}"
