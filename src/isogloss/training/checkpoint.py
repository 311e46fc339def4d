"""Checkpoints that are whole or absent: written beside their place, synced, renamed, verified when they are read.

    RUN/checkpoints/step_00000100/model.safetensors       every parameter and buffer, unsharded
                                  optimizer.safetensors   NAME/exp_avg, NAME/exp_avg_sq, NAME/step
                                  state.json              step, loader state, fingerprints, running averages
                                  hashes.json             format version and the SHA-256 of each file
    RUN/checkpoints/LATEST                                name of the newest, for people and scripts

A folder is renamed into place after all of it has reached the disk, so a kill leaves an older checkpoint or a newer one and
never half of one. Tensors are stored whole, so a run continues under any parallelism, and nothing is pickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from isogloss.core.dist import copy_into, full_tensor
from isogloss.core.errors import CheckpointError
from isogloss.core.tensor_file import write_tensors

FORMAT = 1
FREE_SPACE_FACTOR = 2.2  # the new checkpoint, and room for whatever else writes meanwhile
_FILES = ("model.safetensors", "optimizer.safetensors", "state.json")

Tensors = dict[str, Tensor]


def gather_tensors(learner: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool) -> tuple[Tensors, Tensors]:
    """Return the learner's and the optimizer's tensors, whole and on the CPU; those that are there already are not copied.

    Every rank must call it; ranks with `keep` False take part in the gathering and hold nothing. Write them before the next
    update changes them.
    """
    model: Tensors = {}
    for name, tensor in learner.state_dict().items():
        whole = full_tensor(tensor)
        if keep:
            model[name] = whole.detach().cpu()
    moments: Tensors = {}
    for name, parameter in learner.named_parameters():
        for key, tensor in sorted(optimizer.state.get(parameter, {}).items()):
            whole = full_tensor(tensor)
            if keep:
                moments[f"{name}/{key}"] = whole.detach().cpu()
    return model, moments


def load_tensors(folder: Path, learner: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Copy a checkpoint's tensors into a learner and its optimizer, sharded or not.

    Raises `CheckpointError` where a name is missing or unknown, or a shape differs.
    """
    targets = dict(learner.state_dict())
    parameters = dict(learner.named_parameters())
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        _same_names(folder / "model.safetensors", set(targets), set(file.keys()))
        for name, target in targets.items():
            _copy_checked(folder, name, target, file.get_tensor(name))
    with safe_open(folder / "optimizer.safetensors", framework="pt") as file:
        stored = list(file.keys())
        trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
        _same_names(folder / "optimizer.safetensors", trained, {name.rpartition("/")[0] for name in stored})
        for name in stored:
            owner, _, key = name.rpartition("/")
            value, parameter = file.get_tensor(name), parameters[owner]
            if value.dim() == 0 and parameter.dim() != 0:
                optimizer.state[parameter][key] = value.to(parameter.device)
                continue
            optimizer.state[parameter][key] = torch.zeros_like(parameter, requires_grad=False)
            _copy_checked(folder, name, optimizer.state[parameter][key], value)


class Checkpoints:
    """The checkpoints of one run: save, find the newest good one, forget all but the `keep` newest and the spared. One process writes."""

    def __init__(self, run_dir: Path, keep: int = 3) -> None:
        self.folder = run_dir / "checkpoints"
        self.keep = keep

    def path(self, step: int) -> Path:
        """Return the place of a step's checkpoint."""
        return self.folder / f"step_{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        found = (path.name.removeprefix("step_") for path in self.folder.glob("step_*"))
        return sorted(int(number) for number in found if number.isdecimal())

    def sweep(self) -> list[Path]:
        """Remove what a killed process left half written or half removed, and name it."""
        orphans = sorted(self.folder.glob(".tmp-*"))
        for orphan in orphans:
            shutil.rmtree(orphan) if orphan.is_dir() else orphan.unlink()
        return orphans

    def save(
        self, step: int, model: Tensors, moments: Tensors, state: Mapping[str, Any], *, spare: Collection[int] = ()
    ) -> Path:
        """Commit a checkpoint; `CheckpointError` where the disk refuses it (the older ones are untouched).

        Those of the steps in `spare` are kept however old they are.
        """
        target, temporary = self.path(step), self.folder / f".tmp-save-{os.getpid()}-{step:08d}"
        if target.exists():
            return target
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._need_space(sum(t.nbytes for t in (*model.values(), *moments.values())))
            temporary.mkdir()
            hashes = _write_files(temporary, model, moments, json.dumps(state))
            _write_text(temporary / "hashes.json", _hashes_text(hashes))
            _sync(temporary)
            temporary.rename(target)
            _sync(self.folder)
            self._point_to(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(f"{target}: could not be saved: {error}") from None
        self._forget(spare)
        return target

    def verify(self, step: int) -> str | None:
        """Return what is wrong with a checkpoint, naming the file; None where every byte is as it was written."""
        folder = self.path(step)
        try:
            text = (folder / "hashes.json").read_text(encoding="utf-8")
            stored = json.loads(text)
            if not isinstance(stored, dict) or stored.get("format") != FORMAT:
                return f"{folder / 'hashes.json'} has a format that this isogloss does not know (it knows {FORMAT})"
            hashes = _hash_files(folder)
            if text != _hashes_text(hashes):
                recorded = stored.get("sha256")
                recorded = recorded if isinstance(recorded, dict) else {}
                bad = [name for name in _FILES if recorded.get(name) != hashes[name]]
                return (
                    ", ".join(str(folder / name) for name in bad or ["hashes.json"]) + " has changed since it was saved"
                )
        except (OSError, ValueError, RecursionError) as error:
            return f"{folder} cannot be read: {error}"
        return None

    def newest_good(self, say: Callable[[str], None]) -> Path | None:
        """Return the newest checkpoint whose hashes agree, None where there is none at all.

        A damaged one is named through `say` and set aside (`step_….damaged`). `CheckpointError` where all are damaged.
        """
        steps = self.steps()
        faults = []
        for step in reversed(steps):
            fault = self.verify(step)
            if fault is None:
                return self.path(step)
            faults.append(fault)
            say(f"damaged checkpoint: {fault}; trying an older one")
            self._set_aside(self.path(step))
        if faults:
            raise CheckpointError(
                f"none of the {len(faults)} checkpoints in {self.folder} is whole: {faults[0]}; usually because of a bad "
                "disk or a copy that was cut short; restore one from elsewhere, or start in a new folder"
            )
        return None

    def _need_space(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        needed = int(FREE_SPACE_FACTOR * num_bytes)
        if free < needed:
            raise OSError(
                f"needs {needed / 1e9:.2f} GB free ({FREE_SPACE_FACTOR} times its size), but {free / 1e9:.2f} GB are free"
            )

    def _point_to(self, target: Path) -> None:
        temporary = self.folder / f".tmp-latest-{os.getpid()}"
        _write_text(temporary, target.name + "\n")
        temporary.replace(self.folder / "LATEST")
        _sync(self.folder)

    def _forget(self, spare: Collection[int]) -> None:
        for step in self.steps()[: -self.keep]:
            if step in spare:
                continue
            # Renamed first: a kill in the middle of the removal must not leave something that looks like a checkpoint.
            doomed = self.folder / f".tmp-old-{step:08d}"
            with contextlib.suppress(OSError):
                self.path(step).rename(doomed)
                shutil.rmtree(doomed)

    def _set_aside(self, folder: Path) -> None:
        aside = folder.with_name(folder.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rename(aside)


def read_state(folder: Path) -> dict[str, Any]:
    """Read a verified checkpoint's `state.json`."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    return state


def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of a tensor that holds NaN or infinity, None where all are finite."""
    for name, tensor in tensors.items():
        # A finite sum has finite terms; one that is not may only have overflowed. Looking at each number takes ten times as long.
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all()):
            return name
    return None


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names, types, shapes and bits: equal if and only if the weights are."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _copy_checked(folder: Path, name: str, target: Tensor, value: Tensor) -> None:
    if target.shape != value.shape:
        raise CheckpointError(
            f"{folder}: `{name}` must have shape {tuple(target.shape)}, but has {tuple(value.shape)}; it was made for another model"
        )
    copy_into(target, value)


def _same_names(file: Path, expected: set[str], found: set[str]) -> None:
    if expected != found:
        missing, unknown = sorted(expected - found), sorted(found - expected)
        raise CheckpointError(
            f"{file} was made for another model: missing are {missing[:5] or 'none'}, unknown are {unknown[:5] or 'none'}"
        )


def _write_files(folder: Path, model: Tensors, moments: Tensors, state: str) -> dict[str, str]:
    """Write and sync the files of a checkpoint, and return the SHA-256 of each; the large two side by side."""
    with ThreadPoolExecutor(2) as pool:  # hashing, writing and syncing leave Python's lock
        large = pool.map(
            write_tensors, (folder / "model.safetensors", folder / "optimizer.safetensors"), (model, moments)
        )
        _write_text(folder / "state.json", state)
        hashes = [*large, hashlib.sha256(state.encode()).hexdigest()]
    return dict(zip(_FILES, hashes, strict=True))


def _hash_files(folder: Path) -> dict[str, str]:
    def sha256(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(len(_FILES)) as pool:  # hashing leaves Python's lock
        return dict(zip(_FILES, pool.map(sha256, _FILES), strict=True))


def _hashes_text(hashes: Mapping[str, str]) -> str:
    return json.dumps({"format": FORMAT, "sha256": dict(hashes)}, indent=1) + "\n"


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
