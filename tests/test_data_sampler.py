"""The planner: exactly once, resumable anywhere, the same for any number of processes, shares by seconds."""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isogloss.core.config import parse
from isogloss.core.errors import ConfigError, DataError
from isogloss.data.index import CorpusIndex
from isogloss.data.sampler import Plan, Planner
from isogloss.data.streams import SAMPLE_RATE, START_STEP, Item, SamplingConfig
from small_corpus import silent_index

SMALL = {"seconds_per_update": 40.0, "micro_batch_seconds": 12.0, "min_seconds": 0.5, "max_seconds": 5.0}


def config(**changes: Any) -> SamplingConfig:
    return SamplingConfig(**{**SMALL, **changes})


@pytest.fixture
def index(tmp_path: Path) -> CorpusIndex:
    generator = np.random.default_rng(1)
    return silent_index(
        tmp_path / "index",
        generator.uniform(0.6, 12.0, 400),
        languages=generator.integers(0, 3, 400),
        speakers=generator.integers(-1, 12, 400),
        shards=np.arange(400) // 20,
    )


def items_of(plans: list[Plan]) -> list[Item]:
    return [item for plan in plans for items in plan.bins for item in items]


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(state))


VARIANTS: list[tuple[dict[str, Any], Any]] = [
    ({}, None),
    ({"long": "windows"}, None),
    ({"num_buckets": 5}, None),
    ({"shuffle_shards": 4}, None),
    ({"long": "windows", "max_seconds": 1.28}, "speaker"),
    ({}, "language"),
    ({"language_temperature": 0.5}, None),
    ({"language_temperature": 0.3, "num_buckets": 3}, "speaker"),
]


@pytest.mark.parametrize(("changes", "grouping"), VARIANTS)
def test_every_utterance_exactly_once_an_epoch_over_ten_kills(
    index: CorpusIndex, changes: dict[str, Any], grouping: Any
) -> None:
    settings = config(**changes)
    planner = Planner(index, settings, seed=3, grouping=grouping)
    kills = set(np.random.default_rng(5).choice(120, 10, replace=False).tolist())
    ledger: dict[str, Counter[tuple[int, int]]] = {}
    num_updates, state = 0, planner.state
    while not all(epoch >= 3 for epoch, _ in planner.state["streams"].values()):
        before = planner.state["streams"]
        plan = planner.next()
        num_updates += 1
        if num_updates in kills:  # the update is lost with the process, then planned again
            planner = Planner(index, settings, seed=3, grouping=grouping)
            planner.load_state(through_json(state))
            assert planner.state["streams"] == before
            plan = planner.next()
        state = plan.state
        for item in items_of([plan]):
            stream = "*" if "*" in before else index.language_names[index.languages[item.row]]
            window = item.start // round(settings.max_seconds * SAMPLE_RATE) if settings.long == "windows" else 0
            ledger.setdefault(stream, Counter())[item.row, window] += 1
    for stream, counts in ledger.items():
        epoch, position = planner.state["streams"][stream]
        assert set(counts.values()) <= ({epoch} if position == 0 else {epoch, epoch + 1})
        expected = 0
        for row in range(len(index)):
            if stream in ("*", index.language_names[index.languages[row]]):
                length = round(float(index.durations[row]) * SAMPLE_RATE)
                expected += (
                    max(length // round(settings.max_seconds * SAMPLE_RATE), 1) if settings.long == "windows" else 1
                )
        assert len(counts) == expected


@pytest.mark.parametrize(("changes", "grouping"), VARIANTS)
def test_resume_after_any_of_75_updates_gives_the_same_plans(
    index: CorpusIndex, changes: dict[str, Any], grouping: Any
) -> None:
    settings = config(seconds_per_update=60.0, **changes)
    planner = Planner(index, settings, seed=1, grouping=grouping)
    plans = [planner.next() for _ in range(77)]
    assert max(epoch for epoch, _ in plans[-1].state["streams"].values()) >= 2, "must cross epoch edges"
    assert [plan.number for plan in plans] == list(range(1, 78))
    for done in range(1, 76):
        fresh = Planner(index, settings, seed=1, grouping=grouping)
        fresh.load_state(through_json(plans[done - 1].state))
        assert [fresh.next(), fresh.next()] == plans[done : done + 2]


def test_one_two_and_four_processes_work_through_the_same_bins(index: CorpusIndex) -> None:
    settings = config(bins_multiple_of=4)
    planners = [Planner(index, settings, seed=1, world_size=size) for size in (1, 2, 4)]
    for _ in range(40):
        first, *others = [planner.next() for planner in planners]
        assert len(first.bins) % 4 == 0
        assert all(other.bins == first.bins for other in others)
        assert all(other.state["streams"] == first.state["streams"] for other in others)


@pytest.mark.parametrize(("changes", "grouping"), [v for v in VARIANTS if v[1] is None])
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_an_update_holds_the_same_utterances_for_any_number_of_processes(
    index: CorpusIndex, changes: dict[str, Any], grouping: Any, world_size: int
) -> None:
    settings = config(seconds_per_update=80.0, **changes)
    alone, many = Planner(index, settings, seed=1), Planner(index, settings, seed=1, world_size=world_size)
    for _ in range(40):
        assert sorted(items_of([alone.next()])) == sorted(items_of([many.next()]))


@pytest.mark.parametrize(("changes", "grouping"), VARIANTS)
@pytest.mark.parametrize("world_size", [1, 3])
def test_bins_respect_their_size_and_updates_theirs(
    index: CorpusIndex, changes: dict[str, Any], grouping: Any, world_size: int
) -> None:
    settings = config(**changes)
    planner = Planner(index, settings, seed=2, world_size=world_size, grouping=grouping)
    seconds = []
    for _ in range(60):
        bins = planner.next().bins
        lengths = [sum(item.num_samples for item in items) / SAMPLE_RATE for items in bins]
        assert len(bins) % world_size == 0
        assert all(0 < length <= settings.micro_batch_seconds + 1e-3 for length in lengths)
        assert lengths == sorted(lengths, reverse=True), "processes must get bins of about the same length together"
        seconds.append(sum(lengths))
    if grouping is None:
        assert max(seconds) <= settings.seconds_per_update
    assert np.mean(seconds) == pytest.approx(settings.seconds_per_update, rel=0.12 if grouping is None else 0.3)


def test_few_long_utterances_get_as_many_bins_as_they_need(tmp_path: Path) -> None:
    index = silent_index(tmp_path / "i", np.full(50, 7.0))
    planner = Planner(
        index, config(seconds_per_update=20.0, micro_batch_seconds=8.0, max_seconds=8.0), seed=0, world_size=4
    )
    for _ in range(20):
        assert [len(items) for items in planner.next().bins] == [1, 1, 1, 1]


def test_language_shares_are_shares_of_seconds(tmp_path: Path) -> None:
    """100 h and 1 h, α = 0.5: 10/11 and 1/11 (contrastive.md §5), though utterances of the second are five times shorter."""
    durations = np.concatenate([np.full(36_000, 10.0), np.full(1_800, 2.0)])
    index = silent_index(tmp_path / "i", durations, languages=np.repeat([0, 1], [36_000, 1_800]))
    settings = config(max_seconds=10.0, seconds_per_update=600.0, language_temperature=0.5)
    planner = Planner(index, settings, seed=0)
    assert planner.language_shares == pytest.approx({"l0": 10 / 11, "l1": 1 / 11})
    seconds = np.zeros(2)
    for item in items_of([planner.next() for _ in range(200)]):
        seconds[index.languages[item.row]] += item.num_samples / SAMPLE_RATE
    # about 18,000 draws of which 1/3 short: the share of the short ones has a standard deviation of about 0.0008
    assert seconds / seconds.sum() == pytest.approx([10 / 11, 1 / 11], abs=0.004)


@pytest.mark.parametrize(("temperature", "expected"), [(0.0, [0.5, 0.5]), (0.5, [0.75, 0.25]), (1.0, [0.9, 0.1])])
def test_temperature_over_cropped_utterances(tmp_path: Path, temperature: float, expected: list[float]) -> None:
    """The shares follow the hours of the corpus, not those that crops leave of it."""
    durations = np.concatenate([np.full(900, 4.0), np.full(20, 20.0)])  # 3600 s and 400 s; the second is cropped to 5 s
    index = silent_index(tmp_path / "i", durations, languages=np.repeat([0, 1], [900, 20]))
    planner = Planner(index, config(language_temperature=temperature), seed=0)
    seconds = np.zeros(2)
    for item in items_of([planner.next() for _ in range(400)]):
        seconds[index.languages[item.row]] += item.num_samples / SAMPLE_RATE
    if temperature == 1.0:  # each utterance once an epoch, so the crops count as what they are
        expected = [3600 / 3700, 100 / 3700]
    assert seconds / seconds.sum() == pytest.approx(expected, abs=0.03)


def test_grouped_bins_are_pure_and_unknown_speakers_stay_alone(index: CorpusIndex) -> None:
    by_speaker = Planner(index, config(), seed=0, grouping="speaker")
    by_language = Planner(index, config(language_temperature=0.5), seed=0, grouping="language")
    sizes = []
    for _ in range(50):
        for items in by_speaker.next().bins:
            speakers = {int(index.speakers[item.row]) for item in items}
            assert len(speakers) == 1
            assert len(items) == 1 or speakers != {-1}
            if speakers != {-1}:
                sizes.append(len(items))
        for items in by_language.next().bins:
            assert len({int(index.languages[item.row]) for item in items}) == 1
    assert np.mean(sizes) > 2, "bins of known speakers must be filled"


def test_buckets_bring_similar_durations_together(index: CorpusIndex) -> None:
    def spread(num_buckets: int) -> float:
        settings = config(seconds_per_update=200.0, max_seconds=12.0, micro_batch_seconds=30.0, num_buckets=num_buckets)
        planner = Planner(index, settings, seed=0)
        bins = [items for _ in range(20) for items in planner.next().bins]
        return float(np.mean([np.std([item.num_samples for item in items]) for items in bins])) / SAMPLE_RATE

    assert spread(8) < 0.35 * spread(1)


def test_windows_are_inside_disjoint_and_move(index: CorpusIndex) -> None:
    settings = config(long="windows", max_seconds=2.0)
    planner = Planner(index, settings, seed=0)
    starts: dict[int, set[int]] = {}
    seen: dict[int, list[Item]] = {}
    while planner.state["streams"]["*"][0] < 3:
        for item in items_of([planner.next()]):
            length = round(float(index.durations[item.row]) * SAMPLE_RATE)
            assert (
                item.start % START_STEP == 0 or item.start % START_STEP == (item.start // 32_000 * 32_000) % START_STEP
            )
            assert item.start >= 0
            assert item.start + item.num_samples <= length
            assert item.num_samples == min(length, 32_000)
            seen.setdefault(item.row, []).append(item)
    for row, items in seen.items():
        count = max(round(float(index.durations[row]) * SAMPLE_RATE) // 32_000, 1)
        epoch = sorted(items[:count])
        assert all(first.start + 32_000 <= second.start for first, second in pairwise(epoch))
        starts[row] = {item.start % 32_000 for item in items[: 3 * count]}
    moved = [len(values) > 1 for row, values in starts.items() if index.durations[row] > 2.5]
    assert np.mean(moved) > 0.8


def test_crops_are_inside_and_differ_between_epochs(index: CorpusIndex) -> None:
    planner = Planner(index, config(), seed=0)
    items: dict[int, list[Item]] = {}
    while planner.state["streams"]["*"][0] < 3:
        for item in items_of([planner.next()]):
            length = round(float(index.durations[item.row]) * SAMPLE_RATE)
            assert item.num_samples == min(length, 80_000)
            assert 0 <= item.start <= length - item.num_samples
            items.setdefault(item.row, []).append(item)
    assert all(len({item.seed for item in group}) == len(group) for group in items.values()), "a seed for each epoch"
    long = [group for row, group in items.items() if index.durations[row] > 6]
    assert np.mean([len({item.start for item in group}) > 1 for group in long]) > 0.9


def test_seeds_depend_on_the_utterance_not_on_the_batch(index: CorpusIndex) -> None:
    def first_epoch(**changes: Any) -> dict[int, Item]:
        planner = Planner(index, config(**changes), seed=9, grouping=None)
        found: dict[int, Item] = {}
        while planner.state["streams"]["*"][0] < 1:
            for item in items_of([planner.next()]):
                found.setdefault(item.row, item)
        return found

    assert first_epoch() == first_epoch(seconds_per_update=100.0, micro_batch_seconds=30.0)
    other = Planner(index, config(), seed=10).next()
    assert not {item.seed for item in items_of([other])} & {item.seed for item in first_epoch().values()}


def test_shards_are_read_a_few_at_a_time(index: CorpusIndex) -> None:
    assert index.shards is not None

    def shards_per_update(shuffle: int) -> float:
        planner = Planner(index, config(shuffle_shards=shuffle), seed=0)
        return float(np.mean([len({int(index.shards[i.row]) for i in items_of([planner.next()])}) for _ in range(60)]))

    assert shards_per_update(2) < 4
    assert shards_per_update(0) > 5


def test_state_of_other_data_is_refused(index: CorpusIndex, tmp_path: Path) -> None:
    planner = Planner(index, config(), seed=1)
    state = planner.next().state
    other = silent_index(tmp_path / "other", np.linspace(1, 3, 50))
    with pytest.raises(DataError, match="manifest"):
        Planner(other, config(), seed=1).load_state(state)
    with pytest.raises(DataError, match="seed"):
        Planner(index, config(), seed=2).load_state(state)
    with pytest.raises(DataError, match=r"max_seconds \(was 5.0\)"):
        Planner(index, config(max_seconds=4.0), seed=1).load_state(state)
    with pytest.raises(DataError, match=r"grouping \(was None\)"):
        Planner(index, config(), seed=1, grouping="speaker").load_state(state)
    for damaged in ({}, {**state, "streams": 5}, {**state, "streams": {"*": [1]}}, {**state, "settings": None}):
        with pytest.raises(DataError, match="damaged"):
            Planner(index, config(), seed=1).load_state(damaged)
    changed = Planner(other, config(), seed=1)
    changed.load_state({**state, "streams": {"*": [4, 399]}}, allow_data_change=True)
    assert changed.state["streams"] == {"*": [5, 0]}
    assert changed.next().number == 2


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`max_seconds` must be at most `micro_batch_seconds`"):
        parse(SamplingConfig, {**SMALL, "max_seconds": 13.0}, "recipe")
    with pytest.raises(ConfigError, match=r"`min_seconds` must be at most"):
        parse(SamplingConfig, {**SMALL, "min_seconds": 6.0}, "recipe")


def test_a_corpus_of_too_short_utterances_is_refused(index: CorpusIndex) -> None:
    with pytest.raises(DataError, match="no utterance is as long as `min_seconds`"):
        Planner(index, config(min_seconds=100.0, max_seconds=200.0, micro_batch_seconds=200.0), seed=0)


def test_short_utterances_are_left_out(index: CorpusIndex) -> None:
    planner = Planner(index, config(min_seconds=3.0), seed=0)
    assert planner.num_utterances == int((index.durations >= 3.0).sum())
    assert all(index.durations[item.row] >= 3.0 for item in items_of([planner.next() for _ in range(30)]))


def test_a_million_utterances_resume_in_seconds(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    index = silent_index(
        tmp_path / "i", generator.uniform(1, 20, 1_000_000), languages=generator.zipf(1.5, 1_000_000).clip(1, 128) - 1
    )
    settings = SamplingConfig(language_temperature=0.5)
    planner = Planner(index, settings, seed=0)
    state = {**planner.next().state, "streams": {name: [3, 5] for name in planner.state["streams"]}}
    begin = time.perf_counter()
    fresh = Planner(CorpusIndex(index.folder, index.root), settings, seed=0)
    fresh.load_state(state)
    fresh.next()
    assert time.perf_counter() - begin < 10
