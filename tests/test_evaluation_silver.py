"""The forced aligner finds where tones lie that it was told the order of only."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.supervision import AlignmentItem

from isogloss.core.errors import DataError
from isogloss.evaluation.aligner import AcousticModel, AlignerSettings
from isogloss.evaluation.labels import alignment_items, alignment_kind
from isogloss.evaluation.silver import align_silver, boundary_errors, words_of_alignment

RATE = 16_000
TONES = {"a": 300.0, "e": 800.0, "i": 1700.0, "o": 3200.0}


def tone_cut(folder: Path, name: str, seed: int) -> MonoCut:
    """Words of two or three tones with pauses between some of them, and their exact alignment."""
    rng = np.random.default_rng(seed)
    parts = [np.zeros(int(rng.integers(1600, 4800)))]
    phones, words = [], []
    time = len(parts[0]) / RATE
    for _ in range(3):
        first = time
        for _ in range(int(rng.integers(2, 4))):
            phone = str(rng.choice([p for p in TONES if not phones or p != phones[-1].symbol]))
            length = int(rng.integers(1600, 3200))
            parts.append(0.3 * np.sin(2 * np.pi * TONES[phone] * np.arange(length) / RATE))
            phones.append(AlignmentItem(phone, round(time, 5), round(length / RATE, 5)))
            time += length / RATE
        words.append(AlignmentItem("word", round(first, 5), round(time - first, 5)))
        pause = int(rng.choice([0, 4800]))
        parts.append(np.zeros(pause))
        time += pause / RATE
    samples = (np.concatenate(parts) + 0.003 * rng.normal(size=sum(map(len, parts)))).astype(np.float32)
    path = folder / f"{name}.wav"
    soundfile.write(path, samples, RATE)
    duration = len(samples) / RATE
    recording = Recording(name, [AudioSource("file", [0], str(path))], RATE, len(samples), duration, channel_ids=[0])
    supervision = SupervisionSegment(name, name, 0, duration, alignment={"phone": phones, "word": words})
    return MonoCut(name, 0.0, duration, 0, [supervision], recording=recording, custom={"alignment_kind": "synthetic"})


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> list[MonoCut]:
    folder = tmp_path_factory.mktemp("tones")
    return [tone_cut(folder, f"tone{i}", i) for i in range(40)]


def test_boundaries_are_found_from_sequences_alone(cuts: list[MonoCut]) -> None:
    settings = AlignerSettings(width=32, num_blocks=2, min_updates=200)
    wrong = "tone7"

    def words_of(cut: MonoCut) -> list[list[str]]:
        if cut.id == "tone5":
            return []
        if cut.id == "tone6":
            return [["a", "e"] * 200]
        return [["o", "o", "o", "o"]] * 3 if cut.id == wrong else words_of_alignment(cut)

    aligned, report = align_silver(cuts, words_of, settings=settings)
    assert (report.without_phones, report.too_short) == (["tone5"], ["tone6"])
    assert wrong in report.unfit
    assert len(report.unfit) <= 3
    assert report.num_aligned == len(aligned) == 38 - len(report.unfit)
    assert alignment_kind(aligned) == "silver"
    assert alignment_kind(cuts) == "synthetic"  # the cuts given are untouched
    errors = boundary_errors(cuts, aligned)
    assert errors.num_boundaries == report.num_phones
    assert errors.within_50ms > 0.95
    assert errors.median < 0.02
    for cut in aligned:
        items = alignment_items(cut)
        assert all(item.duration > 0 for item in items)
        assert all(b.start >= a.end - 1e-3 for a, b in itertools.pairwise(items))
        assert items[-1].end <= cut.duration + 1e-3
        assert [len(w.symbol.split()) for w in alignment_items(cut, "word")] == [
            len(w) for w in words_of_alignment(cut)
        ]
    # Pauses of 0.3 s stay outside phones.
    longest = max(item.duration for cut in aligned for item in alignment_items(cut))
    assert longest < 0.4


def test_acoustic_model_does_not_see_its_neighbours() -> None:
    torch.manual_seed(0)
    model = AcousticModel(3, 16, 2)
    mels = [torch.randn(n, 80) for n in (31, 8, 50)]
    together = model(mels).split()
    for mel, part in zip(mels, together, strict=True):
        torch.testing.assert_close(part, model([mel]).values_ND, rtol=1e-4, atol=1e-5)


def test_boundary_errors_by_hand(cuts: list[MonoCut]) -> None:
    def cut(starts: list[float], symbols: str = "aei") -> MonoCut:
        items = [AlignmentItem(s, t, 0.05) for s, t in zip(symbols, starts, strict=True)]
        return MonoCut("c", 0, 1, 0, [SupervisionSegment("c", "c", 0, 1, alignment={"phone": items})])

    errors = boundary_errors([cut([0.1, 0.3, 0.5])], [cut([0.2, 0.4, 0.63])])
    assert (errors.num_boundaries, errors.within_20ms, errors.within_50ms) == (3, 0.0, 0.0)
    assert errors.offset == pytest.approx(0.1)
    assert errors.centred_within_20ms == pytest.approx(2 / 3)
    assert errors.centred_within_50ms == 1.0
    with pytest.raises(DataError, match="other phones"):
        boundary_errors([cut([0.1, 0.3, 0.5])], [cut([0.1, 0.3, 0.5], "aeo")])


def test_nothing_to_align_is_told(cuts: list[MonoCut]) -> None:
    with pytest.raises(DataError, match="none of 2 cuts can be aligned.*espeak-ng no voice"):
        align_silver(cuts[:2], lambda _: [])
