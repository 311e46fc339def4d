"""The folder of a run: who may write to it, from where it continues, what it must agree with, and what it leaves."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from isogloss.core import dist
from isogloss.core.config import to_toml
from isogloss.core.errors import CheckpointError, ConfigError, DataError
from isogloss.core.files import write_whole
from isogloss.training.checkpoint import Checkpoints, read_state
from isogloss.training.job import Job
from isogloss.training.logging import RunLog
from isogloss.training.parallel import on_main
from isogloss.training.provenance import describe_run, tree_hash
from isogloss.training.recipe import differences

Resume = Literal["auto", "never", "must"]


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold the folder for this job: a requeued job must not write beside one that is still alive."""

    def lock() -> None:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            held.append((run_dir / "lock").open("w"))
        except OSError as error:
            raise ConfigError(f"{run_dir}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(held[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{run_dir}: another process trains there; wait for it, or choose another folder"
            ) from None
        except OSError:
            pass  # a file system without locks: nothing to hold

    held: list[Any] = []
    try:
        on_main(lock)
        yield
    finally:
        for file in held:
            file.close()


def prepare_run(job: Job, run_dir: Path, log: RunLog, resume: Resume, *, allow_data_change: bool) -> Path | None:
    """Return the checkpoint to continue from, None for a new run; write where the run comes from. Rank 0 only.

    Raises `CheckpointError` where none is whole, `ConfigError` and `DataError` where the run was begun differently.
    """
    checkpoints = Checkpoints(run_dir, job.training.keep)
    for orphan in checkpoints.sweep():
        log.say("warning", 0, f"removed {orphan.name}, which a killed process left behind")
    if resume == "never" and checkpoints.steps():
        raise ConfigError(f"{run_dir} holds a run already; continue it with `--resume auto`, or choose another folder")
    folder = checkpoints.newest_good(lambda message: log.say("warning", 0, message))
    provenance = describe_run(tree_hash(job.config), job.manifest)
    if folder is None:
        if resume == "must":
            raise CheckpointError(f"{run_dir} has no checkpoint to resume from; start it without `--resume must`")
        (run_dir / "config.toml").write_text(to_toml(job.config), encoding="utf-8")
        _write_json(run_dir / "provenance.json", provenance)
        if job.start is not None:
            _write_json(run_dir / "start.json", job.start.tree())
            for line in job.start.lines():
                log.say("start", 0, line)
        return None
    state = read_state(folder)
    _check_same(state, job, allow_data_change)
    log.say("resume", state["step"], f"continues from {folder}")
    for key, now in (("world_size", dist.world_size()), ("threads", torch.get_num_threads())):
        if state[key] != now:
            log.say("warning", state["step"], f"{key} was {state[key]} and is {now}: results agree only up to rounding")
    _write_json(run_dir / f"provenance_resumed_{state['step']:08d}.json", provenance)
    return folder


def write_model(job: Job, checkpoints: Checkpoints, model_dir: Path, step: int) -> None:
    """Write the model from a step's checkpoint, the same way however the run was sharded. Rank 0 only.

    `CheckpointError` where it is absent or damaged: an older one than the newest has not been looked at since it was saved.
    """
    fault = checkpoints.verify(step)
    if fault is not None:
        raise CheckpointError(
            f"the model is that of update {step}, but {fault}; restore that checkpoint, or train again in another folder"
        )
    learner = job.build()
    learner.load_state_dict(load_file(checkpoints.path(step) / "model.safetensors"))
    provenance = describe_run(tree_hash(job.config), job.manifest)
    job.save(learner, model_dir, {"step": step, "config": job.config, "provenance": provenance})


def _check_same(state: dict[str, Any], job: Job, allow_data_change: bool) -> None:
    changes = differences(state["config"], job.config)
    if allow_data_change:
        changes = [change for change in changes if not change.startswith("`data.")]
    if changes:
        raise ConfigError(
            f"the run was begun with another configuration: {', '.join(changes)}; resume with the old one, or start a new run in "
            "another folder"
        )
    if allow_data_change:
        return
    if state["manifest"] != job.manifest:
        raise DataError(
            f"the corpus has changed since the run was begun (manifest {state['manifest'][:12]}, now {job.manifest[:12]}); use the old "
            "one, or pass --allow-data-change to go on with the new one"
        )
    if state["plan_multiple"] != job.plan_multiple:
        raise DataError(
            f"the run was begun by {state['world_size']} processes and is now {dist.world_size()}: updates are divided into a multiple of "
            f"{job.plan_multiple} bins instead of {state['plan_multiple']}, so they would differ; use the old number, or pass "
            "--allow-data-change (`data.bins_multiple_of` keeps several numbers of processes possible)"
        )


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    write_whole(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
