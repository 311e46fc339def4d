from __future__ import annotations

import math
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

import reference_abx as reference
from isogloss.core.errors import ConfigError, DataError
from isogloss.evaluation._dtw import MAX_FRAMES, dtw
from isogloss.evaluation.abx import (
    AbxItem,
    abx,
    common_items,
    items_from_cuts,
    paired_difference,
    token_frames,
)

RATE = 50


def speech(
    seed: int, *, speakers: int, utterances: int, phones: int = 4, per_utterance: int = 8, width: int = 5
) -> tuple[list[AbxItem], dict[str, np.ndarray]]:
    """Random features that lean towards a mean of their phone, and tokens of 1 to 5 frames."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(phones, width))
    items, features = [], {}
    for u in range(utterances):
        who, clip = f"s{u % speakers}", f"u{u}"
        chosen = rng.integers(phones, size=per_utterance)
        lengths = rng.integers(1, 6, size=per_utterance)
        values = rng.normal(size=(int(lengths.sum()), width)) + np.repeat(means[chosen], lengths, axis=0)
        if u == 1:
            values[2] = 0.0  # a dead frame
        features[clip] = values.astype(np.float32)
        ends = np.cumsum(lengths)
        names = [f"p{c}" for c in chosen]
        for k in range(per_utterance):
            # A quarter of a frame inside the borders, so that no centre falls on one.
            onset, offset = (ends[k] - lengths[k] + 0.25) / RATE, (ends[k] - 0.25) / RATE
            prev = names[k - 1] if k else "SIL"
            following = names[k + 1] if k + 1 < per_utterance else "SIL"
            inside = 0 < k < per_utterance - 1
            triphone = (float(ends[k - 2] if k > 1 else 0.0) / RATE, float(ends[k + 1]) / RATE) if inside else None
            items.append(AbxItem(clip, float(onset), float(offset), names[k], prev, following, who, triphone))
    return items, features


def frames_of(items: list[AbxItem], features: dict[str, np.ndarray], context: Any) -> list[np.ndarray]:
    spans = [item.span(context) for item in items]
    return [
        features[item.id][slice(*token_frames(*span, RATE, 0.5 / RATE))].astype(np.float64)
        for item, span in zip(items, spans, strict=True)
        if span is not None
    ]


@pytest.mark.parametrize("distance", ["angular", "euclidean"])
@pytest.mark.parametrize("context", ["triphone", "phone", "any"])
@pytest.mark.parametrize("speaker", ["within", "across"])
def test_equals_the_slow_reference_cell_by_cell(speaker: Any, context: Any, distance: Any) -> None:
    size, phones = (5, 3) if context == "any" else (10, 2)
    items, features = speech(3, speakers=3, utterances=size, phones=phones)
    result = abx(
        items,
        features,
        frame_rate_hz=RATE,
        speaker=speaker,
        context=context,
        distance=distance,
        max_tokens=None,
        max_x_speakers=None,
        resamples=10,
    )
    if context == "triphone":
        assert result.num_skipped == sum(item.triphone is None for item in items) > 0
        items = [item for item in items if item.triphone]
    frames = frames_of(items, features, context)
    assert min(map(len, frames)) >= (3 if context == "triphone" else 1)
    cells = reference.abx_cells(items, frames, speaker=speaker, context=context, distance=distance)
    got = {
        (r["phone_a"], r["phone_b"], r["prev"], r["next"], r["speaker"], r["speaker_x"]): (
            r["error"],
            r["num_triplets"],
        )
        for r in result.cell_table()
    }
    assert got.keys() == cells.keys()
    assert len(cells) > 10
    for key, (error, count) in cells.items():
        assert got[key] == (pytest.approx(error, abs=1e-12), count), key
    assert result.error.value == pytest.approx(reference.collapse(cells), abs=1e-12)
    assert 0 < result.error.value < 0.5


def test_dtw_equals_the_slow_reference_on_every_shape() -> None:
    rng = np.random.default_rng(0)
    shapes = [(r, c) for c in range(1, 12) for r in range(1, c + 1)] * 3 + [
        (3, 70),
        (60, 61),
        (1, MAX_FRAMES),
        (2, MAX_FRAMES),
    ]
    matrices = [rng.random(shape).astype(np.float32) for shape in shapes]
    matrices[5] = np.zeros_like(matrices[5])
    matrices += [rng.integers(0, 2, (6, 8)).astype(np.float32) for _ in range(30)]  # many ties
    order = rng.permutation(len(matrices))
    matrices = [matrices[k] for k in order]
    starts = np.cumsum([0, *(m.size for m in matrices)])[:-1]
    got = dtw(
        np.concatenate([m.ravel() for m in matrices]),
        starts,
        np.array([[m.shape[1], 1] for m in matrices]),
        np.array([m.shape for m in matrices]),
    )
    expected = [reference.dtw(m.astype(np.float64)) for m in matrices]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def gaussians(delta: float, size: int, seed: int) -> tuple[list[AbxItem], dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    items, features = [], {}
    for phone, mean in (("a", 0.0), ("b", delta)):
        features[phone] = rng.normal(mean, 1, (size, 1)).astype(np.float32)
        items += [AbxItem(phone, (k + 0.4) / RATE, (k + 0.6) / RATE, phone, "SIL", "SIL", "s") for k in range(size)]
    return items, features


@pytest.mark.parametrize("delta", [0.0, 1.0, 2.0, 4.0])
def test_gaussians_have_the_closed_form(delta: float) -> None:
    phi = NormalDist().cdf
    expected = phi(delta / 2**0.5) * phi(delta / 6**0.5) + phi(-delta / 2**0.5) * phi(-delta / 6**0.5)
    scores = []
    for seed in range(8):
        items, features = gaussians(delta, 150, seed)
        result = abx(items, features, frame_rate_hz=RATE, context="any", distance="euclidean", max_tokens=None)
        scores.append(1 - result.error.value)
    # 8 draws of 2×150 points: the standard error of the mean is below 0.004 (largest near δ = 1 … 2).
    assert np.mean(scores) == pytest.approx(expected, abs=0.013)
    if delta == 0:
        assert expected == 0.5


def test_features_that_say_nothing_score_exactly_one_half() -> None:
    items, features = speech(1, speakers=2, utterances=8)
    flat = {key: np.ones_like(values) * 0.37 for key, values in features.items()}
    for speaker in ("within", "across"):
        for distance in ("angular", "euclidean"):
            result = abx(items, flat, frame_rate_hz=RATE, speaker=speaker, context="any", distance=distance)  # type: ignore[arg-type]
            assert set(result.cells.errors) == {0.5}


def test_reversing_time_in_all_tokens_changes_nothing() -> None:
    items, features = speech(5, speakers=2, utterances=10)
    length = max(len(values) for values in features.values())
    padded = {key: np.pad(values, ((0, length - len(values)), (0, 0))) for key, values in features.items()}
    end = length / RATE
    mirrored = [item._replace(onset=end - item.offset, offset=end - item.onset) for item in items]
    backward = {key: values[::-1] for key, values in padded.items()}
    forward_result = abx(items, padded, frame_rate_hz=RATE, context="any", max_tokens=None)
    backward_result = abx(mirrored, backward, frame_rate_hz=RATE, context="any", max_tokens=None)
    np.testing.assert_allclose(forward_result.cells.errors, backward_result.cells.errors, atol=1e-12)


def test_the_order_of_tokens_does_not_matter_with_caps() -> None:
    items, features = speech(2, speakers=7, utterances=42, phones=3)
    shuffled = [items[k] for k in np.random.default_rng(0).permutation(len(items))]
    settings: dict[str, Any] = {"frame_rate_hz": RATE, "speaker": "across", "context": "any", "resamples": 50}
    one = abx(items, features, max_tokens=4, max_x_speakers=2, **settings)
    two = abx(shuffled, features, max_tokens=4, max_x_speakers=2, **settings)
    other_seed = abx(items, features, max_tokens=4, max_x_speakers=2, seed=1, **settings)
    assert one.cell_table() == two.cell_table()
    assert one.cell_table() != other_seed.cell_table()
    assert one.num_capped > 0
    assert one.num_items <= 7 * 3 * 4
    assert max(row["num_triplets"] for row in one.cell_table()) <= 4**3
    partners: dict[tuple[str, str], set[str]] = {}
    for row in one.cell_table():
        partners.setdefault((row["phone_a"], row["speaker"]), set()).add(row["speaker_x"])
    assert max(map(len, partners.values())) == 2


def test_large_units_in_row_tiles_equal_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    items, features = speech(8, speakers=3, utterances=12)
    for speaker in ("within", "across"):
        settings: dict[str, Any] = {"frame_rate_hz": RATE, "context": "any", "max_tokens": None, "speaker": speaker}
        whole = abx(items, features, **settings)
        with monkeypatch.context() as patch:
            patch.setattr("isogloss.evaluation._abx_distances._FLUSH_CELLS", 300)
            patch.setattr("isogloss.evaluation._abx_distances._TILE_ROWS", 9)
            tiled = abx(items, features, **settings)
        np.testing.assert_allclose(whole.cells.errors, tiled.cells.errors, atol=1e-12)


@pytest.mark.parametrize(
    ("onset", "offset"), [("0.03", "0.09"), ("0.010", "0.050"), ("0.1", "0.3"), ("0.041", "0.049")]
)
@pytest.mark.parametrize("rate", [50, 100])
def test_frames_of_a_token_by_exact_arithmetic(onset: str, offset: str, rate: int) -> None:
    expected = reference.frames(onset, offset, rate)
    first, end = token_frames(float(onset), float(offset), rate, 0.5 / rate)
    assert list(range(first, end)) == expected
    first, end = token_frames(float(onset), float(offset), rate, 0.5 / rate, drop_last=True)
    assert list(range(first, end)) == expected[:-1]
    # An encoder whose first centre lies elsewhere: the same rule about its own centres.
    first, end = token_frames(float(onset) + 0.0025, float(offset) + 0.0025, rate, 0.5 / rate + 0.0025)
    assert list(range(first, end)) == expected


def test_interval_by_jackknife_is_each_utterance_group_left_out() -> None:
    items, features = speech(4, speakers=2, utterances=6)
    result = abx(items, features, frame_rate_hz=RATE, context="any", max_tokens=None)
    assert result.error.unit == "utterance"
    assert result.error.num_units == 6
    assert "only 2 speakers" in result.error.caveat
    assert len(result.replicates) == 6
    left_out = []
    for clip in features:
        rest = [item for item in items if item.id != clip]
        left_out.append(abx(rest, features, frame_rate_hz=RATE, context="any", max_tokens=None).error.value)
    np.testing.assert_allclose(sorted(result.replicates), sorted(left_out), atol=1e-12)
    assert result.error.low < result.error.value < result.error.high


def test_interval_by_speakers_repeats_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resample that draws speaker s twice weighs its cells twice: against a loop over resamples and cells."""
    from isogloss.evaluation.bootstrap import resample_weights

    items, features = speech(6, speakers=6, utterances=18, phones=3)
    for speaker in ("within", "across"):
        result = abx(items, features, frame_rate_hz=RATE, context="any", speaker=speaker, resamples=25, seed=3)  # type: ignore[arg-type]
        assert result.error.unit == "speaker"
        assert result.error.num_units == 6
        with monkeypatch.context() as patch:
            patch.setattr("isogloss.evaluation._abx_collapse._DENSE", 0)
            patch.setattr("isogloss.evaluation._abx_collapse._CHUNK", 100)
            sparse = abx(items, features, frame_rate_hz=RATE, context="any", speaker=speaker, resamples=25, seed=3)  # type: ignore[arg-type]
        np.testing.assert_allclose(sparse.replicates, result.replicates, atol=1e-12)
        weights = resample_weights(6, 25, 3)
        for drawn, value in zip(weights, result.replicates, strict=True):
            weight = {f"s{k}": w for k, w in enumerate(drawn)}
            by_pair: dict[tuple[str, str], list[tuple[float, float]]] = {}
            for row in result.cell_table():
                w = weight[row["speaker"]] * (weight[row["speaker_x"]] if speaker == "across" else 1)
                by_pair.setdefault((row["phone_a"], row["phone_b"]), []).append((row["error"], w))
            means = [sum(e * w for e, w in p) / sum(w for _, w in p) for p in by_pair.values() if sum(w for _, w in p)]
            assert value == pytest.approx(np.mean(means), abs=1e-12)


@pytest.mark.parametrize("speakers", [2, 8])
def test_paired_difference_sees_what_two_intervals_cannot(speakers: int) -> None:
    items, features = speech(7, speakers=speakers, utterances=24)
    rng = np.random.default_rng(0)
    noisy = {key: values + rng.normal(0, 1.5, values.shape).astype(np.float32) for key, values in features.items()}
    settings: dict[str, Any] = {"frame_rate_hz": RATE, "context": "any"}
    a, b = abx(items, features, **settings), abx(items, noisy, **settings)
    difference = paired_difference(a, b)
    assert difference.value == pytest.approx(a.error.value - b.error.value)
    assert difference.high < 0
    same = paired_difference(a, a)
    assert (same.low, same.value, same.high) == (0, 0, 0)
    with pytest.raises(DataError, match="same tokens"):
        paired_difference(a, abx(items[:-20], features, **settings))


def test_tokens_without_a_frame_are_counted_and_common_items_agree() -> None:
    items, features = speech(9, speakers=2, utterances=8)
    tiny = [items[0]._replace(onset=0.0101, offset=0.0102, phone="p9")]
    result = abx(items + tiny, features, frame_rate_hz=RATE, context="any")
    assert result.num_skipped == 1
    coarse = {key: values[::2] for key, values in features.items()}
    kept = common_items(items + tiny, [(features, RATE, None), (coarse, RATE / 2, None)])
    assert 0 < len(kept) < len(items)
    fine_result = abx(kept, features, frame_rate_hz=RATE, context="any")
    coarse_result = abx(kept, coarse, frame_rate_hz=RATE / 2, context="any")
    assert math.isfinite(paired_difference(fine_result, coarse_result).value)


def test_errors_name_the_cause() -> None:
    items, features = speech(1, speakers=2, utterances=4)
    with pytest.raises(ConfigError, match="`speaker` must be `within` or `across`"):
        abx(items, features, frame_rate_hz=RATE, speaker="both")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no features of `u0`"):
        abx(items, {}, frame_rate_hz=RATE)
    with pytest.raises(DataError, match="no ABX cell"):
        abx(items[:1], features, frame_rate_hz=RATE, context="any")
    with pytest.raises(DataError, match="none of the 1 phone tokens is a triphone"):
        abx(items[:1], features, frame_rate_hz=RATE)
    with pytest.raises(DataError, match="no ABX cell"):
        abx([i for i in items if i.speaker == "s0"], features, frame_rate_hz=RATE, speaker="across", context="any")
    long = AbxItem("long", 0.0, 5000 / RATE, "p0", "SIL", "SIL", "s0")
    with pytest.raises(DataError, match="has 5000 frames, more than 4096"):
        abx([*items, long], {**features, "long": np.ones((6000, 5), np.float32)}, frame_rate_hz=RATE, context="any")
    broken = {**features, "u1": features["u1"] * np.nan}
    with pytest.raises(DataError, match="features of `u1` are not finite"):
        abx(items, broken, frame_rate_hz=RATE)


@dataclass
class FakePhone:
    symbol: str
    start: float
    duration: float


@dataclass
class FakeSupervision:
    alignment: dict[str, list[FakePhone]] | None
    speaker: str | None = "ann"


@dataclass
class FakeCut:
    id: str
    supervisions: list[FakeSupervision] = field(default_factory=list)


def test_items_from_cuts_know_their_neighbours() -> None:
    phones = [
        FakePhone("SIL", 0.0, 0.1),
        FakePhone("k", 0.1, 0.05),
        FakePhone("a", 0.15, 0.1),
        FakePhone("t", 0.25, 0.05),
        FakePhone("o", 0.5, 0.1),  # after a hole of 0.2 s
    ]
    cuts = [FakeCut("c", [FakeSupervision({"phone": phones})]), FakeCut("d", [FakeSupervision(None, None)])]
    assert items_from_cuts(cuts) == [
        AbxItem("c", 0.1, pytest.approx(0.15), "k", "SIL", "a", "ann"),
        AbxItem("c", 0.15, 0.25, "a", "k", "t", "ann", (0.1, pytest.approx(0.3))),
        AbxItem("c", 0.25, pytest.approx(0.3), "t", "a", "SIL", "ann"),
        AbxItem("c", 0.5, 0.6, "o", "SIL", "SIL", "ann"),
    ]
