"""isogloss folders: `isogloss.json` (what it is) and `model.safetensors` (its tensors), whole or absent.

An encoder that depends on the language has one file more, named after its edits (`masks.safetensors`): a row for each
language, `LANGUAGE/NAME`. The large file is the dense model, which opens without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from isogloss import __version__
from isogloss.core.config import Config, parse
from isogloss.core.errors import CheckpointError, ConfigError
from isogloss.core.os_errors import advice
from isogloss.core.tensor_file import write_tensors
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import EditsConfig, dense_tensors, split_rows
from isogloss.encoders.presets import EncoderConfig
from isogloss.hub.families.base import read_json
from isogloss.hub.huggingface import read_safetensors
from isogloss.hub.loaded import Found, Heads, LoadReport

DESCRIPTION = "isogloss.json"
FORMAT = 1


class _Edits(Config):
    sha256: str
    config: EditsConfig


class _Description(Config):
    format: int
    isogloss: str
    sha256: str
    encoder: EncoderConfig
    objective: dict[str, Any] | None
    extra: dict[str, Any]
    edits: _Edits | None = None
    task: dict[str, Any] | None = None


def save_model(
    folder: Path | str,
    encoder: Encoder,
    objective: Heads | None,
    extra: Mapping[str, Any],
    task: Heads | None = None,
) -> None:
    """Write an encoder and the heads of its objective or task; `extra` (JSON) is kept beside them.

    The folder is written beside its place, synced and renamed: a kill leaves the old one or the new one. Raises
    `CheckpointError` where the place holds something else or the disk refuses.
    """
    tensors = {f"encoder.{name}": tensor for name, tensor in dense_tensors(encoder).items()}
    if objective is not None:
        tensors |= {f"objective.{name}": tensor for name, tensor in objective.state_dict().items()}
    if task is not None:
        tensors |= {f"task.{name}": tensor for name, tensor in task.state_dict().items()}
    objective_tree = None if objective is None else objective.config.model_dump(mode="json")
    task_tree = None if task is None else task.config.model_dump(mode="json")
    # What a run protects or freezes belongs to the run, not to the model.
    model_edits = encoder.edits and encoder.edits.model_copy(update={"protected": (), "freeze_shared": False})
    edits = None if model_edits is None else (model_edits, split_rows(encoder))
    write_folder(Path(folder), tensors, encoder.config, objective_tree, extra, edits, task_tree)


def write_folder(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Config,
    objective_tree: Mapping[str, Any] | None,
    extra: Mapping[str, Any],
    edits: tuple[EditsConfig, Mapping[str, Tensor]] | None = None,
    task_tree: Mapping[str, Any] | None = None,
) -> None:
    """Write an isogloss folder from tensors that bear their prefixes (`encoder.`, `objective.`, `task.`) already.

    `edits` are what makes the encoder depend on the language, and the rows of each language.
    """

    def fill(temporary: Path) -> None:
        description = {
            "format": FORMAT,
            "isogloss": __version__,
            "sha256": write_tensors(temporary / "model.safetensors", tensors),
            "encoder": config.model_dump(mode="json"),
            "objective": objective_tree,
            "extra": dict(extra),
        }
        if task_tree is not None:
            description["task"] = dict(task_tree)
        if edits is not None:
            found = write_tensors(temporary / f"{edits[0].kind}.safetensors", edits[1])
            description["edits"] = {"sha256": found, "config": edits[0].model_dump(mode="json")}
        text = json.dumps(description, indent=1, ensure_ascii=False) + "\n"
        (temporary / DESCRIPTION).write_text(text, encoding="utf-8")

    commit_folder(folder, DESCRIPTION, fill)


def commit_folder(folder: Path, mark: str, fill: Any) -> None:
    """Let `fill` write a folder beside its place, bring it to the disk, and rename it into place.

    A folder that is there already is replaced if it holds `mark` (it was written by us) or is empty, otherwise refused.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow a link that the user put there
    if folder.exists() and not (folder.is_dir() and ((folder / mark).exists() or not any(folder.iterdir()))):
        raise CheckpointError(
            f"{folder} exists and holds something else than a model of this kind; choose another folder"
        )
    temporary = folder.parent / f".tmp-{folder.name}-{os.getpid()}"
    retired = folder.parent / f".tmp-old-{folder.name}-{os.getpid()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        fill(temporary)
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        if folder.exists():
            folder.rename(retired)
        temporary.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(retired, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        if retired.exists() and not folder.exists():
            retired.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        # safetensors tells what the system said as text only, and a full disk is what it usually is
        why = advice(error) if isinstance(error, OSError) else f"{error}; free some space, or choose another place"
        raise CheckpointError(f"{folder}: cannot be written: {why}") from None


def read_isogloss(folder: Path) -> Found:
    """Read an isogloss folder; weights that are not those that were saved are a `CheckpointError`."""
    tree = read_json(folder / DESCRIPTION)
    if tree.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / DESCRIPTION}: `format` must be {FORMAT}, but is {tree.get('format')!r}; usually because a newer isogloss wrote "
            "it; try to update"
        )
    try:
        description = parse(_Description, tree, str(folder / DESCRIPTION))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{weights}: absent; usually because the large file was not copied")
    if _sha256(weights) != description.sha256:
        raise CheckpointError(f"{weights}: damaged: its SHA-256 is not the one in {DESCRIPTION}; copy it again")
    tensors = read_safetensors(weights)
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "objective": {}, "task": {}}
    for name, tensor in tensors.items():
        owner, _, rest = name.partition(".")
        if owner not in parts:
            raise CheckpointError(f"{weights}: {name} belongs neither to an encoder nor to an objective or task")
        parts[owner][rest] = tensor
    report = LoadReport("isogloss")
    found = Found(description.encoder, parts["encoder"], parts["objective"], report, description.objective)
    if description.task is not None:
        found.task = (description.task, parts["task"])
    if description.edits is not None:
        rows = folder / f"{description.edits.config.kind}.safetensors"
        if not rows.is_file():
            raise CheckpointError(f"{rows}: absent; usually because only the large file was copied; copy it too")
        if _sha256(rows) != description.edits.sha256:
            raise CheckpointError(f"{rows}: damaged: its SHA-256 is not the one in {DESCRIPTION}; copy it again")
        found.edits = (description.edits.config, read_safetensors(rows))
    return found


def read_extra(folder: Path | str) -> dict[str, Any]:
    """Return what was saved beside the model (`extra` of `save_model`)."""
    extra = read_json(Path(folder) / DESCRIPTION).get("extra", {})
    return extra if isinstance(extra, dict) else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
