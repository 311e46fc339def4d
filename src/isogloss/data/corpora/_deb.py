"""Unpack a Debian package without trusting it: regular files only, the wanted ones only, nothing outside the folder."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from isogloss.core.errors import DataError

_MAX_FILE_BYTES = 1 << 28
_MAX_TOTAL_BYTES = 1 << 32


def unpack(package: Path, folder: Path, wanted: Callable[[str], bool]) -> int:
    """Write the wanted regular files of a `.deb` below `folder` and return how many there were.

    Links and devices are never made, so no path can lead out of the folder. A member with an absolute path or `..`, a
    damaged archive, or one that grows beyond 4 GiB is a `DataError`. `dpkg-deb` undoes the outer layers (ar, xz or zstd).
    """
    tool = shutil.which("dpkg-deb")
    if tool is None:
        raise DataError(
            "`dpkg-deb` is not on this machine, and Debian packages cannot be unpacked without it; install dpkg"
        )
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [tool, "--fsys-tarfile", str(package.resolve())], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            count = _extract(archive, folder, wanted, package.name)
        process.stdout.read()  # dpkg-deb pads its output; closing the pipe early would make it fail
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{package.name}: cannot be unpacked: {error}; it is damaged, delete it and try again"
        ) from None
    finally:
        process.stdout.close()
        process.terminate()
        status = process.wait()
    if status > 0:
        raise DataError(f"{package.name}: not a Debian package, or cut short; delete it and try again")
    return count


def _extract(archive: tarfile.TarFile, folder: Path, wanted: Callable[[str], bool], package: str) -> int:
    count = 0
    total = 0
    for member in archive:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\\" in member.name:
            raise DataError(
                f"{package}: holds a file named {member.name!r}, outside of the package; it is not unpacked"
            )
        if not member.isreg() or not wanted(path.as_posix()):
            continue
        total += member.size
        if member.size > _MAX_FILE_BYTES or total > _MAX_TOTAL_BYTES:
            raise DataError(f"{package}: {member.name!r} makes it larger than recordings are; it is not unpacked")
        stream = archive.extractfile(member)
        assert stream is not None  # a regular file has contents
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # Written here and not by `extract`: its safe filter is absent from the Python of Debian 12 (3.11.2), and owners, modes
        # and times are not wanted anyway.
        with stream, target.open("wb") as file:
            shutil.copyfileobj(stream, file)
        count += 1
    return count
