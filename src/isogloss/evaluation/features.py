"""Features of every cut and layer: one protocol for encoders, log-mel and MFCC; encoder states cached on disk by content."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.files import replacing
from isogloss.data.audio import read_audio
from isogloss.encoders.base import Encoder, pack_audio
from isogloss.evaluation.feature_cache import FeatureCache, hash_cut, hash_encoder

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
    cache = FeatureCache(Path(cache_dir) / hash_encoder(encoder)[:24], chosen) if cache_dir is not None else None
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


def write_feature_files(store: FeatureStore, cuts: Iterable[Any], folder: Path) -> Path:
    """Write `features/LAYER/NUMBER.npy` (S×D float16) for every cut and layer, and `features.jsonl`; return the index's path.

    Files are numbered, as an id may hold what a file name must not; the index tells which cut each one is.
    """
    lines = []
    for number, cut in enumerate(cuts):
        for layer in store.layers:
            name = f"features/{layer:02d}/{number:07d}.npy"
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            values_SD = store[cut.id, layer]
            with replacing(path, is_flushed=False) as file:
                np.save(file, values_SD)
            entry = {
                "id": cut.id,
                "layer": layer,
                "file": name,
                "num_frames": len(values_SD),
                "frame_rate_hz": store.frame_rate_hz,
                "first_center_seconds": store.first_center_seconds,
            }
            lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    index = folder / "features.jsonl"
    with replacing(index) as file:
        file.write("".join(lines).encode())
    return index
