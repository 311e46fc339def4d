"""Sub-networks are shown beside their controls only: a mask is also a name of the language, and random masks tell it as well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from isogloss.core.errors import ConfigError
from isogloss.evaluation.tables import ResultRecord, read_results

FOUND = ("taylor", "taylor-squared", "lottery")  # masks of single languages that were found, not drawn
CONTROLS = ("random masks", "one-hot")


def kind_of(method: dict[str, Any]) -> str:
    """Return what a run is in such a comparison: sub-networks, one of the two controls, or another method by its name."""
    if method["name"] == "subnetwork":
        importance = str(method["importance"])
        return "random masks" if importance == "random" else f"{importance} masks"
    return str(method["name"]).replace("_", "-")


def needs_controls(method: dict[str, Any]) -> bool:
    """Return whether a run's figures mean something only beside those of the controls."""
    return method["name"] == "subnetwork" and method["importance"] in FOUND


def beside(run_dir: Path, others: Sequence[Path]) -> tuple[list[ResultRecord], list[str]]:
    """Return the records of a run and of others, each under its kind, and the controls that are not among them.

    The others must have begun with the same model, on the same division of the same audio, with the same budget: `ConfigError`.
    """
    own = _summary(run_dir)
    records: list[ResultRecord] = []
    found: list[str] = []
    for folder in (run_dir, *others):
        summary = _summary(folder)
        for what, of in (("model", _model), ("audio", _audio), ("number of updates", _budget)):
            if of(folder, summary) != of(run_dir, own):
                raise ConfigError(
                    f"{folder}: must have the same {what} as {run_dir} to be compared with it, but has another; run it with the same "
                    "options and another method"
                )
        kind = kind_of(summary["method"])
        found.append(kind)
        rows = read_results(folder / "results.jsonl")
        records.extend(replace(record, system=f"{kind}: {record.system}") for record in rows)
    return records, [control for control in CONTROLS if control not in found]


def _summary(folder: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((folder / "adapt.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"{folder}: is not a finished run of `isogloss adapt`; give the folder of its `--out`"
        ) from None
    return summary


def _model(folder: Path, summary: dict[str, Any]) -> Any:
    return summary["config"]["start"]["sha256"]


def _audio(folder: Path, summary: dict[str, Any]) -> Any:
    return json.loads((folder / "corpus" / "made_of.json").read_text(encoding="utf-8"))


def _budget(folder: Path, summary: dict[str, Any]) -> Any:
    return summary["planned_updates"]
