"""Encoder states on disk, keyed by content.

An encoder is known by its weights and a cut by its samples, so nothing stale is ever read: another checkpoint, an edited
recording or another crop has another key. A folder may be shared by several processes, since a shard is written beside its
place and renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from isogloss.core.files import replacing
from isogloss.data.audio import source_of_cut
from isogloss.encoders.base import Encoder
from isogloss.encoders.language_edits import edits_of

Array = npt.NDArray[Any]


def hash_encoder(encoder: Encoder) -> str:
    """Return the SHA-256 of an encoder's class, configuration, every tensor, and the language that it is set to."""
    digest = hashlib.sha256()
    digest.update(f"{type(encoder).__name__} {encoder.config.model_dump_json()}".encode())
    for key, value in sorted(encoder.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        # A dimension of one may have any stride, and does in the first convolution of checkpoints from elsewhere.
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    # Without a language the key is that of the tensors alone.
    chosen = {name: edit.language for name, edit in edits_of(encoder).items() if edit.language is not None}
    if chosen:
        digest.update(json.dumps(chosen, sort_keys=True).encode())
    return digest.hexdigest()


def hash_cut(cut: Any, sample_rate: int, known: dict[str, str]) -> str:
    """Return the SHA-256 of what a cut's samples are made of: its recording's bytes and its place in it.

    Hashing the stored bytes costs far less than decoding them; `known` remembers files that several cuts share.
    """
    place, channel = source_of_cut(cut)
    if isinstance(place, bytes):
        content = hashlib.sha256(place).hexdigest()
    else:
        path = str(place)
        if path not in known:
            with Path(path).open("rb") as file:
                known[path] = hashlib.file_digest(file, "sha256").hexdigest()
        content = known[path]
    window = f"{cut.start:.6f} {cut.duration:.6f} {channel} {sample_rate} {content}"
    return hashlib.sha256(window.encode()).hexdigest()


class FeatureCache:
    """Shards of one encoder: `SHARD.json` lists keys and lengths, `SHARD.layerNN.npy` holds all rows of one layer."""

    def __init__(self, folder: Path, layers: Sequence[int]) -> None:
        self.folder = folder
        self.layers = layers
        self.places: dict[str, dict[int, tuple[str, int, int]]] = {}  # key → layer → (shard, first row, end)
        self.maps: dict[tuple[str, int], Array] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for index in sorted(folder.glob("*.json")):
            self._add(index.stem, json.loads(index.read_text(encoding="utf-8")))

    def __contains__(self, key: str) -> bool:
        return all(layer in self.places.get(key, {}) for layer in self.layers)

    def read(self, key: str, layer: int) -> Array:
        """Return the states of a cut at a layer, mapped from disk."""
        shard, start, end = self.places[key][layer]
        if (shard, layer) not in self.maps:
            self.maps[shard, layer] = np.load(self._path(shard, layer), mmap_mode="r", allow_pickle=False)
        return self.maps[shard, layer][start:end]

    def write(self, cuts: Sequence[tuple[str, str]], arrays: Mapping[tuple[str, int], Array]) -> None:
        """Write the states of (cut id, key) pairs as one shard."""
        lengths = [len(arrays[cut_id, self.layers[0]]) for cut_id, _ in cuts]
        entry = {"layers": list(self.layers), "keys": [key for _, key in cuts], "lengths": lengths}
        shard = hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:24]
        for layer in self.layers:
            rows = np.concatenate([arrays[cut_id, layer] for cut_id, _ in cuts])
            with replacing(self._path(shard, layer)) as file:
                np.save(file, rows)
        # The index comes last: a shard without it does not exist for any reader.
        with replacing(self.folder / f"{shard}.json") as file:
            file.write(json.dumps(entry).encode())
        self._add(shard, entry)

    def _path(self, shard: str, layer: int) -> Path:
        return self.folder / f"{shard}.layer{layer:02d}.npy"

    def _add(self, shard: str, entry: Mapping[str, Any]) -> None:
        start = 0
        for key, length in zip(entry["keys"], entry["lengths"], strict=True):
            for layer in entry["layers"]:
                self.places.setdefault(key, {})[int(layer)] = (shard, start, start + length)
            start += length
