"""What may not stand in the source: ways to run or unpickle what comes from outside (one reviewed module each is excepted)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "isogloss"
FILES = sorted(SOURCE.rglob("*.py"))

# called name → why not
CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "compile": "prepares text to be run",
    "__import__": "imports by a name from outside",
    "os.system": "a shell",
    "os.popen": "a shell",
    "pickle.load": "constructs anything",
    "pickle.loads": "constructs anything",
    "joblib.load": "is pickle",
    "dill.load": "is pickle",
    "marshal.loads": "runs code",
    "shelve.open": "is pickle",
    "yaml.load": "constructs anything",
    "yaml.unsafe_load": "constructs anything",
    "numpy.load": "may unpickle",
    "torch.hub.load": "runs code of a repository",
    "tempfile.mktemp": "races",
}
MODULES = {"joblib", "dill", "cloudpickle", "shelve", "marshal", "yaml", "torchaudio"}
KEYWORDS = {("weights_only", False), ("trust_remote_code", True), ("shell", True), ("allow_pickle", True)}
# module → the names that it may use, since it was read for it
REVIEWED: dict[str, frozenset[str]] = {
    # a restricted unpickler must be derived from the real one; it can construct nothing but tensors and plain containers
    "hub/unpickle.py": frozenset({"pickle"}),
}


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _full(name: str, aliases: dict[str, str]) -> str:
    head, dot, rest = name.partition(".")
    return aliases.get(head, head) + dot + rest


def find_banned(text: str) -> list[str]:
    """Return what is banned in a source text, with line numbers."""
    tree = ast.parse(text)
    aliases: dict[str, str] = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
                if alias.name.partition(".")[0] in MODULES | {"pickle"}:
                    found.append(f"{node.lineno}: import {alias.name.partition('.')[0]}")
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            if (node.module or "").partition(".")[0] in MODULES | {"pickle"}:
                found.append(f"{node.lineno}: import {(node.module or '').partition('.')[0]}")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _full(_name(node.func), aliases)
        keywords = {k.arg: k.value.value for k in node.keywords if k.arg and isinstance(k.value, ast.Constant)}
        if name in CALLS and not (name == "numpy.load" and keywords.get("allow_pickle") is False):
            found.append(f"{node.lineno}: {name}")
        if name == "torch.load" and keywords.get("weights_only") is not True:
            found.append(f"{node.lineno}: torch.load without weights_only=True")
        if name.endswith((".extractall", ".extract")) and keywords.get("filter") != "data":
            found.append(f"{node.lineno}: {name} without filter='data'")
        if name.endswith(("Recording.from_file", "safe_extract")):
            found.append(f"{node.lineno}: {name}")
        found += [f"{node.lineno}: {key}={value}" for key, value in keywords.items() if (key, value) in KEYWORDS]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_source_has_nothing_banned(path: Path) -> None:
    allowed = REVIEWED.get(path.relative_to(SOURCE).as_posix(), frozenset())
    found = [
        item for item in find_banned(path.read_text(encoding="utf-8")) if not any(name in item for name in allowed)
    ]
    assert not found, f"{path}: {found}"


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import Unpickler",
        "eval('1')",
        "import os\nos.system('x')",
        "from os import system as s\ns('x')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "from torch import load\nload('x')",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import yaml",
        "import tarfile\ntarfile.open('x').extractall('y')",
        "archive.extractall('y')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "from lhotse import Recording\nRecording.from_file('x')",
        "import torchaudio",
    ],
)
def test_the_list_finds_what_it_bans(text: str) -> None:
    assert find_banned(text)


def test_the_list_lets_the_safe_forms_pass() -> None:
    assert not find_banned(
        "import torch, numpy as np, subprocess\n"
        "torch.load('x', weights_only=True)\nnp.load('x', allow_pickle=False)\nsubprocess.run(['x'])\n"
        "archive.extractall('y', filter='data')\nmodel.eval()\nre.compile('x')\n"
    )


def test_recipes_and_styles_name_no_machine() -> None:
    for path in sorted(SOURCE.rglob("*.toml")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?m)^\s*_target_\s*=", text), path
