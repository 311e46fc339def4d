"""Decoding, normalising, cropping, labels: one item at a time, against plain numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from isogloss.core.errors import DataError
from isogloss.core.lengths import ConvGeometry
from isogloss.data.dataset import BinTask, SpeechDataset
from isogloss.data.index import CorpusIndex
from isogloss.data.streams import Item
from isogloss.data.units import UnitTable
from small_corpus import cut_fields, speech_corpus, write_cuts

HOP_20_MS = ConvGeometry((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))


def standardize(waveform_T: Tensor) -> Tensor:
    return (waveform_T - waveform_T.mean()) / torch.sqrt(waveform_T.var(unbiased=False) + 1e-7)


def samples_of(folder: Path, name: str) -> np.ndarray:
    return soundfile.read(folder / f"{name}.wav", dtype="float32")[0]


def task(*items: Item) -> BinTask:
    return BinTask(1, list(items), True, {})


def test_packs_windows_with_all_that_is_known(tmp_path: Path) -> None:
    folder = speech_corpus(tmp_path / "c", [16_000, 24_000, 8_000])
    dataset = SpeechDataset(CorpusIndex.open(folder), translation="de")
    loaded = dataset[task(Item(0, 0, 16_000, 11), Item(1, 3_200, 8_000, 12), Item(2, 0, 8_000, 13))]
    batch = loaded.batch
    assert batch is not None
    assert not loaded.rejected
    assert batch.ids == ["u0", "u1", "u2"]
    assert batch.languages == ["a", "b", "a"]
    assert batch.speakers == ["s0", "s1", "s2"]
    assert batch.text == ["text of u0", None, "text of u2"], "the text of an utterance is not that of a window of it"
    assert batch.translation == ["Text von u0", None, "Text von u2"]
    assert batch.seeds_B.tolist() == [11, 12, 13]
    expected = [samples_of(folder, "u0"), samples_of(folder, "u1")[3_200:11_200], samples_of(folder, "u2")]
    for own, reference in zip(batch.audio.split(), expected, strict=True):
        np.testing.assert_array_equal(own.numpy(), reference)


def test_the_whole_utterance_is_normalised_before_it_is_cropped(tmp_path: Path) -> None:
    folder = speech_corpus(tmp_path / "c", [24_000] * 4)
    dataset = SpeechDataset(CorpusIndex.open(folder), standardize)
    own = dataset.load(Item(3, 6_400, 8_000, 0)).waveform_T
    whole = samples_of(folder, "u3").astype(np.float64)
    expected = ((whole - whole.mean()) / np.sqrt(whole.var() + 1e-7))[6_400:14_400]
    np.testing.assert_allclose(own.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("start", [0, 16_000, 40_000])
def test_a_long_recording_is_normalised_over_a_window_around_the_crop(tmp_path: Path, start: int) -> None:
    folder = speech_corpus(tmp_path / "c", [48_000] * 2)
    reads: list[tuple[float, float]] = []

    def read(cut: object, *, sample_rate: int, start: float, duration: float) -> np.ndarray:
        reads.append((start, duration))
        return samples_of(folder, "u1")[round(start * 16_000) : round((start + duration) * 16_000)]

    dataset = SpeechDataset(CorpusIndex.open(folder), standardize, whole_seconds=1.5, read=read)
    own = dataset.load(Item(1, start, 8_000, 0)).waveform_T
    first = min(max(start + 4_000 - 12_000, 0), 24_000)
    window = samples_of(folder, "u1").astype(np.float64)[first : first + 24_000]
    expected = ((window - window.mean()) / np.sqrt(window.var() + 1e-7))[start - first :][:8_000]
    np.testing.assert_allclose(own.numpy(), expected, atol=2e-6)
    assert reads == [(first / 16_000, 1.5)], "must not read the whole recording"


def test_without_normalisation_only_the_window_of_a_long_recording_is_read(tmp_path: Path) -> None:
    folder = speech_corpus(tmp_path / "c", [48_000] * 2)
    dataset = SpeechDataset(CorpusIndex.open(folder), whole_seconds=1.0)
    own = dataset.load(Item(1, 16_000, 8_000, 0)).waveform_T
    np.testing.assert_array_equal(own.numpy(), samples_of(folder, "u1")[16_000:24_000])


def test_other_rates_become_16_khz(tmp_path: Path) -> None:
    times = np.arange(22_050) / 22_050
    soundfile.write(tmp_path / "t.wav", 0.5 * np.sin(2 * np.pi * 440 * times), 22_050)
    write_cuts(tmp_path / "cuts.jsonl", [cut_fields("t", 1.0, rate=22_050)])
    own = SpeechDataset(CorpusIndex.open(tmp_path)).load(Item(0, 0, 16_000, 0)).waveform_T.numpy()
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert len(own) == 16_000
    np.testing.assert_allclose(own[800:-800], expected[800:-800], atol=0.01)


def test_what_cannot_be_used_is_left_out_and_named(tmp_path: Path) -> None:
    folder = speech_corpus(tmp_path / "c", [16_000] * 5)
    (folder / "u1.wav").write_bytes(b"<html>not found</html>")
    (folder / "u2.wav").unlink()
    soundfile.write(folder / "u3.wav", np.zeros(4_000), 16_000)
    dataset = SpeechDataset(CorpusIndex.open(folder))
    loaded = dataset[task(*(Item(row, 0, 16_000, row) for row in range(5)))]
    assert loaded.batch is not None
    assert loaded.batch.ids == ["u0", "u4"]
    assert [name for name, _ in loaded.rejected] == ["u1", "u2", "u3"]
    assert all(len(reason) > 10 for _, reason in loaded.rejected)


def test_samples_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = speech_corpus(tmp_path / "c", [16_000] * 2)

    def read(cut: object, *, sample_rate: int, start: float, duration: float) -> np.ndarray:
        return np.full(16_000, np.nan, dtype=np.float32)

    with pytest.raises(DataError, match="u0: has samples that are not finite"):
        SpeechDataset(CorpusIndex.open(folder), read=read).load(Item(0, 0, 16_000, 0))


def test_a_bin_of_which_nothing_is_left_gets_the_next_usable_utterance(tmp_path: Path) -> None:
    folder = speech_corpus(tmp_path / "c", [16_000] * 5)
    for name in ("u1", "u2"):
        (folder / f"{name}.wav").unlink()
    dataset = SpeechDataset(CorpusIndex.open(folder))
    loaded = dataset[task(Item(1, 0, 8_000, 0))]
    assert loaded.batch is not None
    assert loaded.batch.ids == ["u3"]
    assert loaded.batch.audio.sizes == [8_000]
    assert [name for name, _ in loaded.rejected] == ["u1"]
    for path in folder.glob("*.wav"):
        path.unlink()
    loaded = dataset[task(Item(1, 0, 8_000, 0))]
    assert loaded.batch is None
    assert "is the storage there" in loaded.failure


def test_labels_are_cropped_with_the_audio(tmp_path: Path) -> None:
    """Label k stands for frame k of the whole utterance, so a crop that begins at frame f must begin with label f."""
    folder = speech_corpus(tmp_path / "c", [32_000, 16_000])
    sizes = [HOP_20_MS.num_frames(n) for n in (32_000, 16_000)]
    assert sizes == [99, 49]
    units = UnitTable.write(
        tmp_path / "units", [("u1", range(49)), ("u0", range(99))], geometry=HOP_20_MS, num_units=100
    )
    assert units.labels("u0").tolist() == list(range(99))
    dataset = SpeechDataset(CorpusIndex.open(folder), units=units, num_frames=HOP_20_MS.num_frames)
    loaded = dataset[task(Item(0, 12_800, 16_000, 0), Item(1, 0, 16_000, 0), Item(0, 16_000, 16_000, 0))]
    assert loaded.batch is not None
    assert loaded.batch.units is not None
    crops = [part.tolist() for part in loaded.batch.units.split()]
    assert crops == [list(range(40, 89)), list(range(49)), list(range(50, 99))]


def test_labels_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    units = UnitTable.write(tmp_path / "units", [("u0", [1, 2, 3] * 10)], geometry=HOP_20_MS, num_units=4)
    assert units.crop("u0", 0, 32).tolist() == [1, 2, 3] * 10 + [3, 3], "up to two frames at an end have the last label"
    with pytest.raises(DataError, match="made at another rate"):
        units.crop("u0", 0, 33)
    with pytest.raises(DataError, match="has no labels of u1"):
        units.labels("u1")
    with pytest.raises(DataError, match="must lie in 0 … 3"):
        UnitTable.write(tmp_path / "bad", [("u0", [4])], geometry=HOP_20_MS, num_units=4)
    with pytest.raises(DataError, match="labelled twice"):
        UnitTable.write(tmp_path / "twice", [("u0", [1]), ("u0", [1])], geometry=HOP_20_MS, num_units=4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["units"]
    (tmp_path / "units" / "units.json").write_text(json.dumps({"hop": 320}))
    with pytest.raises(DataError, match="not a table of units"):
        UnitTable(tmp_path / "units")
