"""Unit labels of a corpus (clusters, codes, phones by frame): written once, mapped, and cropped with the audio."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isogloss.core.errors import DataError
from isogloss.core.lengths import ConvGeometry, trim_to_shortest
from isogloss.data._index_files import hash_id


class UnitTable:
    """Labels by utterance id, one per frame of `hop` samples (at 16 kHz), as memory-mapped arrays.

    The label rate is never typed: `hop` comes from the geometry of the encoder whose frames were labelled.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            header = json.loads((self.folder / "units.json").read_text(encoding="utf-8"))
            self.hop, self.num_units = int(header["hop"]), int(header["num_units"])
            count, total = int(header["num_utterances"]), int(header["num_labels"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.folder}: not a table of units ({error}); `isogloss label` writes one") from None
        self._ids: NDArray[np.uint64] = self._map("id_hash", "<u8", count)
        self._offsets: NDArray[np.int64] = self._map("offset", "<i8", 2 * count)
        self._labels: NDArray[np.int32] = self._map("labels", "<i4", total)

    @classmethod
    def write(
        cls, folder: Path | str, labels: Iterable[tuple[str, Sequence[int]]], *, geometry: ConvGeometry, num_units: int
    ) -> Self:
        """Write (utterance id, labels) pairs, streamed, to a new folder that appears whole or not at all."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            ids, ends = [], [0]
            with (staging / "labels.bin").open("wb") as stream:
                for name, sequence in labels:
                    values = np.asarray(sequence, dtype="<i4")
                    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < num_units:
                        raise DataError(
                            f"labels of {name} must lie in 0 … {num_units - 1}, but reach from {values.min()} to {values.max()}"
                        )
                    stream.write(values.tobytes())
                    ids.append(hash_id(name))
                    ends.append(ends[-1] + len(values))
            hashes = np.asarray(ids, dtype="<u8")
            order = np.argsort(hashes, kind="stable")
            if (hashes[order][1:] == hashes[order][:-1]).any():
                raise DataError("some utterance is labelled twice; ids must be unique")
            hashes[order].tofile(staging / "id_hash.bin")
            spans = np.stack([np.asarray(ends[:-1], "<i8")[order], np.asarray(ends[1:], "<i8")[order]], axis=1)
            spans.tofile(staging / "offset.bin")
            header = {"hop": geometry.hop, "num_units": num_units, "num_utterances": len(ids), "num_labels": ends[-1]}
            (staging / "units.json").write_text(json.dumps(header), encoding="utf-8")
            staging.replace(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return cls(folder)

    def labels(self, utterance: str) -> Tensor:
        """Return all labels (int64) of an utterance."""
        wanted = np.uint64(hash_id(utterance))
        place = int(np.searchsorted(self._ids, wanted))
        if place == len(self._ids) or self._ids[place] != wanted:
            raise DataError(f"{self.folder}: has no labels of {utterance}; label the corpus again")
        first, last = (int(end) for end in self._offsets[2 * place : 2 * place + 2])
        return torch.from_numpy(self._labels[first:last].astype(np.int64))

    def crop(self, utterance: str, start: int, num_frames: int) -> Tensor:
        """Return the labels of the `num_frames` frames that begin at sample `start`.

        They may be up to two fewer than frames at the end of an utterance (`core.lengths.trim_to_shortest`); more than that
        is a `DataError` of the label rate.
        """
        labels = self.labels(utterance)
        first = round(start / self.hop)
        part = labels[first : first + num_frames]
        try:
            (common,) = trim_to_shortest([num_frames], [len(part)])
        except ValueError:
            raise DataError(
                f"{self.folder}: {utterance} has {len(labels)} labels of {self.hop} samples, too few for frames {first} to "
                f"{first + num_frames}; they were probably made at another rate or for another cut"
            ) from None
        return part[:common]

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker maps the files again
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"])  # type: ignore[misc]

    def _map(self, name: str, kind: str, count: int) -> NDArray[Any]:
        path = self.folder / f"{name}.bin"
        expected = count * np.dtype(kind).itemsize
        if not path.exists() or path.stat().st_size != expected:
            raise DataError(f"{path}: must have {expected} bytes; label the corpus again")
        return np.memmap(path, dtype=kind, mode="r") if count else np.empty(0, dtype=kind)
