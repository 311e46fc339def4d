"""Units for a corpus: features of a share of it → k-means → the unit of every frame, streamed, sharded and resumable.

Everything is written in pieces beside the table (`FOLDER.work`), so a run that was stopped goes on from them. A piece is whole
or absent; the table appears at the end, at once, and the pieces go.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from isogloss.core import dist
from isogloss.core.errors import DataError
from isogloss.core.files import replacing
from isogloss.core.rng import derive_seed
from isogloss.data.index import CorpusIndex
from isogloss.data.units import CLUSTERS, UnitTable
from isogloss.labelling.features import Features, build_features, stream_features
from isogloss.nn.filterbank import SAMPLE_RATE
from isogloss.targets.clusters import Clusters, fit_clusters
from isogloss.training.iterations import LabelConfig
from isogloss.training.parallel import on_main

Progress = Callable[[str, int, int], None]  # (what, done, of how many: pieces of utterances, or rows, of this process)

_PIECE = 256  # utterances
_FRAMES_PER_UNIT = 200  # that k-means gets to see at least, where the corpus has them
_HALF_MAX = 65504.0


@dataclass(frozen=True)
class Labelled:
    """What labelling leaves: the table, and how evenly units are used.

    `inertia` is the mean squared distance of the frames that the clusters were fitted to; None where they came from `clusters`.
    """

    table: UnitTable
    inertia: float | None
    clusters: str | None
    perplexity: float
    num_used: int


def label_corpus(
    config: LabelConfig, data: Path | str, folder: Path | str, *, progress: Progress | None = None
) -> Labelled:
    """Make the table of units of a corpus, or go on making it; every rank calls this.

    A finished table that was made in the same way is kept; one that was made otherwise is a `DataError`, as is a work folder.
    """
    folder = Path(folder)
    index = CorpusIndex.open(data)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    features = build_features(config, device)
    given = None if config.clusters is None else _given_clusters(config, features)
    convention = _convention(config, features, index, None if given is None else given[0])
    if (folder / "units.json").is_file():
        table = UnitTable(folder)
        _check_same(folder, table.header.get("convention", {}), convention)
        return _labelled(table, config)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise DataError(f"{folder}: holds something else than a table of units; choose a folder that is not there yet")
    work = folder.with_name(folder.name + ".work")
    on_main(lambda: _begin(work, convention))
    if given is not None:
        on_main(lambda: _save_clusters(work / CLUSTERS, *given))
    clusters = _clusters(config, features, index, work, convention, device, progress)
    _label(config, features, index, clusters, work, progress)
    dist.any_rank(False, device)  # all pieces are there
    on_main(lambda: _finish(folder, work, index, features, config, convention))
    return _labelled(UnitTable(folder), config)


def read_clusters(path: Path | str) -> tuple[Clusters, dict[str, Any]]:
    """Return the clusters of a table or of a model that was trained on one, and the convention of their features."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["isogloss"])
            centroids_CD = file.get_tensor("centroids_CD")
    except Exception as error:  # safetensors has errors of its own for damaged files
        raise DataError(f"{path}: not clusters that `isogloss label` wrote ({error})") from None
    return Clusters(centroids_CD, header["inertia"], header["passes"], header["rows_assigned"]), header["convention"]


def _given_clusters(config: LabelConfig, features: Features) -> tuple[Clusters, dict[str, Any]]:
    """Return the clusters that the configuration names and how they came about; others than it says are a `DataError`."""
    place = Path(str(config.clusters))
    clusters, theirs = read_clusters(place / CLUSTERS if place.is_dir() else place)
    differing = [key for key, value in features.convention.items() if theirs.get(key) != value]
    if differing:
        told = ", ".join(f"`{key}` (was {theirs.get(key)!r}, is {features.convention[key]!r})" for key in differing[:4])
        raise DataError(f"the clusters of {place} are of other features: {told}; label with the same ones")
    if len(clusters.centroids_CD) != config.num_units:
        raise DataError(
            f"`num_units` must be {len(clusters.centroids_CD)}, the number of clusters of {place}, but is {config.num_units}"
        )
    return clusters, theirs


def _convention(config: LabelConfig, features: Features, index: CorpusIndex, given: Clusters | None) -> dict[str, Any]:
    if given is not None:
        digest = hashlib.sha256(given.centroids_CD.contiguous().numpy().tobytes()).hexdigest()
        own: dict[str, Any] = {"clusters_sha256": digest}
    else:
        own = {"fit_share": config.fit_share, "seed": config.seed, "restarts": config.restarts}
    return {
        **features.convention,
        "hop": features.geometry.hop,
        "sample_rate": SAMPLE_RATE,
        "num_units": config.num_units,
        **own,
        "corpus": index.manifest,
    }


def _check_same(place: Path, old: Any, new: dict[str, Any]) -> None:
    differing = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if differing:
        told = ", ".join(f"`{key}` (was {old.get(key)!r}, is {new.get(key)!r})" for key in differing[:4])
        raise DataError(f"{place} was made with other settings: {told}; choose another folder, or remove it")


def _begin(work: Path, convention: dict[str, Any]) -> None:
    work.mkdir(parents=True, exist_ok=True)
    place = work / "convention.json"
    if place.is_file():
        _check_same(work, json.loads(place.read_text(encoding="utf-8")), convention)
    else:
        with replacing(place) as stream:
            stream.write(json.dumps(convention).encode())


def _clusters(
    config: LabelConfig,
    features: Features,
    index: CorpusIndex,
    work: Path,
    convention: dict[str, Any],
    device: torch.device,
    progress: Progress | None,
) -> Clusters:
    """Fit the clusters on a share of the utterances, or read those that were fitted before."""
    path = work / CLUSTERS
    if not path.is_file():
        rows = _fit_rows(config, features, index)
        mine = rows[dist.rank() :: dist.world_size()]
        blocks = [
            _fit_block(config, features, index, mine[k : k + _PIECE], work)
            for k in _told(range(0, len(mine), _PIECE), "features", progress)
        ]
        found = fit_clusters(
            [block for block in blocks if len(block)],
            config.num_units,
            seed=config.seed,
            restarts=config.restarts,
            device=device,
            progress=None if progress is None else lambda name, done, total: progress("k-means", done, total),
        )
        on_main(lambda: _save_clusters(path, found, convention))
    return read_clusters(path)[0]


def _fit_rows(config: LabelConfig, features: Features, index: CorpusIndex) -> NDArray[np.int64]:
    """Draw the utterances that k-means sees: the share, or as many more as give it enough frames."""
    order = np.random.Generator(np.random.Philox(key=derive_seed("label", config.seed))).permutation(len(index))
    frames = np.cumsum(index.durations[order].astype(np.float64)) * SAMPLE_RATE / features.geometry.hop
    enough = int(np.searchsorted(frames, _FRAMES_PER_UNIT * config.num_units)) + 1
    return np.sort(order[: max(math.ceil(config.fit_share * len(index)), enough)])


def _fit_block(
    config: LabelConfig, features: Features, index: CorpusIndex, rows: NDArray[np.int64], work: Path
) -> NDArray[Any]:
    """Return the features of some utterances in float16, mapped from the piece that holds them."""
    name = hashlib.blake2b(rows.astype("<i8").tobytes(), digest_size=8).hexdigest()
    path = work / f"features_{name}.npy"
    if not path.is_file():
        cuts = (index.cut(int(row)) for row in rows)
        parts = [
            values_SD.clamp(-_HALF_MAX, _HALF_MAX).half().numpy()
            for _, values_SD in stream_features(features, cuts, config.batch_seconds)
        ]
        with replacing(path) as stream:
            np.save(stream, np.concatenate(parts) if parts else np.zeros((0, features.width), np.float16))
    block: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return block


def _label(
    config: LabelConfig,
    features: Features,
    index: CorpusIndex,
    clusters: Clusters,
    work: Path,
    progress: Progress | None,
) -> None:
    """Write this rank's pieces of labels; those that are there already stay."""
    pieces = range(0, len(index), _PIECE)
    mine = pieces[dist.rank() :: dist.world_size()]
    for first in _told(mine, "labels", progress):
        path = work / f"labels_{first:09d}.npz"
        if path.is_file():
            continue
        cuts = (index.cut(row) for row in range(first, min(first + _PIECE, len(index))))
        found = [
            clusters.assign(values_SD).numpy().astype("<i4")
            for _, values_SD in stream_features(features, cuts, config.batch_seconds)
        ]
        with replacing(path) as stream:
            np.savez(stream, labels=np.concatenate(found), lengths=np.array([len(labels) for labels in found], "<i8"))


def _finish(
    folder: Path, work: Path, index: CorpusIndex, features: Features, config: LabelConfig, convention: dict[str, Any]
) -> None:
    def labels() -> Iterator[tuple[str, NDArray[np.int32]]]:
        for first in range(0, len(index), _PIECE):
            with np.load(work / f"labels_{first:09d}.npz", allow_pickle=False) as piece:
                ends = np.cumsum(piece["lengths"])[:-1]
                for row, part in enumerate(np.split(piece["labels"], ends), first):
                    yield index.cut_id(row), part

    UnitTable.write(
        folder,
        labels(),
        geometry=features.geometry,
        num_units=config.num_units,
        convention=convention,
        clusters=work / CLUSTERS,
    )
    shutil.rmtree(work)


def _labelled(table: UnitTable, config: LabelConfig) -> Labelled:
    counts_C = table.counts()
    chances = counts_C[counts_C > 0] / max(int(counts_C.sum()), 1)
    perplexity = float(np.exp(-(chances * np.log(chances)).sum()))
    inertia = None if config.clusters is not None else read_clusters(table.folder / CLUSTERS)[0].inertia
    return Labelled(table, inertia, config.clusters, perplexity, int((counts_C > 0).sum()))


def _save_clusters(path: Path, clusters: Clusters, convention: dict[str, Any]) -> None:
    header = {
        "convention": convention,
        "inertia": clusters.inertia,
        "passes": clusters.passes,
        "rows_assigned": clusters.rows_assigned,
    }
    temporary = path.with_name(f".{path.name}")
    save_file({"centroids_CD": clusters.centroids_CD.contiguous()}, temporary, {"isogloss": json.dumps(header)})
    temporary.replace(path)


def _told(firsts: range, name: str, progress: Progress | None) -> Iterator[int]:
    for number, first in enumerate(firsts, 1):
        yield first
        if progress is not None:
            progress(name, number, len(firsts))
