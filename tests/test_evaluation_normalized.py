"""Normalisation over a recording."""

from __future__ import annotations

import numpy as np

from isogloss.evaluation.normalized import NormalizedSource, normalize_rows
from isogloss.evaluation.spectral import SpectralSource


def test_gain_offset_and_constants_vanish() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 3)).astype(np.float32)
    values[:, 2] = 7.0
    out = normalize_rows(values)
    np.testing.assert_allclose(out[:, :2].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(out[:, :2].std(0), 1, atol=1e-5)
    assert not out[:, 2].any()
    np.testing.assert_allclose(normalize_rows(3 * values + 5)[:, :2], out[:, :2], atol=1e-4)
    assert normalize_rows(np.zeros((0, 3))).shape == (0, 3)
    assert normalize_rows(values.astype(np.float16)).dtype == np.float32


def test_it_is_the_same_source_otherwise() -> None:
    source = SpectralSource("mel")
    normalized = NormalizedSource(source)
    assert (normalized.name, normalized.layers) == (source.name, source.layers)
    assert normalized.frame_rate_hz == source.frame_rate_hz
    assert normalized.first_center_seconds == source.first_center_seconds
