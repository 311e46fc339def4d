"""File names in messages and reports: one printable line, from which the exact bytes can be had back."""

from __future__ import annotations

import os
import re

PathLike = str | os.PathLike[str]


def printable(path: PathLike) -> str:
    r"""Return a path as printable text: a backslash is `\\`, a control character or an undecodable byte is `\xNN`."""
    return "".join(_escape(c) for c in os.fspath(path))


def from_printable(text: str) -> str:
    r"""Return the path that `printable` was given."""
    raw = re.sub(
        rb"\\(?:\\|x([0-9a-f]{2}))",
        lambda match: bytes([int(match[1], 16)]) if match[1] else b"\\",
        text.encode("utf-8"),
    )
    return raw.decode("utf-8", "surrogateescape")


def is_path(text: str) -> bool:
    """Return whether a text can be the name of a file: it has no zero byte, and each character stands for bytes."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _escape(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    # half of a surrogate pair, as JSON can spell it, stands for no byte at all
    errors = "surrogateescape" if is_path(character) else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", errors))
