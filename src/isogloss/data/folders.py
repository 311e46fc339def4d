"""The folder of a recording: how corpora of dialects name what no language code says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isogloss.data._paths import printable


def folder_of_cut(cut: Any) -> str | None:
    """Return the name of the folder that a cut's recording lies in, or lay in before it was written elsewhere (`custom["folder"]`).

    None where neither is known. A name that is not UTF-8 is escaped, as in messages: a label must be a text.
    """
    kept = (cut.custom or {}).get("folder")
    if kept:
        return str(kept)
    sources = cut.recording.sources if cut.recording is not None else []
    if not sources or sources[0].type != "file":
        return None
    return printable(Path(str(sources[0].source)).parent.name) or None
