"""Features of every cut and layer: one protocol for encoders, log-mel and MFCC; encoder states cached on disk by content.

The cache knows an encoder by its weights and a cut by its samples, so nothing stale is ever read: another checkpoint, an
edited recording or another crop has another key. A cache folder may be shared by several processes, since a shard is
written beside its place and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isogloss.core.errors import ConfigError, DataError
from isogloss.data.audio import read_audio, source_of_cut
from isogloss.encoders.base import Encoder, pack_audio

Array = npt.NDArray[Any]
Progress = Callable[[float, float], None]  # (seconds of audio done, seconds in all)

_HALF_MAX = float(np.finfo(np.float16).max)


class FeatureSource(Protocol):
    """What probes and ABX measure: a name, a frame rate (Hz), the time of frame 0's centre (seconds), layers, features."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def frame_rate_hz(self) -> float:
        """Frames per second."""
        ...

    @property
    def first_center_seconds(self) -> float:
        """Time of the middle of frame 0, from the start of the cut."""
        ...

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that `features` returns; a spectral source has one, 0."""
        ...

    def features(self, cut: Any) -> Mapping[int, Array]:
        """Return S×D features of a cut for every layer."""
        ...


def frame_centers(source: FeatureSource, num_frames: int) -> Array:
    """Return the times of the frames' centres in seconds from the start of the cut, S."""
    return source.first_center_seconds + np.arange(num_frames) / source.frame_rate_hz


@dataclass
class FeatureStore:
    """States of an encoder for a set of cuts: `store[cut_id, layer]` is S×D float16, memory-mapped where cached.

    `too_short` names the cuts that have no frame; their arrays are 0×D.
    """

    name: str
    frame_rate_hz: float
    first_center_seconds: float
    layers: tuple[int, ...]
    too_short: list[str] = field(default_factory=list)
    arrays: dict[tuple[str, int], Array] = field(default_factory=dict, repr=False)

    def __getitem__(self, key: tuple[str, int]) -> Array:
        """Return the features of (cut id, layer)."""
        try:
            return self.arrays[key]
        except KeyError:
            raise DataError(
                f"there are no features of cut `{key[0]}` at layer {key[1]}; extracted are layers "
                f"{list(self.layers)} of {len(self.arrays) // max(len(self.layers), 1)} cuts; extract it too"
            ) from None

    def features(self, cut: Any) -> dict[int, Array]:
        """Return the features of a cut at every layer."""
        return {layer: self[cut.id, layer] for layer in self.layers}


def extract_features(
    encoder: Encoder,
    cuts: Iterable[Any],
    *,
    layers: Sequence[int] | None = None,
    cache_dir: Path | str | None = None,
    batch_seconds: float = 60.0,
    shard_seconds: float = 1200.0,
    name: str = "encoder",
    progress: Progress | None = None,
) -> FeatureStore:
    """Encode every cut and keep the chosen states in float16 (all L+1 by default; −1 is the last).

    With `cache_dir` they lie on disk, keyed by the encoder's weights and the cut's samples, and are memory-mapped;
    without, in memory. The encoder is left in the mode it was in. Raises `DataError` for non-finite states.
    """
    cuts = list(cuts)
    chosen = resolve_layers(layers, encoder.num_layers)
    center = encoder.geometry.center_seconds(0, encoder.sample_rate)
    store = FeatureStore(name, encoder.sample_rate / encoder.geometry.hop, center, chosen)
    cache = _Cache(Path(cache_dir) / hash_encoder(encoder)[:24], chosen) if cache_dir is not None else None
    keys = _content_keys(cuts, encoder.sample_rate) if cache else {cut.id: "" for cut in cuts}
    if len(keys) < len(cuts):
        raise DataError(f"{len(cuts)} cuts have only {len(keys)} different ids; every cut needs an id of its own")
    missing = []
    for cut in cuts:
        if cache and keys[cut.id] in cache:
            store.arrays.update({(cut.id, layer): cache.read(keys[cut.id], layer) for layer in chosen})
        else:
            missing.append(cut)
    total = float(sum(cut.duration for cut in missing))
    done = 0.0
    # Cuts of like length lie together, so that a batch's utterances cost about the same; the order has no other effect.
    missing.sort(key=lambda cut: cut.duration)
    for shard in _group(missing, shard_seconds if cache else float("inf")):
        arrays: dict[tuple[str, int], Array] = {}
        for batch, waveforms in _decode_ahead(_group(shard, batch_seconds), encoder.sample_rate):
            arrays.update(_encode(encoder, batch, waveforms, chosen))
            done += float(sum(cut.duration for cut in batch))
            if progress is not None:
                progress(done, total)
        if cache:
            cache.write([(cut.id, keys[cut.id]) for cut in shard], arrays)
            arrays = {(cut.id, layer): cache.read(keys[cut.id], layer) for cut in shard for layer in chosen}
        store.arrays.update(arrays)
    store.too_short = [cut.id for cut in cuts if len(store.arrays[cut.id, chosen[0]]) == 0]
    return store


def resolve_layers(layers: Sequence[int] | None, num_layers: int) -> tuple[int, ...]:
    """Return layer numbers in 0…L from numbers that may count from the end, all of them for None."""
    if layers is None:
        return tuple(range(num_layers + 1))
    chosen = []
    for layer in layers:
        if not -num_layers - 1 <= layer <= num_layers:
            raise ConfigError(
                f"`layer` must be in 0…{num_layers} (0 is the input of the first block), but is {layer}; "
                f"the encoder has {num_layers} blocks"
            )
        chosen.append(layer % (num_layers + 1))
    return tuple(dict.fromkeys(chosen))


def hash_encoder(encoder: Encoder) -> str:
    """Return the SHA-256 of an encoder's class, configuration and every tensor."""
    digest = hashlib.sha256()
    digest.update(f"{type(encoder).__name__} {encoder.config.model_dump_json()}".encode())
    for key, value in sorted(encoder.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
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


def _content_keys(cuts: Sequence[Any], sample_rate: int) -> dict[str, str]:
    known: dict[str, str] = {}
    return {cut.id: hash_cut(cut, sample_rate, known) for cut in cuts}


def _group(cuts: Sequence[Any], seconds: float) -> Iterator[list[Any]]:
    group: list[Any] = []
    length = 0.0
    for cut in cuts:
        if group and length + cut.duration > seconds:
            yield group
            group, length = [], 0.0
        group.append(cut)
        length += cut.duration
    if group:
        yield group


def _decode_ahead(batches: Iterable[list[Any]], sample_rate: int) -> Iterator[tuple[list[Any], list[Array]]]:
    """Yield each batch with its waveforms while a second thread decodes the next one."""

    def decode(batch: list[Any]) -> list[Array]:
        return [read_audio(cut, sample_rate=sample_rate) for cut in batch]

    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = None
        for batch in batches:
            following = (batch, pool.submit(decode, batch))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


@torch.no_grad()
def _encode(
    encoder: Encoder, cuts: Sequence[Any], waveforms: Sequence[Array], layers: Sequence[int]
) -> dict[tuple[str, int], Array]:
    device = next(encoder.parameters()).device
    prepared: list[Tensor] = []
    encoded_cuts: list[Any] = []
    arrays: dict[tuple[str, int], Array] = {}
    for cut, waveform in zip(cuts, waveforms, strict=True):
        if encoder.num_frames(len(waveform)) == 0:
            arrays.update({(cut.id, layer): np.zeros((0, encoder.width), np.float16) for layer in layers})
            continue
        prepared.append(encoder.prepare(torch.from_numpy(waveform).to(device)))
        encoded_cuts.append(cut)
    if not prepared:
        return arrays
    was_training = encoder.training
    encoder.eval()
    try:
        states = encoder(pack_audio(prepared)).states
    finally:
        encoder.train(was_training)
    for layer in layers:
        for cut, values_SD in zip(encoded_cuts, states[layer].split(), strict=True):
            if not torch.isfinite(values_SD).all():
                raise DataError(
                    f"the state of cut `{cut.id}` at layer {layer} is not finite; usually because the checkpoint "
                    "diverged; try an earlier checkpoint"
                )
            arrays[cut.id, layer] = values_SD.float().clamp(-_HALF_MAX, _HALF_MAX).half().cpu().numpy()
    return arrays


class _Cache:
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
        shard, start, end = self.places[key][layer]
        if (shard, layer) not in self.maps:
            self.maps[shard, layer] = np.load(self._path(shard, layer), mmap_mode="r", allow_pickle=False)
        return self.maps[shard, layer][start:end]

    def write(self, cuts: Sequence[tuple[str, str]], arrays: Mapping[tuple[str, int], Array]) -> None:
        lengths = [len(arrays[cut_id, self.layers[0]]) for cut_id, _ in cuts]
        entry = {"layers": list(self.layers), "keys": [key for _, key in cuts], "lengths": lengths}
        shard = hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:24]
        for layer in self.layers:
            rows = np.concatenate([arrays[cut_id, layer] for cut_id, _ in cuts])
            with _writing(self._path(shard, layer)) as file:
                np.save(file, rows)
        # The index comes last: a shard without it does not exist for any reader.
        with _writing(self.folder / f"{shard}.json") as file:
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


@contextmanager
def _writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path` and rename it to `path` once it is whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
