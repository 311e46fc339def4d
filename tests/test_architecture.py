"""The levels of docs/architecture.md: a package imports only from a strictly lower one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "isogloss"
LEVELS = {
    "core": 0,
    "nn": 1,
    "corruption": 2,
    "targets": 2,
    "losses": 2,
    "encoders": 2,
    "data": 2,
    "objectives": 3,
    "tasks": 3,
    "hub": 3,
    "training": 4,
    "evaluation": 4,
    "adapt": 5,
    "benchmark": 5,
    "labelling": 5,
    "cli": 6,
}
FILES = sorted(ROOT.rglob("*.py"))


def imported_modules(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.append(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_downward(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    if package not in LEVELS:
        assert package in ("__init__.py", "__main__.py"), f"{package} has no level"
        return
    for module in imported_modules(path):
        if not module.startswith("isogloss."):
            continue
        other = module.split(".")[1]
        assert other == package or LEVELS[other] < LEVELS[package], (
            f"{package} (level {LEVELS[package]}) imports {module}"
        )


def test_torchaudio_is_never_imported() -> None:
    for path in FILES:
        assert not any(module.split(".")[0] == "torchaudio" for module in imported_modules(path)), path
