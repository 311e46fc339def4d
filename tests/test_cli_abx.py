from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from isogloss.cli.main import main
from isogloss.core.errors import DataError
from isogloss.encoders.presets import build_encoder, preset
from isogloss.evaluation.feature_files import read_feature_files
from isogloss.evaluation.tables import read_results
from isogloss.hub.save import save_model

RATE = 16_000
PITCHES = {"a": 300.0, "e": 700.0, "o": 1500.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six speakers, each phone a tone of its own with the speaker's overtone, and a CTM that says where."""
    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    metadata, ctm = ["file_name,text,language,speaker"], []
    for u in range(12):
        phones = rng.choice(list(PITCHES), 8)
        time = np.arange(int(0.1 * RATE)) / RATE
        parts = [
            np.sin(2 * np.pi * PITCHES[p] * time) + 0.3 * np.sin(2 * np.pi * (2000 + 300 * (u % 6)) * time)
            for p in phones
        ]
        audio = 0.2 * np.concatenate(parts) + rng.normal(0, 0.02, 8 * len(time))
        soundfile.write(folder / f"u{u:02d}.wav", audio.astype(np.float32), RATE)
        metadata.append(f"u{u:02d}.wav,{' '.join(phones)},sw,s{u % 6}")
        ctm += [f"u{u:02d} 1 {0.1 * k:.3f} 0.100 {p}" for k, p in enumerate(phones)]
    (folder / "metadata.csv").write_text("\n".join(metadata) + "\n")
    (folder / "phones.ctm").write_text("\n".join(ctm) + "\n")
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["abx", *map(str, arguments)])
    return int(left.value.code or 0)


def test_tones_are_told_apart_and_the_difference_is_reported(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"
    assert run("--data", corpus, "--context", "all", "--out", out, "--resamples", 100) == 0
    records = read_results(out)
    assert len(records) == 3 * 2 * 3  # contexts × speakers × (mel, mfcc, difference)
    by = {(r.system, r.task): r for r in records}
    assert by["mfcc", "ABX within speaker, any"].value < 0.05
    assert by["mel", "ABX across speaker, any"].value < 0.2
    difference = by["mel − mfcc", "ABX across speaker, any"]
    parts = [by[name, "ABX across speaker, any"].value for name in ("mel", "mfcc")]
    assert difference.value == pytest.approx(parts[0] - parts[1])
    assert difference.unit == "speaker"
    assert difference.num_units == 6
    assert difference.labels == "silver"  # nobody says who made the CTM
    assert "ABX within speaker, any" in capsys.readouterr().out


def test_feature_folders_are_scored_like_models(corpus: Path, tmp_path: Path) -> None:
    from isogloss.data.inputs import open_corpus
    from isogloss.evaluation.spectral import SpectralSource

    mfcc = SpectralSource("mfcc")
    lines = []
    for number, cut in enumerate(open_corpus(corpus)):
        values = mfcc.features(cut)[0]
        np.save(tmp_path / f"{number}.npy", values)
        times = {"frame_rate_hz": 100.0, "first_center_seconds": 0.0125}
        lines.append(json.dumps({"id": cut.id, "layer": 3, "file": f"{number}.npy", **times}))
    index = tmp_path / "features.jsonl"
    index.write_text("\n".join(lines) + "\n")
    out = tmp_path / "results.jsonl"
    assert (
        run(
            "--data",
            corpus,
            "--features",
            tmp_path,
            "--against",
            "mfcc",
            "--context",
            "any",
            "--speaker",
            "within",
            "--out",
            out,
        )
        == 0
    )
    of_files, of_mfcc, difference = read_results(out)
    assert of_files.value == of_mfcc.value
    assert (difference.low, difference.high) == (0, 0)
    assert of_files.meta["layer"] == 3
    for row, message in (
        ({"file": "../0.npy"}, "must lie inside the folder"),
        ({"file": "/etc/0.npy"}, "must lie inside the folder"),
        ({"file": "absent.npy"}, "cannot be read"),
        ({"frame_rate_hz": 50}, "must be of one frame rate"),
        ({"id": json.loads(lines[0])["id"], "file": "0.npy"}, "there twice"),
        ({"layer": 4}, "12 ids and 2 layers, but only 12 files"),
    ):
        index.write_text("\n".join([*lines[:-1], json.dumps({**json.loads(lines[-1]), **row})]))
        with pytest.raises(DataError, match=message):
            read_feature_files(tmp_path)
    index.write_text(lines[0])
    np.save(tmp_path / "0.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="is not an array"):
        read_feature_files(tmp_path)


def test_models_of_one_name_are_two_systems(corpus: Path, tmp_path: Path) -> None:
    models, options = [], ["--against", "", "--context", "any", "--speaker", "within", "--resamples", 100]
    for seed, name in enumerate(("early", "late")):
        torch.manual_seed(seed)
        models += ["--from", tmp_path / name / "run" / "model"]
        save_model(models[-1], build_encoder(preset("wave-tiny")), None, {})
    out = tmp_path / "results.jsonl"
    assert run("--data", corpus, *models, *options, "--layer", 1, "--out", out) == 0
    early, late, difference = read_results(out)
    assert early.system != late.system
    assert difference.system == f"{early.system} − {late.system}"


def test_mistakes_are_one_sentence(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--data", corpus, "--against", "") == 2
    assert "there is nothing to measure" in capsys.readouterr().err
    for sources in ((), ("--features", tmp_path)):
        assert run("--data", corpus, "--layer", 3, *sources) == 2
        assert "`--layer` chooses among the layers of a model" in capsys.readouterr().err
    assert run("--data", tmp_path / "absent", "--against", "untrained") == 2, "before the corpus is read"
    assert "needs a model to be like" in capsys.readouterr().err
    assert run("--data", corpus, "--against", "mel,plp") == 2
    assert "not `plp`" in capsys.readouterr().err
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "u00.wav").write_bytes((corpus / "u00.wav").read_bytes())
    assert run("--data", bare, "--labels", "alignment") == 1
    assert "has a phone alignment" in capsys.readouterr().err
