"""Write a corpus as shards in the Lhotse Shar format: few large files instead of many small ones, 16 kHz mono.

lhotse opens them (`CutSet.from_shar`), and so does our index, which reads any utterance of a shard by its place.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording
from lhotse.utils import fastcopy
from numpy.typing import NDArray

from isogloss.core.errors import ConfigError, DataError
from isogloss.data._index_files import hash_id
from isogloss.data.audio import read_audio, sha256_of_samples
from isogloss.data.folders import folder_of_cut
from isogloss.data.index import CorpusIndex
from isogloss.data.streams import SAMPLE_RATE

AudioFormat = Literal["flac", "opus"]
_CODINGS = {"flac": ("FLAC", "PCM_16"), "opus": ("OGG", "OPUS")}


@dataclass(frozen=True)
class ShardReport:
    """What was written: folder, shards, utterances, seconds; `rejected` names what could not be read, with the reason."""

    folder: Path
    num_shards: int
    num_cuts: int
    seconds: float
    rejected: list[tuple[str, str]] = field(default_factory=list)


def shard(
    cuts: Iterable[MonoCut],
    folder: Path | str,
    *,
    shard_size: int = 1000,
    audio_format: AudioFormat = "flac",
    progress: Callable[[int, int | None], None] | None = None,
) -> ShardReport:
    """Write cuts (streamed) to a new Shar folder of `shard_size` cuts a shard, and index it.

    FLAC (16 bit) keeps what 16-bit recordings hold; Opus takes about a fifth of the space. The folder appears whole or not
    at all. `progress(done, total)` is called after each cut, with total None where `cuts` has no length. Unreadable recordings
    are left out and named in the report. Errors: `ConfigError` for impossible options, `DataError` where `folder` exists,
    an id is repeated or cannot name a file, or nothing could be read.
    """
    if shard_size < 1:
        raise ConfigError(f"`shard_size` must be at least 1 cut, but is {shard_size}")
    if audio_format not in _CODINGS:
        raise ConfigError(f"`audio_format` must be flac or opus, but is {audio_format!r}")
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: exists and is not empty; choose a new folder, shards are never overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    has_length = isinstance(cuts, list | tuple) or (isinstance(cuts, CutSet) and not cuts.is_lazy)
    total = len(cuts) if has_length else None  # type: ignore[arg-type]
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    writer = _Writer(staging, shard_size, audio_format)
    try:
        for done, cut in enumerate(cuts, 1):
            writer.add(cut)
            if progress is not None:
                progress(done, total)
        writer.close()
        if not writer.num_cuts:
            reason = f", first {writer.rejected[0][0]}: {writer.rejected[0][1]}" if writer.rejected else ""
            raise DataError(f"none of {len(writer.rejected)} cuts could be written to shards{reason}")
        staging.replace(folder)
    finally:
        writer.abandon()
        shutil.rmtree(staging, ignore_errors=True)
    CorpusIndex.open(folder)
    return ShardReport(folder, writer.num_shards, writer.num_cuts, writer.num_samples / SAMPLE_RATE, writer.rejected)


class _Writer:
    """The shard that is being written, and what was written before it."""

    def __init__(self, folder: Path, shard_size: int, audio_format: AudioFormat) -> None:
        self._folder, self._shard_size, self._format = folder, shard_size, audio_format
        self._archive: tarfile.TarFile | None = None
        self._lines: list[bytes] = []
        self._seen: set[int] = set()
        self.num_shards = self.num_cuts = self.num_samples = 0
        self.rejected: list[tuple[str, str]] = []

    def add(self, cut: MonoCut) -> None:
        """Append a cut with its audio."""
        self._check_id(cut.id)
        try:
            samples = read_audio(cut, sample_rate=SAMPLE_RATE)
        except (DataError, OSError) as error:
            self.rejected.append((cut.id, str(error)))
            return
        data = _encode(samples, self._format)
        recording = Recording(
            id=cut.recording.id,
            sources=[AudioSource(type="shar", channels=[0], source="")],
            sampling_rate=SAMPLE_RATE,
            num_samples=len(samples),
            duration=len(samples) / SAMPLE_RATE,
            channel_ids=[0],
        )
        custom = dict(cut.custom or {})
        if (place := folder_of_cut(cut)) is not None:  # a label of dialects, which a shard's members have no place for
            custom["folder"] = place
        if "sha256" in custom:  # it is of the decoded samples, and those are others now
            custom["sha256"] = sha256_of_samples(read_audio(data, sample_rate=SAMPLE_RATE))
        written = fastcopy(
            cut,
            start=0.0,
            duration=recording.duration,
            channel=0,
            recording=recording,
            features=None,
            custom=custom or None,
        )
        archive = self._open()
        _add_member(archive, f"{cut.id}.{self._format}", data)
        _add_member(archive, f"{cut.id}.json", json.dumps(recording.to_dict()).encode())
        self._lines.append(json.dumps(written.to_dict()).encode())
        self.num_cuts += 1
        self.num_samples += len(samples)
        if len(self._lines) == self._shard_size:
            self.close()

    def close(self) -> None:
        """Finish the shard that is open, if any."""
        if self._archive is None:
            return
        self._archive.close()
        self._archive = None
        number = f"{self.num_shards:06d}"
        with (self._folder / f"cuts.{number}.jsonl.gz").open("wb") as raw:
            with gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as stream:
                stream.writelines(line + b"\n" for line in self._lines)
            raw.flush()
            os.fsync(raw.fileno())
        with (self._folder / f"recording.{number}.tar").open("rb") as written:
            os.fsync(written.fileno())
        self._lines = []
        self.num_shards += 1

    def abandon(self) -> None:
        """Let go of a shard that was not finished."""
        if self._archive is not None:
            self._archive.close()

    def _open(self) -> tarfile.TarFile:
        if self._archive is None:
            path = self._folder / f"recording.{self.num_shards:06d}.tar"
            # one shard outlives many cuts
            self._archive = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
        return self._archive

    def _check_id(self, name: str) -> None:
        path = Path(name)
        if path.is_absolute() or str(path) != name or ".." in path.parts or "\0" in name:
            raise DataError(
                f"the id {name!r} cannot name a member of a shard; use ids without leading `/`, `..` or `//`"
            )
        if (hashed := hash_id(name)) in self._seen:
            raise DataError(f"two cuts have the id {name!r}; ids must be unique")
        self._seen.add(hashed)


def _encode(samples: NDArray[np.float32], audio_format: AudioFormat) -> bytes:
    container, coding = _CODINGS[audio_format]
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", SAMPLE_RATE, 1, subtype=coding, format=container) as file:
        # libsndfile encodes Opus with buffers on its stack: a long recording in one call overflows them
        for first in range(0, len(samples), SAMPLE_RATE):
            file.write(np.clip(samples[first : first + SAMPLE_RATE], -1.0, 1.0))
    return stream.getvalue()


def _add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
