"""Long recordings are cut at their silences."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_helpers import cut_of, make_cut, speechlike, write
from isogloss.core.errors import ConfigError, MissingExtraError
from isogloss.data.audio import read_audio
from isogloss.data.segment import FRAME, SAMPLE_RATE, SegmentSettings, energy_scores, find_segments, segment

STEP = FRAME / SAMPLE_RATE
SHORT = SegmentSettings(min_seconds=0.3, max_seconds=2.0)


def _long(tmp_path: Path, rate: int = 16_000) -> tuple[Path, list[tuple[float, float]]]:
    rng = np.random.default_rng(0)
    pieces, spoken, place = [], [], 0.0
    for number, (gap, length) in enumerate([(0.5, 1.0), (0.8, 1.5), (0.6, 0.7), (1.2, 1.8), (0.9, 5.0), (0.7, 1.0)]):
        pieces += [np.zeros(round(gap * rate)), speechlike(length, number, rate)]
        spoken.append((place + gap, place + gap + length))
        place += gap + length
    samples = np.concatenate([*pieces, np.zeros(rate // 2)])
    return write(tmp_path / "long.flac", samples + rng.normal(0, 1e-3, len(samples)), rate), spoken


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_energy_keeps_speech_and_leaves_silence(tmp_path: Path, rate: int) -> None:
    path, spoken = _long(tmp_path, rate)
    whole = cut_of(path, language="mdw", speaker="s1", text="the whole text", custom={"license": "CC0", "sha256": "x"})
    seen: list[float] = []
    report = segment([whole], settings=SHORT, method="energy", progress=lambda done, total: seen.append(done / total))
    times = [(cut.start, cut.start + cut.duration) for cut in report.cuts]
    assert report.method == "energy"
    assert seen == [1.0]
    assert all(0.3 <= end - start <= 2.0 + 1e-6 for start, end in times)
    assert all(b[0] >= a[1] - 1e-6 for a, b in itertools.pairwise(times)), "no sample is in two cuts"
    grid = np.arange(0, whole.duration, 0.01)
    is_spoken = np.any([(a <= grid) & (grid < b) for a, b in spoken], axis=0)
    is_kept = np.any([(a <= grid) & (grid < b) for a, b in times], axis=0)
    assert (is_kept & is_spoken).sum() / is_spoken.sum() > 0.97
    assert (is_kept & ~is_spoken).sum() / (~is_spoken).sum() < 0.45  # padding of 0.1 s on both sides
    first = report.cuts[0]
    assert first.id == f"long-{round(first.start * 1000):08d}"
    assert (first.supervisions[0].speaker, first.supervisions[0].language, first.supervisions[0].text) == (
        "s1",
        "mdw",
        None,
    )
    assert first.custom == {"source": "test", "license": "CC0"}
    samples = read_audio(first)
    assert len(samples) == round(first.duration * 16_000)
    np.testing.assert_allclose(
        samples[100:-100], read_audio(path, start=first.start, duration=first.duration)[100:-100], atol=1e-6
    )


def test_silero_agrees_that_tones_are_not_speech_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("silero_vad")
    path, _ = _long(tmp_path)
    report = segment([cut_of(path)], settings=SHORT, method="silero")
    assert report.method == "silero"
    assert report.seconds_out < 0.5 * report.seconds_in
    assert report.seconds_in == pytest.approx(cut_of(path).duration)


def test_auto_falls_back_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "silero_vad", None)
    path, _ = _long(tmp_path)
    report = segment([cut_of(path)], settings=SHORT)
    assert report.method == "energy"
    assert "silero-vad is not installed" in report.note
    with pytest.raises(MissingExtraError, match=r"isogloss\[vad\]"):
        segment([cut_of(path)], method="silero")


def test_short_cuts_are_kept_with_their_text_and_unreadable_ones_are_named(tmp_path: Path) -> None:
    short = cut_of(write(tmp_path / "a.wav", speechlike(1.0)), text="all of it")
    report = segment([short, make_cut("gone", seconds=30.0)], settings=SHORT, method="energy")
    assert report.cuts == [short]
    assert [(item.id, item.verdict) for item in report.rejected] == [("gone", "missing")]
    assert report.seconds_in == 31.0


def test_windows_of_a_minute_make_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = _long(tmp_path)
    whole = segment([cut_of(path)], settings=SHORT, method="energy").cuts
    monkeypatch.setattr("isogloss.data.segment._WINDOW_SECONDS", 25 * STEP)
    assert [cut.to_dict() for cut in segment([cut_of(path)], settings=SHORT, method="energy").cuts] == [
        cut.to_dict() for cut in whole
    ]


def test_a_recording_without_contrast_is_all_speech() -> None:
    assert energy_scores(np.full(100, -20.0, np.float32)).all()
    levels = np.full(200, -60.0, np.float32)
    levels[50:150] = -20.0
    assert np.flatnonzero(energy_scores(levels)).tolist() == list(range(50, 150))


def test_segments_by_hand() -> None:
    scores = np.zeros(round(10 / STEP), np.float32)
    scores[round(1 / STEP) : round(2 / STEP)] = 1
    scores[round(2.1 / STEP) : round(3 / STEP)] = 1  # a pause that does not count
    scores[round(6 / STEP) : round(6.1 / STEP)] = 1  # too short to be speech
    found = find_segments(scores, 10.0, SegmentSettings(min_seconds=0.5, max_seconds=5.0))
    assert found == [(pytest.approx(0.9, abs=STEP), pytest.approx(3.1, abs=STEP))]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=400), st.floats(0.05, 1.0), st.floats(1.5, 6.0))
def test_segments_of_any_scores_are_in_order_within_bounds(
    scores: list[float], shortest: float, longest: float
) -> None:
    chosen = SegmentSettings(min_seconds=shortest, max_seconds=longest)
    duration = len(scores) * STEP
    found = find_segments(np.array(scores, np.float32), duration, chosen)
    last = 0.0
    for start, end in found:
        assert last - 1e-9 <= start < end <= duration + 1e-9
        assert shortest <= end - start <= longest + 1e-9
        last = end


def test_impossible_settings() -> None:
    with pytest.raises(ConfigError, match="below `max_seconds`"):
        SegmentSettings(min_seconds=5, max_seconds=4)
    with pytest.raises(ConfigError, match="negative"):
        SegmentSettings(padding=-1)
    with pytest.raises(ConfigError, match="auto, silero or energy"):
        segment([], method="webrtc")  # type: ignore[arg-type]
