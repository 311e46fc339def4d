"""Small corpora on disk for the tests of the data layer: real files, or an index without any audio."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from isogloss.core.types import SpeechBatch
from isogloss.data.index import CorpusIndex


def cut_fields(
    name: str,
    seconds: float,
    *,
    language: str | None = "fr",
    speaker: str | None = "anna",
    rate: int = 16_000,
    source: str = "",
) -> dict[str, Any]:
    supervision = {
        "id": name,
        "recording_id": name,
        "start": 0,
        "duration": seconds,
        "channel": 0,
        "text": f"text of {name}",
    }
    supervision |= {key: value for key, value in (("language", language), ("speaker", speaker)) if value is not None}
    recording = {
        "id": name,
        "sources": [{"type": "file", "channels": [0], "source": source or f"{name}.wav"}],
        "sampling_rate": rate,
        "num_samples": round(seconds * rate),
        "duration": seconds,
        "channel_ids": [0],
    }
    return {
        "id": name,
        "start": 0,
        "duration": seconds,
        "channel": 0,
        "supervisions": [supervision],
        "recording": recording,
        "custom": {"source": "made up", "translations": {"de": f"Text von {name}"}},
        "type": "MonoCut",
    }


def write_cuts(path: Path, cuts: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(cut) + "\n" for cut in cuts), encoding="utf-8")


def speech_corpus(folder: Path, num_samples: Sequence[int], *, languages: str = "ab", speakers: int = 3) -> Path:
    """Write wav files of noise (16 bit) and their cuts; utterance i has its own loudness."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    cuts = []
    for i, n in enumerate(num_samples):
        samples = generator.normal(0.01 * i, 0.02 + 0.002 * (i % 30), n).clip(-0.9, 0.9)
        soundfile.write(folder / f"u{i}.wav", samples, 16_000, subtype="PCM_16")
        cuts.append(cut_fields(f"u{i}", n / 16_000, language=languages[i % len(languages)], speaker=f"s{i % speakers}"))
    write_cuts(folder / "cuts.jsonl", cuts)
    return folder


def silent_index(
    folder: Path,
    durations: Sequence[float] | np.ndarray,
    *,
    languages: Sequence[int] | np.ndarray | None = None,
    speakers: Sequence[int] | np.ndarray | None = None,
    shards: np.ndarray | None = None,
) -> CorpusIndex:
    """Write the arrays of an index directly: a corpus of any size for the planner, without cuts."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(durations)
    languages = np.zeros(count) if languages is None else np.asarray(languages)
    speakers = np.zeros(count) if speakers is None else np.asarray(speakers)
    arrays: dict[str, np.ndarray] = {
        "duration": np.asarray(durations, dtype="<f4"),
        "offset": np.append(np.zeros(count), 1).astype("<i8"),
        "id_hash": np.random.Philox(key=7).random_raw(count),
        "language": languages.astype("<i4"),
        "speaker": speakers.astype("<i4"),
        "source": np.zeros(count, dtype="<i4"),
    }
    if shards is not None:
        arrays |= {
            "shard": shards.astype("<i4"),
            "member_offset": np.zeros(count, "<i8"),
            "member_size": np.zeros(count, "<i8"),
        }
    for name, values in arrays.items():
        values.tofile(folder / f"{name}.bin")
    (folder / "cuts.jsonl").write_bytes(b"\n")
    names = {
        "language": [f"l{i}" for i in range(int(languages.max()) + 1)],
        "speaker": [f"s{i}" for i in range(int(speakers.max()) + 1)],
        "source": ["made up"],
        "shard": [] if shards is None else [f"recording.{i:06d}.tar" for i in range(int(shards.max()) + 1)],
    }
    (folder / "names.json").write_text(json.dumps(names))
    manifest = hashlib.blake2b(arrays["duration"].tobytes(), digest_size=16).hexdigest()
    header = {"format": 1, "num_cuts": count, "seconds": float(np.sum(durations)), "manifest": manifest}
    (folder / "index.json").write_text(json.dumps(header))
    return CorpusIndex(folder, folder)


def fingerprint(batches: Sequence[SpeechBatch]) -> str:
    """Hash everything random or decoded about the micro-batches of an update."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr(batch.ids).encode())
        digest.update(batch.audio.values_ND.numpy().tobytes())
        digest.update(batch.audio.lengths_B.numpy().tobytes())
        digest.update(batch.seeds_B.numpy().tobytes())
    return digest.hexdigest()
