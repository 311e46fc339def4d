"""What an adaptation came to, in words: which model is left where an update was better, where none was, and where none was computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from isogloss.encoders.language_edits import EditsConfig

_NAMES = {
    "masks": "masks",
    "one-hot": "vectors",
    "adapters": "adapters",
    "gates": "gates",
    "lora": "low-rank updates",
}


def put_in(edits: EditsConfig | None, own: EditsConfig | None) -> dict[str, Any] | None:
    """Return the kind of the edits that a run has put into its model before the first update, and for which languages; None for none."""
    known: Sequence[str] = () if own is None else own.languages
    new = [] if edits is None else [name for name in edits.languages if name not in known]
    return {"kind": edits.kind, "languages": new} if edits is not None and new else None


def outcome(summary: dict[str, Any], model_dir: Path) -> str:
    """Return the sentence on what the model is: that of an update, or the start, with what was put into it or without."""
    if summary["chosen_update"]:
        return f"model of update {summary['chosen_update']}: {model_dir}"
    why = "no update was better than the start" if summary["updates"] else "no update was computed"
    edits = summary["put_in"]
    if edits is None:
        return f"{why}, so the model is the start, unchanged: {model_dir}"
    return (
        f"{why}, so the model is the start with the {_NAMES[edits['kind']]} that were put in for {', '.join(edits['languages'])}, as they "
        f"were before the first update: {model_dir}"
    )
