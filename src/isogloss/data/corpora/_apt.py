"""Ask apt for packages without being root: the machine's own lists where there are any, else private ones."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from isogloss.core.errors import DataError

_UPDATE_SECONDS = 180
_DOWNLOAD_SECONDS = 1200
_COMMON = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20"]


@dataclass(frozen=True)
class Package:
    """A package that can be had: from the archive (`sha256` is known), or, without one, from the cache alone."""

    name: str
    version: str
    size_bytes: int
    sha256: str | None
    file_name: str
    is_cached: bool

    @property
    def megabytes(self) -> float:
        """Size of the download in 10⁶ bytes."""
        return self.size_bytes / 1e6


class Apt:
    """Finds and downloads packages into a folder of the user's.

    Nothing that apt prints is passed on: it holds the addresses of the user's mirrors.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache or default_cache()
        self._private: list[str] = []
        self._has_updated = False

    def find(self, names: list[str]) -> dict[str, Package]:
        """Return the packages that apt, or failing that the cache, has; the others are absent from the result.

        Raises `DataError` if not one of them can be had.
        """
        found = self._ask(names)
        if not found and self._update():
            found = self._ask(names)
        for name in names:
            if name not in found and (cached := self._newest_cached(name)) is not None:
                found[name] = cached
        if not found:
            raise DataError(_why_not(self._has_updated))
        return found

    def fetch(self, packages: list[Package], progress: Callable[[int], None] | None = None) -> dict[str, Path]:
        """Return {name: path in the cache}, downloading what is not there yet; `progress` is told the bytes so far."""
        self._download([package for package in packages if not package.is_cached], progress)
        missing = [package for package in packages if not (self.cache / package.file_name).is_file()]
        if missing and self._update():
            # The lists were older than the archive: some packages have a newer version by now.
            newer = self._ask([package.name for package in missing])
            self._download([package for package in newer.values() if not package.is_cached], progress)
            packages = [newer.get(package.name, package) if package in missing else package for package in packages]
        paths = {package.name: self.cache / package.file_name for package in packages}
        absent = [name for name, path in paths.items() if not path.is_file()]
        if absent:
            raise DataError(
                f"`{absent[0]}` cannot be downloaded; usually because the archive cannot be reached; "
                "try again, or use `isogloss corpus synthesize`"
            )
        return paths

    def _ask(self, names: list[str]) -> dict[str, Package]:
        if shutil.which("apt-cache") is None or shutil.which("apt-get") is None:
            return {}
        command = ["apt-cache", *self._private, "show", "--no-all-versions", *names]
        # apt-cache exits non-zero if only one of the names is unknown, and still shows the others.
        shown = _run(command, 60)
        found: dict[str, Package] = {}
        for stanza in shown.split("\n\n"):
            fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[0] != " ")
            if fields.get("Package") in names and {"Version", "Size", "SHA256"} <= fields.keys():
                found.setdefault(fields["Package"], self._package(fields))
        return found

    def _package(self, fields: dict[str, str]) -> Package:
        version = fields["Version"].replace(":", "%3a").replace("/", "_")
        file_name = f"{fields['Package']}_{version}_{fields.get('Architecture', 'all')}.deb"
        size = int(fields["Size"])
        path = self.cache / file_name
        is_cached = path.is_file() and path.stat().st_size == size and _sha256(path) == fields["SHA256"]
        return Package(fields["Package"], fields["Version"], size, fields["SHA256"], file_name, is_cached)

    def _newest_cached(self, name: str) -> Package | None:
        paths = sorted(self.cache.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
        if not paths:
            return None
        version = paths[-1].name.split("_")[1].replace("%3a", ":")
        return Package(name, version, paths[-1].stat().st_size, None, paths[-1].name, is_cached=True)

    def _update(self) -> bool:
        """Fetch apt's lists into private folders; False if that was done before or cannot be done."""
        if self._has_updated or shutil.which("apt-get") is None:
            return False
        self._has_updated = True
        state = self.cache / "apt"
        for folder in ("lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        self._private = [
            *("-o", f"Dir::State::Lists={state / 'lists'}"),
            *("-o", f"Dir::Cache={state / 'cache'}"),
            *("-o", "Acquire::Languages=none"),
        ]
        if os.geteuid() == 0:
            # Root's apt downloads as the user `_apt`, who cannot enter a folder in root's home.
            self._private += ["-o", "APT::Sandbox::User=root"]
        _run(["apt-get", *self._private, *_COMMON, "update"], _UPDATE_SECONDS)
        return True

    def _download(self, packages: list[Package], progress: Callable[[int], None] | None) -> None:
        """Bring packages into the cache: those that arrive whole, whatever becomes of the others."""
        if not packages:
            return
        self.cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.cache, prefix="fetch-") as name:
            folder = Path(name)
            sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 and not self._private else []
            wanted = [f"{package.name}={package.version}" for package in packages]
            # One call for all: apt takes seconds to read its lists.
            process = subprocess.Popen(
                ["apt-get", *self._private, *sandbox, *_COMMON, "download", *wanted],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
            )
            try:
                _wait(process, folder, sum(package.size_bytes for package in packages), progress)
            finally:
                process.kill()
                process.wait()
            arrived = {_sha256(path): path for path in folder.glob("*.deb")}
            for package in packages:
                if package.sha256 in arrived:
                    arrived[package.sha256].replace(self.cache / package.file_name)


def _wait(process: subprocess.Popen[bytes], folder: Path, total: int, progress: Callable[[int], None] | None) -> None:
    deadline = time.monotonic() + _DOWNLOAD_SECONDS
    while time.monotonic() < deadline:
        try:
            process.wait(timeout=0.2)
            return
        except subprocess.TimeoutExpired:
            if progress is not None:
                progress(min(total, _size(folder)))


def default_cache() -> Path:
    """Return `$XDG_CACHE_HOME/isogloss/debian`, by default below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "isogloss" / "debian"


def _why_not(has_updated: bool) -> str:
    if has_updated:
        return (
            "Debian's recordings cannot be had: apt reaches no archive that holds them; usually because there is no network; "
            "try again with one, or use `isogloss corpus synthesize`"
        )
    return (
        "Debian's recordings need `apt-get`, which is not on this machine; usually because it is no Debian; "
        "try `isogloss corpus synthesize`"
    )


def _run(command: list[str], seconds: float) -> str:
    try:
        result = subprocess.run(command, capture_output=True, timeout=seconds, check=False, env=_environment())
    except (subprocess.TimeoutExpired, OSError):
        return ""
    return result.stdout.decode("utf-8", errors="replace")


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # apt renamed it between the two calls
            continue
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
