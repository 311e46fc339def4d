"""A Debian archive in a folder: packages built here, and an `apt-get` and `apt-cache` that know nothing else."""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

_SCRIPT = """#!{python}
import json, os, shutil, sys
archive = {archive!r}
name = os.path.basename(sys.argv[0])
options, words, arguments = [], [], iter(sys.argv[1:])
for argument in arguments:
    if argument == "-o":
        options.append(next(arguments))
    elif not argument.startswith("-"):
        words.append(argument)
with open(os.path.join(archive, "calls"), "a") as log:
    log.write(json.dumps([name, options, words]) + "\\n")
private = [o.split("=", 1)[1] for o in options if o.startswith("Dir::State::Lists=")]
lists = private[0] if private else os.path.join(archive, "system-lists")
index = os.path.join(lists, "index.json")
if words[0] == "update":
    if os.path.exists(os.path.join(archive, "unreachable")):
        print("Err http://mirror.example.org/debian  could not connect", file=sys.stderr)
        sys.exit(100)
    shutil.copy(os.path.join(archive, "index.json"), index)
    sys.exit(0)
known = json.load(open(index)) if os.path.exists(index) else {{}}
if words[0] == "show":
    missing = [word for word in words[1:] if word not in known]
    for word in words[1:]:
        if word in known:
            print("\\n".join(f"{{k}}: {{v}}" for k, v in known[word].items()), end="\\n\\n")
    sys.exit(100 if missing else 0)
if words[0] == "download":
    if os.path.exists(os.path.join(archive, "unreachable")):
        sys.exit(100)
    for word in words[1:]:
        package, _, version = word.partition("=")
        source = os.path.join(archive, package + "_" + version.replace(":", "%3a") + "_all.deb")
        if not os.path.exists(source):
            sys.exit(100)
        shutil.copy(source, ".")
    sys.exit(0)
sys.exit(1)
"""


class FakeArchive:
    """Packages in `folder`, and the programs that serve them in `folder/bin` (to be put first on PATH)."""

    def __init__(self, folder: Path, *, has_system_lists: bool = True) -> None:
        self.folder = folder
        self.index: dict[str, dict[str, str]] = {}
        self.has_system_lists = has_system_lists
        (folder / "system-lists").mkdir(parents=True)
        (folder / "bin").mkdir()
        for program in ("apt-get", "apt-cache"):
            path = folder / "bin" / program
            path.write_text(_SCRIPT.format(python=sys.executable, archive=str(folder)))
            path.chmod(0o755)

    @property
    def path(self) -> str:
        """Value for the environment variable PATH."""
        return f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def add(self, name: str, files: Mapping[str, bytes], version: str = "1.0-1") -> Path:
        """Build a package and list it."""
        path = self.folder / f"{name}_{version.replace(':', '%3a')}_all.deb"
        path.write_bytes(build_deb({f"./{member}": data for member, data in files.items()}))
        data = path.read_bytes()
        self.index[name] = {
            "Package": name,
            "Version": version,
            "Architecture": "all",
            "Size": str(len(data)),
            "SHA256": hashlib.sha256(data).hexdigest(),
            "Description": "recordings",
        }
        self.publish()
        return path

    def publish(self) -> None:
        """Write the index that `update` fetches, and the machine's lists where it has any."""
        import json

        (self.folder / "index.json").write_text(json.dumps(self.index))
        if self.has_system_lists:
            (self.folder / "system-lists/index.json").write_text(json.dumps(self.index))

    def disconnect(self) -> None:
        """Make the archive unreachable."""
        (self.folder / "unreachable").touch()

    def calls(self) -> list[list[object]]:
        """Return [program, options, words] of every call so far."""
        import json

        log = self.folder / "calls"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def build_deb(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    """Build a package: ar of debian-binary, control.tar.xz and data.tar.xz; links come before the files."""
    control = _tar(
        {"./control": b"Package: fake\nVersion: 1.0\nArchitecture: all\nMaintainer: a\nDescription: b\n"}, {}
    )
    members = [("debian-binary", b"2.0\n"), ("control.tar.xz", lzma.compress(control))]
    members.append(("data.tar.xz", lzma.compress(_tar(files, links or {}))))
    ar = b"!<arch>\n"
    for name, data in members:
        ar += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return ar


def _tar(files: Mapping[str, bytes], links: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.SYMTYPE
            info.linkname = target
            archive.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
