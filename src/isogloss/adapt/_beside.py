"""Sub-networks are shown beside their controls only: a mask is also a name of the language, and random masks tell it as well."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isogloss.adapt._utterances import read_utterances
from isogloss.adapt.base import AdaptRecipe
from isogloss.adapt.mixture import mixture_differences, mixture_identity
from isogloss.adapt.report import SYSTEMS, paired_records
from isogloss.core.errors import ConfigError
from isogloss.core.paths import last_parts
from isogloss.evaluation.tables import ResultRecord, read_results
from isogloss.training.recipe import changed_settings

FOUND = ("taylor", "taylor-squared", "lottery")  # masks of single languages that were found, not drawn
CONTROLS = ("random masks", "one-hot")
FROZEN = ", what is shared frozen"
_SWEPT = "optim.lr"  # swept for each arm, as it should be
_GROUPING = "data.group_by"
_AGAIN = "run it with the same options and another method"
_OF_MASKS = ("method.sparsity", "method.scope")


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other: paired differences of the first to each other one, the records of all, missing controls, and notes."""

    differences: list[ResultRecord]
    records: list[ResultRecord]
    missing: list[str]
    notes: list[str]


def kind_of(method: Mapping[str, Any]) -> str:
    """Return what a run is in such a comparison: sub-networks, one of the two controls, or another method by its name.

    A method that trained nothing but what it put in is another one: the control trains what is shared too, as sub-networks do.
    """
    if method["name"] == "subnetwork":
        importance = str(method["importance"])
        return "random masks" if importance == "random" else f"{importance} masks"
    return str(method["name"]).replace("_", "-") + FROZEN * bool(method.get("freeze_shared"))


def needs_controls(method: Mapping[str, Any]) -> bool:
    """Return whether a run's figures mean something only beside those of the controls."""
    return method["name"] == "subnetwork" and method["importance"] in FOUND


def check_rivals(recipe: AdaptRecipe, others: Sequence[Path], replay_data: Path | str | None = None) -> None:
    """Refuse, before anything is computed, runs that could not stand beside a run of this recipe: `ConfigError`, `DataError`."""
    if not others:
        return
    own = recipe.recipe
    identity = mixture_identity(
        own.data.path,
        heldout=recipe.adapt.heldout,
        source=replay_data,
        replay=recipe.adapt.replay,
        languages=own.data.languages,
        min_seconds=own.data.min_seconds,
        seed=own.training.seed,
    )
    for folder in others:
        summary = _summary(folder)
        _check(folder, summary, "this run", recipe.tree(), identity)
        _check_length(folder, summary, "this run", is_empty=recipe.is_empty)
        read_utterances(folder)


def beside(run_dir: Path, others: Sequence[Path]) -> Comparison:
    """Return a run beside others: what it is better by than each, on the same utterances, and the records of all.

    The others must have begun with the same model, on the same division of the same audio, with the same settings and budget; only
    the method and the learning rate may differ, and masks must leave out the same share in the same scope: `ConfigError`.
    """
    own = _summary(run_dir)
    folders, summaries = [run_dir, *others], [own, *(_summary(folder) for folder in others)]
    for folder, summary in zip(folders[1:], summaries[1:], strict=True):
        _check(folder, summary, str(run_dir), own["config"], _made_of(run_dir))
        _check_length(folder, summary, str(run_dir), is_empty=own["planned_updates"] == 0)
    names = _names(folders, summaries)
    note = [*_note_on_rates(names, summaries), *_note_on_updates(names, summaries)]
    differences: list[ResultRecord] = []
    records = [replace(row, system=f"{names[0]}: {row.system}") for row in read_results(run_dir / "results.jsonl")]
    mine = read_utterances(run_dir)
    kinds = [kind_of(summary["method"]) for summary in summaries]
    rank = {kind: number for number, kind in enumerate(CONTROLS)}
    for i in sorted(range(1, len(folders)), key=lambda i: rank.get(kinds[i], len(rank))):
        theirs = read_utterances(folders[i])
        budget = max(own["models_compared"], summaries[i]["models_compared"])
        for dataset in (name for name in mine if name in theirs):
            differences += paired_records(
                mine[dataset],
                theirs[dataset],
                dataset=dataset,
                systems=(names[0], names[i]),
                seed=int(own["config"]["training"]["seed"]),
                budget=budget,
                notes="; ".join(["one run of each, so seeds are not in the interval", *note]),
            )
        # Before is the same model on the same utterances for all of them.
        rows = (row for row in read_results(folders[i] / "results.jsonl") if row.system != SYSTEMS[0])
        records += [replace(row, system=f"{names[i]}: {row.system}") for row in rows]
    return Comparison(differences, records, [control for control in CONTROLS if control not in kinds], note)


def _check(folder: Path, summary: Mapping[str, Any], own: str, config: Mapping[str, Any], made_of: Any) -> None:
    """Refuse a run with another model, other audio or other settings than those of a run, and name what differs."""
    changed = changed_settings(summary["config"], config)
    if model := changed.pop("start.sha256", None):
        _refuse(folder, own, "model", f"SHA-256 {model[0][:12]}… there, {model[1][:12]}… here")
    both_masked = summary["config"]["method"]["name"] == config["method"]["name"] == "subnetwork"
    told = [
        f"`{key}` ({_plain(there)} there, {_plain(here)} here)"
        for key, (there, here) in changed.items()
        if key != _SWEPT and (not key.startswith("method.") or (both_masked and key in _OF_MASKS))
    ]
    if told:
        _refuse(folder, own, "settings", ", ".join(told), _advice(folder, own, changed, summary["config"], config))
    audio = mixture_differences(_made_of(folder), made_of)
    if audio:
        _refuse(folder, own, "audio", ", ".join(audio))


def _check_length(folder: Path, summary: Mapping[str, Any], own: str, *, is_empty: bool) -> None:
    """Refuse a run that trained beside one that did not; budgets otherwise are settings."""
    if (summary["planned_updates"] == 0) != is_empty:
        _refuse(folder, own, "number of updates", "one of the two has a budget of zero")


def _advice(
    folder: Path, own: str, changed: Mapping[str, Any], theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> str:
    """Return how to make two runs comparable: the recipe of `continued` mixes languages in a micro-batch, its rivals' do not."""
    if _GROUPING in changed:
        for name, config in ((str(folder), theirs), (own, ours)):
            if config["method"]["name"] == "continued" and config["data"]["group_by"] != "language":
                return f"`--recipe adapt/dense` is `continued` with a language in each micro-batch, as rivals have it: make {name} with it"
    return _AGAIN


def _refuse(folder: Path, own: str, what: str, told: str, advice: str = _AGAIN) -> None:
    raise ConfigError(
        f"{folder}: must have the same {what} as {own} to be compared with it, but has not: {told}; {advice}"
    )


def _plain(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _names(folders: Sequence[Path], summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each run: its kind, its learning rate where they differ, and its folder where that does not tell them apart."""
    names = [kind_of(summary["method"]) for summary in summaries]
    rates = [summary["config"]["optim"]["lr"] for summary in summaries]
    if len(set(rates)) > 1:
        names = [f"{name}, lr {rate:g}" for name, rate in zip(names, rates, strict=True)]
    counts = Counter(names)
    resolved = [folder.resolve() for folder in folders]
    distinct = list(dict.fromkeys(resolved))
    places = dict(zip(distinct, last_parts(distinct), strict=True))
    return [
        f"{name} ({places[folder]})" if counts[name] > 1 else name for name, folder in zip(names, resolved, strict=True)
    ]


def _note_on_rates(names: Sequence[str], summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    if len({summary["config"]["optim"]["lr"] for summary in summaries}) == 1:
        return []
    return [f"learning rates differ ({'; '.join(names)}), which is fair only where each was swept in the same way"]


def _note_on_updates(names: Sequence[str], summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a note where the same budget of audio was divided into other numbers of updates."""
    counts = [summary["planned_updates"] for summary in summaries]
    if len(set(counts)) == 1:
        return []
    told = ", ".join(f"{name} {count}" for name, count in zip(names, counts, strict=True))
    return [
        f"numbers of updates differ ({told}): the budget of audio is the same, but what an update holds depends on how micro-batches are "
        "filled and on the number of processes"
    ]


def _summary(folder: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads((folder / "adapt.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"{folder}: is not a finished run of `isogloss adapt`; give the folder of its `--out`"
        ) from None
    return summary


def _made_of(folder: Path) -> dict[str, Any]:
    try:
        made_of: dict[str, Any] = json.loads((folder / "corpus" / "made_of.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ConfigError(
            f"{folder}: must hold the division of its audio (`corpus/made_of.json`) to be compared with, but does not; usually because a "
            "part of the folder was removed; run it again"
        ) from None
    return made_of
