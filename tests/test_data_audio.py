"""One decoder: formats, rates, channels, windows, and what it refuses."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import AudioSource, Recording

from data_helpers import FORMATS, cut_of, speechlike, write
from isogloss.core.errors import DataError
from isogloss.data import audio
from isogloss.data._paths import from_printable, printable
from isogloss.data.audio import (
    AudioError,
    inspect_audio,
    read_audio,
    read_blocks,
    read_cut,
    sha256_of_recording,
    sha256_of_samples,
)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_rate_and_channel_count(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    mono = speechlike(0.8, rate=rate)
    path = write(tmp_path / f"a.{suffix}", np.repeat(mono[:, None], channels, axis=1), rate)
    samples = read_audio(path)
    assert samples.dtype == np.float32
    assert len(samples) == 12_800
    expected = audio.resample(mono, rate, 16_000)
    error = np.abs(samples - expected)[800:-800]  # lossy coders ring at the ends
    assert error.max() < {"wav": 1e-4, "flac": 1e-4}.get(suffix, 0.1)
    header = inspect_audio(path)
    assert (header.sample_rate, header.num_channels, header.num_samples) == (rate, channels, len(mono))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_window_is_a_slice_of_the_whole(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", speechlike(5.0))
    whole = read_audio(path)
    for start, length in ((0.0, 0.5), (1.2345, 0.3), (4.0, 1.0), (3.99, 0.01)):
        window = read_audio(path, start=start, duration=length)
        first = round(start * 16_000)
        # mpg123 seeks to the sample, but adds in another order
        np.testing.assert_allclose(window, whole[first : first + round(length * 16_000)], atol=1e-6)


@pytest.mark.parametrize(("rate", "wanted"), [(44_100, 16_000), (11_025, 16_000), (16_000, 8_000), (22_050, 16_000)])
def test_resampling_gives_the_rounded_length_and_the_same_tone(rate: int, wanted: int) -> None:
    for n in (1, 2, 777, 44_101):
        tone = np.sin(2 * np.pi * 440 * np.arange(n) / rate).astype(np.float32)
        result = audio.resample(tone, rate, wanted)
        assert len(result) == max(1, int(n * wanted / rate + 0.5))
    expected = np.sin(2 * np.pi * 440 * np.arange(len(result)) / wanted)
    assert np.abs(result - expected)[200:-200].max() < 1e-3


def test_channels_are_averaged_unless_the_cut_names_one_of_several(tmp_path: Path) -> None:
    left, right = speechlike(0.2, 1), speechlike(0.2, 2)
    path = write(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path), (left + right) / 2, atol=1e-7)
    assert cut_of(path).recording.num_channels == 1, "one channel that is the mean"
    np.testing.assert_allclose(read_cut(cut_of(path)), (left + right) / 2, atol=1e-7)
    both = Recording("r", [AudioSource("file", [0, 1], str(path))], 16_000, len(left), len(left) / 16_000)
    from lhotse import MonoCut

    for channel, expected in ((0, left), (1, right)):
        np.testing.assert_array_equal(read_cut(MonoCut("c", 0.0, 0.2, channel, recording=both)), expected)


def test_bytes_and_cuts_of_bytes_are_read_like_files(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", speechlike())
    cut = cut_of(path)
    cut.recording.sources[0].type, cut.recording.sources[0].source = "memory", path.read_bytes()
    np.testing.assert_array_equal(read_audio(cut), read_audio(path))
    np.testing.assert_array_equal(read_audio(path.read_bytes()), read_audio(path))
    assert inspect_audio(path.read_bytes()) == inspect_audio(path)


def test_a_window_of_a_cut_counts_from_the_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", speechlike(2.0))
    cut = cut_of(path, start=0.5, duration=1.0)
    np.testing.assert_array_equal(read_audio(cut, start=0.25, duration=0.5), read_audio(path)[12_000:20_000])
    with pytest.raises(AudioError, match="not within"):
        read_audio(cut, start=0.9, duration=0.5)


def test_a_window_may_end_25_ms_behind_the_file_and_no_more(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", speechlike(0.5))
    samples = read_audio(path, start=0.4, duration=0.12)
    assert len(samples) == 1920
    assert not samples[1600:].any()
    with pytest.raises(AudioError, match=r"ends at 0\.500 s, but the cut goes to 0\.540 s"):
        read_audio(path, start=0.4, duration=0.14)


@pytest.mark.parametrize("start", [-0.1, float("nan"), float("inf")])
def test_impossible_windows(tmp_path: Path, start: float) -> None:
    with pytest.raises(AudioError, match="window"):
        read_audio(write(tmp_path / "a.wav", speechlike()), start=start, duration=0.1)


def test_the_hash_is_of_the_content_and_not_of_the_container(tmp_path: Path) -> None:
    pcm = np.round(speechlike() * 32767).astype(np.int16)
    hashes = {sha256_of_recording(write(tmp_path / f"a.{suffix}", pcm)) for suffix in ("wav", "flac", "aiff", "au")}
    assert hashes == {hashlib.sha256(pcm.astype("<i2").tobytes()).hexdigest()}
    assert sha256_of_samples(read_audio(tmp_path / "a.flac")) in hashes
    pcm[5] += 1
    assert sha256_of_recording(write(tmp_path / "b.flac", pcm)) not in hashes


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("seconds", [0.99, 1.0, 1.01])
def test_blocks_and_late_windows_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, seconds: float
) -> None:
    """soundfile seeks after each read, after which MP3 and Opus go on with other samples; ours must not."""
    path = write(tmp_path / f"a.{suffix}", speechlike(seconds))
    whole = read_audio(path)
    for samples in (1, 160, 330, 1_000):
        np.testing.assert_allclose(
            read_audio(path, start=seconds - samples / 16_000, duration=samples / 16_000), whole[-samples:], atol=1e-6
        )
    for size in (333, 999, 4_096):
        monkeypatch.setattr(audio, "_BLOCK_SAMPLES", size)
        blocks = list(read_blocks(path))
        assert len(blocks) > 2
        np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_a_recording_too_long_for_one_read_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.flac", speechlike(1.0))
    monkeypatch.setattr(audio, "MAX_READ_SAMPLES", 8_000)
    with pytest.raises(AudioError, match="corpus segment"):
        read_audio(path)
    assert len(read_audio(path, start=0.6, duration=0.4)) == 6_400


def test_descriptors_are_closed(tmp_path: Path) -> None:
    good = write(tmp_path / "a.wav", speechlike())
    bad = tmp_path / "b.wav"
    bad.write_bytes(b"<html>")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        read_audio(good)
        with pytest.raises(AudioError):
            read_audio(bad)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_link_to_a_recording_is_followed(tmp_path: Path) -> None:
    path = write(tmp_path / "store" / "a.wav", speechlike())
    (tmp_path / "b.wav").symlink_to(path)
    np.testing.assert_array_equal(read_audio(tmp_path / "b.wav"), read_audio(path))


@pytest.mark.parametrize(
    "name",
    ["a b.wav", "a'\"b.wav", "a;touch X;.wav", "$(touch X).wav", "a\nb.wav", "😀.wav", "عرب.wav", "back\\slash.wav"],
)
def test_any_name_of_a_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "plain.wav", speechlike()).rename(tmp_path / name)
    assert len(read_audio(path)) == 8_000
    assert printable(path).isprintable()
    assert from_printable(printable(path)) == str(path)


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    path = Path(os.fsdecode(raw))
    write(tmp_path / "plain.wav", speechlike()).rename(path)
    assert len(read_audio(path)) == 8_000
    shown = printable(path)
    assert shown.endswith("caf\\xe9.wav")
    shown.encode("utf-8")
    assert os.fsencode(from_printable(shown)) == raw
    path.write_bytes(b"no audio")
    with pytest.raises(DataError, match=r"caf\\xe9\.wav"):
        read_audio(path)


def test_hour_long_files_are_read_by_windows(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 8_000, 1) as file:
        minute = speechlike(60.0, rate=8_000)
        for _ in range(20):
            file.write(minute)
    window = read_audio(path, sample_rate=8_000, start=1_100.0, duration=1.0)
    np.testing.assert_allclose(window, minute[20 * 8_000 : 21 * 8_000], atol=1e-4)
