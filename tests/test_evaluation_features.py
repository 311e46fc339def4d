"""Features: the cache is keyed by content; log-mel and MFCC equal Lhotse's; frames have the times they claim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import Fbank, FbankConfig, MonoCut, Recording
from lhotse.audio import AudioSource
from lhotse.features.kaldi.extractors import Mfcc, MfccConfig

from isogloss.core.errors import ConfigError, DataError
from isogloss.encoders.base import Encoder
from isogloss.encoders.presets import build_encoder, preset
from isogloss.evaluation import features
from isogloss.evaluation.feature_cache import hash_encoder
from isogloss.evaluation.features import FeatureStore, extract_features, frame_centers, resolve_layers
from isogloss.evaluation.spectral import SpectralSource
from isogloss.nn.filterbank import deltas, log_mel, mfcc

RATE = 16_000


def make_cut(folder: Path, name: str, samples: np.ndarray) -> MonoCut:
    path = folder / f"{name}.wav"
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    duration = len(samples) / RATE
    recording = Recording(name, [AudioSource("file", [0], str(path))], RATE, len(samples), duration, channel_ids=[0])
    return MonoCut(name, 0.0, duration, 0, [], recording=recording)


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return build_encoder(preset("wave-tiny")).eval()


@pytest.fixture
def cuts(tmp_path: Path) -> list[MonoCut]:
    rng = np.random.default_rng(0)
    return [
        make_cut(tmp_path, f"cut{i}", rng.normal(size=n).astype(np.float32) * 0.1)
        for i, n in enumerate((16_000, 9_000, 12_345, 100))
    ]


def test_store_equals_the_encoder_on_each_cut_alone(encoder: Encoder, cuts: list[MonoCut], tmp_path: Path) -> None:
    seen: list[tuple[float, float]] = []
    store = extract_features(
        encoder, cuts, cache_dir=tmp_path / "cache", batch_seconds=1.7, progress=lambda a, b: seen.append((a, b))
    )
    assert store.layers == (0, 1, 2)
    assert store.too_short == ["cut3"]
    assert seen[-1][0] == pytest.approx(seen[-1][1])
    for cut in cuts[:3]:
        samples, _ = soundfile.read(cut.recording.sources[0].source, dtype="float32")
        with torch.no_grad():
            states = encoder([encoder.prepare(torch.from_numpy(samples))]).states
        for layer, state in enumerate(states):
            stored = store[cut.id, layer]
            assert isinstance(stored, np.memmap)
            assert stored.dtype == np.float16
            np.testing.assert_allclose(stored, state.values_ND.numpy(), rtol=2e-3, atol=2e-3)
    assert store.features(cuts[3])[1].shape == (0, encoder.width)


def test_second_extraction_reads_the_cache(
    encoder: Encoder, cuts: list[MonoCut], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract_features(encoder, cuts, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(features, "_encode", lambda *_: pytest.fail("encoded although cached"))
    # A cut with another name and the same samples is the same content.
    renamed = [cut.with_id(f"{cut.id}-again") for cut in cuts]
    second = extract_features(encoder, renamed, cache_dir=tmp_path / "cache", layers=[-1])
    np.testing.assert_array_equal(second["cut0-again", 2], first["cut0", 2])


def test_cache_forgets_when_weights_audio_or_window_change(
    encoder: Encoder, cuts: list[MonoCut], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = extract_features(encoder, cuts[:1], cache_dir=cache)["cut0", 2].copy()
    window = cuts[0].truncate(duration=0.5).with_id("window")
    assert len(extract_features(encoder, [window], cache_dir=cache)["window", 2]) < len(first)

    before = hash_encoder(encoder)
    with torch.no_grad():
        for value in encoder.parameters():
            value.view(-1)[0] += 0.5
    assert hash_encoder(encoder) != before
    assert not np.array_equal(extract_features(encoder, cuts[:1], cache_dir=cache)["cut0", 2], first)

    changed = make_cut(tmp_path, "cut0", np.random.default_rng(9).normal(size=16_000).astype(np.float32) * 0.1)
    again = extract_features(encoder, [changed], cache_dir=cache)["cut0", 2]
    fresh = extract_features(encoder, [changed])["cut0", 2]
    np.testing.assert_array_equal(again, fresh)


def test_a_shard_without_an_index_does_not_exist(encoder: Encoder, cuts: list[MonoCut], tmp_path: Path) -> None:
    extract_features(encoder, cuts[:1], cache_dir=tmp_path / "cache")
    for index in (tmp_path / "cache").rglob("*.json"):
        index.unlink()
    seen: list[float] = []
    extract_features(encoder, cuts[:1], cache_dir=tmp_path / "cache", progress=lambda done, _: seen.append(done))
    assert seen


def test_non_finite_states_are_named(encoder: Encoder, cuts: list[MonoCut]) -> None:
    with torch.no_grad():
        list(encoder.parameters())[-1].fill_(float("nan"))
    with pytest.raises(DataError, match=r"cut `cut\d` at layer"):
        extract_features(encoder, cuts)


def test_user_errors() -> None:
    assert resolve_layers(None, 2) == (0, 1, 2)
    assert resolve_layers([-1, 2, 0], 2) == (2, 0)
    with pytest.raises(ConfigError, match="must be in 0…2"):
        resolve_layers([3], 2)
    with pytest.raises(DataError, match="no features of cut `x` at layer 1"):
        FeatureStore("e", 50.0, 0.0125, (0,))["x", 1]
    with pytest.raises(ConfigError, match="`mel` or `mfcc`"):
        SpectralSource("cepstra")  # type: ignore[arg-type]


def test_frame_times_follow_an_impulse(tmp_path: Path) -> None:
    samples = np.random.default_rng(1).normal(size=RATE).astype(np.float32) * 1e-4
    samples[8_000] = 1.0
    cut = make_cut(tmp_path, "impulse", samples)
    source = SpectralSource("mel")
    energy_S = log_mel(torch.from_numpy(samples)).mean(1).numpy()
    loudest = frame_centers(source, len(energy_S))[energy_S >= np.quantile(energy_S, 0.99)]
    assert loudest.mean() == pytest.approx(0.5, abs=0.01)
    assert source.features(cut)[0].shape == (98, 80)


@pytest.mark.filterwarnings("ignore:.*snip_edges.*")
def test_log_mel_equals_lhotse() -> None:
    samples = np.random.default_rng(2).normal(size=12_000).astype(np.float32) * 0.1
    expected = Fbank(FbankConfig(snip_edges=True)).extract(samples, RATE)
    np.testing.assert_allclose(log_mel(torch.from_numpy(samples)).numpy(), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.filterwarnings("ignore:.*snip_edges.*")
def test_mfcc_equals_lhotse() -> None:
    samples = np.random.default_rng(3).normal(size=12_000).astype(np.float32) * 0.1
    expected = Mfcc(MfccConfig(snip_edges=True, use_energy=False, cepstral_lifter=22)).extract(samples, RATE)
    np.testing.assert_allclose(mfcc(torch.from_numpy(samples)).numpy()[:, :13], expected, rtol=1e-3, atol=5e-3)


def test_deltas_of_a_line_are_its_slope() -> None:
    line = torch.arange(20.0)[:, None] * 3.0
    torch.testing.assert_close(deltas(line)[2:-2], torch.full((16, 1), 3.0))


def test_short_and_silent_cuts_have_no_frames_or_finite_ones(tmp_path: Path) -> None:
    for name in ("mel", "mfcc"):
        source = SpectralSource(name)  # type: ignore[arg-type]
        assert len(source.features(make_cut(tmp_path, "short", np.zeros(300, np.float32)))[0]) == 0
        assert np.isfinite(source.features(make_cut(tmp_path, "silent", np.zeros(3000, np.float32)))[0]).all()
