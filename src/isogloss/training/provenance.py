"""Where a run comes from: configuration, code, versions, hardware, data; written beside its checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

import isogloss
from isogloss.core import dist
from isogloss.core.threads import usable_cores


def tree_hash(tree: object) -> str:
    """Return the SHA-256 of a tree of plain values, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def describe_run(config_hash: str, manifest_hash: str) -> dict[str, Any]:
    """Return everything that identifies how a run was made (plain values)."""
    return {
        "isogloss": isogloss.__version__,
        "command": sys.argv,
        "config_sha256": config_hash,
        "manifest_sha256": manifest_hash,
        "git": git_state(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": installed_packages(),
        "hardware": hardware(),
        "world_size": dist.world_size(),
        "threads": torch.get_num_threads(),
    }


def hardware() -> dict[str, Any]:
    """Return processors, accelerators and memory."""
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }


@cache
def installed_packages() -> dict[str, str]:
    """Return the version of every installed package."""
    return dict(sorted((d.metadata["Name"], d.version) for d in distributions() if d.metadata["Name"]))


@cache
def git_state(folder: Path) -> dict[str, str] | None:
    """Return the commit and a hash of the uncommitted changes of the code in `folder`; None outside a repository."""

    def git(*arguments: str) -> bytes:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=10).stdout

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # an environment inside another repository is not its code
        commit = git("rev-parse", "HEAD").decode().strip()
        diff = git("diff", "HEAD", "--no-ext-diff", "--no-textconv", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else ""}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
