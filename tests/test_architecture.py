"""The levels of docs/architecture.md: a package imports only from a strictly lower one."""

from __future__ import annotations

import ast
import re
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


def tree_of_docs() -> dict[str, str]:
    """Return what docs/architecture.md writes behind each package, on one line."""
    text = (ROOT.parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = text.split("src/isogloss/\n", 1)[1].split("```", 1)[0]
    found = re.findall(r"^\d (\w+)/ +(.*(?:\n {5,}.*)*)", block, flags=re.MULTILINE)
    return {package: " ".join(names.split()) for package, names in found}


@pytest.mark.parametrize("package", sorted(LEVELS))
def test_the_tree_of_the_docs_names_every_module(package: str) -> None:
    told = tree_of_docs()[package]
    there = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
    plain = re.sub(r"\([^()]*\)", "", told)
    named = set(re.findall(r"(?<![\w/<])[a-z0-9_]+(?![\w/<>])", plain))
    if "one file per" in told or "one short module per" in told:  # plug-ins are what they are called
        there -= {name for name in there if not name.startswith("_")} - named
    elif package == "encoders":
        there -= {name for name in there if re.fullmatch(r"_\w+_presets", name)}
    assert there <= named
    private = {name for name in named if name.startswith("_") and name != "_presets"}
    assert private <= there, "what is named is there"
