"""Unit labels of a corpus (clusters, codes, phones by frame): written once, mapped, and cropped with the audio."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isogloss.core.errors import DataError
from isogloss.core.lengths import ConvGeometry
from isogloss.data._index_files import hash_id

CLUSTERS = "clusters.safetensors"  # beside the labels: the centroids that made them
_EDGE_FRAMES = 2  # frames at the ends of an utterance that may have no label of their own


class UnitTable:
    """Labels by utterance id, one per frame of `hop` samples (at 16 kHz), as memory-mapped arrays.

    The label rate is never typed: `hop`, and `first_center`, the sample in the middle of frame 0, come from the geometry of
    what was labelled. `header` holds what else is known: `num_units`, `convention` (features, layer, model hash), and
    `sha256` of the labels.
    """

    def __init__(self, folder: Path | str, frames: ConvGeometry | None = None) -> None:
        self.folder, self._frames = Path(folder), frames
        try:
            self.header: dict[str, Any] = json.loads((self.folder / "units.json").read_text(encoding="utf-8"))
            header = self.header
            self.hop, self.num_units = int(header["hop"]), int(header["num_units"])
            self.first_center = float(header["first_center"])
            count, total = int(header["num_utterances"]), int(header["num_labels"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.folder}: not a table of units ({error}); `isogloss label` writes one") from None
        self._ids: NDArray[np.uint64] = self._map("id_hash", "<u8", count)
        self._offsets: NDArray[np.int64] = self._map("offset", "<i8", 2 * count)
        self._labels: NDArray[np.int32] = self._map("labels", "<i4", total)

    @classmethod
    def write(
        cls,
        folder: Path | str,
        labels: Iterable[tuple[str, Sequence[int] | NDArray[np.int32]]],
        *,
        geometry: ConvGeometry,
        num_units: int,
        convention: Mapping[str, Any] | None = None,
        clusters: Path | None = None,
    ) -> Self:
        """Write (utterance id, labels) pairs, streamed, to a new folder that appears whole or not at all.

        `convention` (JSON) says what was labelled; the file `clusters` is copied beside the labels.
        """
        center = geometry.first_sample + geometry.receptive_field / 2
        return cls._write(folder, labels, geometry.hop, center, num_units, convention, clusters)

    @classmethod
    def join(cls, folder: Path | str, utterances: Iterable[tuple[str, UnitTable, str]]) -> Self:
        """Write the labels of (new id, table, id in that table) to a new folder; tables of other rates or counts are a `DataError`.

        What is known about the units is that of the first table.
        """
        utterances = list(utterances)
        tables = {id(table): table for _, table, _ in utterances}
        if len(rates := {(t.hop, t.first_center, t.num_units) for t in tables.values()}) != 1:
            raise DataError(
                f"tables of units must agree in hop, first centre and number of units to be joined, but have {sorted(rates)}; label again"
            )
        first = next(iter(tables.values()))
        clusters = first.folder / CLUSTERS
        return cls._write(
            folder,
            ((new, table.labels(old).numpy().astype("<i4")) for new, table, old in utterances),
            first.hop,
            first.first_center,
            first.num_units,
            first.header.get("convention"),
            clusters if clusters.is_file() else None,
        )

    @classmethod
    def _write(
        cls,
        folder: Path | str,
        labels: Iterable[tuple[str, Sequence[int] | NDArray[np.int32]]],
        hop: int,
        first_center: float,
        num_units: int,
        convention: Mapping[str, Any] | None,
        clusters: Path | None,
    ) -> Self:
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            ids, ends, digest = [], [0], hashlib.sha256()
            with (staging / "labels.bin").open("wb") as stream:
                for name, sequence in labels:
                    values = np.asarray(sequence, dtype="<i4")
                    if len(values) and not 0 <= int(values.min()) <= int(values.max()) < num_units:
                        raise DataError(
                            f"labels of {name} must lie in 0 … {num_units - 1}, but reach from {values.min()} to {values.max()}"
                        )
                    stream.write(values.tobytes())
                    digest.update(f"{name} {len(values)} ".encode("utf-8", "surrogatepass") + values.tobytes())
                    ids.append(hash_id(name))
                    ends.append(ends[-1] + len(values))
            hashes = np.asarray(ids, dtype="<u8")
            order = np.argsort(hashes, kind="stable")
            if (hashes[order][1:] == hashes[order][:-1]).any():
                raise DataError("some utterance is labelled twice; ids must be unique")
            hashes[order].tofile(staging / "id_hash.bin")
            spans = np.stack([np.asarray(ends[:-1], "<i8")[order], np.asarray(ends[1:], "<i8")[order]], axis=1)
            spans.tofile(staging / "offset.bin")
            if clusters is not None:
                shutil.copyfile(clusters, staging / CLUSTERS)
            header = {
                "hop": hop,
                "first_center": first_center,
                "num_units": num_units,
                "num_utterances": len(ids),
                "num_labels": ends[-1],
                "sha256": digest.hexdigest(),
                "convention": dict(convention or {}),
            }
            (staging / "units.json").write_text(json.dumps(header, ensure_ascii=False), encoding="utf-8")
            staging.replace(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return cls(folder)

    def for_frames(self, geometry: ConvGeometry) -> UnitTable:
        """Return the same table, whose crops have a label for every frame of another geometry: the one nearest in time.

        Labels that are farther apart than the frames would each be used for several: that is a `DataError`.
        """
        if geometry.hop < self.hop:
            raise DataError(
                f"{self.folder}: has a label for every {self.hop} samples, but the encoder a frame for every {geometry.hop}; label "
                "with features of the same rate or a higher one"
            )
        return UnitTable(self.folder, geometry)

    def check_covers(self, id_hashes: NDArray[np.uint64], seconds: NDArray[np.float32], sample_rate: int) -> None:
        """Raise `DataError` where utterances have no labels, or as many as another length would have."""
        places = np.searchsorted(self._ids, id_hashes).clip(max=max(len(self._ids) - 1, 0))
        found = self._ids[places] == id_hashes if len(self._ids) else np.zeros(len(id_hashes), bool)
        if not found.all():
            raise DataError(
                f"{self.folder}: has labels of {int(found.sum())} of the {len(id_hashes)} utterances; they were made from another "
                "corpus: label this one"
            )
        ends = np.asarray(self._offsets).reshape(-1, 2)[places]
        labelled = (ends[:, 1] - ends[:, 0]) * self.hop / sample_rate
        wrong = np.abs(labelled - seconds) > 0.1 + 4 * self.hop / sample_rate
        if wrong.any():
            raise DataError(
                f"{self.folder}: {int(wrong.sum())} utterances have labels for another length than theirs, the first "
                f"{labelled[wrong][0]:.2f} s of {seconds[wrong][0]:.2f} s; usually because the corpus was cut anew: label it again"
            )

    def labels(self, utterance: str) -> Tensor:
        """Return all labels (int64) of an utterance."""
        wanted = np.uint64(hash_id(utterance))
        place = int(np.searchsorted(self._ids, wanted))
        if place == len(self._ids) or self._ids[place] != wanted:
            raise DataError(f"{self.folder}: has no labels of {utterance}; label the corpus again")
        first, last = (int(end) for end in self._offsets[2 * place : 2 * place + 2])
        return torch.from_numpy(self._labels[first:last].astype(np.int64))

    def counts(self) -> NDArray[np.int64]:
        """Return how many frames have each unit."""
        counts = np.zeros(self.num_units, dtype=np.int64)
        for first in range(0, len(self._labels), 1 << 22):
            counts += np.bincount(self._labels[first : first + (1 << 22)], minlength=self.num_units)
        return counts

    def crop(self, utterance: str, start: int, num_frames: int) -> Tensor:
        """Return the labels of the `num_frames` frames of a crop that begins at sample `start`.

        Each frame has the label whose frame's centre is nearest to its own. Up to two frames at the ends of an utterance may
        lie outside of its labels and have the last one; more than that is a `DataError` of the label rate.
        """
        labels = self.labels(utterance)
        frames = self._frames
        hop = frames.hop if frames is not None else self.hop
        center = frames.first_sample + frames.receptive_field / 2 if frames is not None else self.first_center
        places = (start + center - self.first_center + hop * np.arange(num_frames)) / self.hop
        nearest = np.floor(places + 0.5).astype(np.int64)
        edge = _EDGE_FRAMES * max(hop // self.hop, 1)
        if num_frames and (not len(labels) or nearest[0] < -edge or nearest[-1] > len(labels) - 1 + edge):
            raise DataError(
                f"{self.folder}: {utterance} has {len(labels)} labels of {self.hop} samples, too few for {num_frames} frames from "
                f"sample {start}; they were probably made at another rate or for another cut"
            )
        return labels[torch.from_numpy(nearest.clip(0, max(len(labels) - 1, 0)))]

    def __getstate__(self) -> dict[str, Any]:
        # a spawned worker maps the files again
        return {"folder": self.folder, "frames": self._frames}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["frames"])  # type: ignore[misc]

    def _map(self, name: str, kind: str, count: int) -> NDArray[Any]:
        path = self.folder / f"{name}.bin"
        expected = count * np.dtype(kind).itemsize
        if not path.exists() or path.stat().st_size != expected:
            raise DataError(f"{path}: must have {expected} bytes; label the corpus again")
        return np.memmap(path, dtype=kind, mode="r") if count else np.empty(0, dtype=kind)
