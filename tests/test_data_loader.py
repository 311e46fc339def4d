"""The loader: resume to the bit with any number of workers and ranks, nothing lost, nothing silent, nothing hung."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from isogloss.core.errors import ConfigError, DataError
from isogloss.data.index import CorpusIndex
from isogloss.data.loader import DataConfig, SpeechLoader, Update
from small_corpus import cut_fields, fingerprint, speech_corpus, write_cuts

SIZES = [3_200 + 640 * (i % 11) for i in range(60)]


def settings(**changes: Any) -> DataConfig:
    small = {
        "path": "corpus",
        "seconds_per_update": 2.2,
        "micro_batch_seconds": 1.0,
        "min_seconds": 0.1,
        "max_seconds": 0.4,
        "num_workers": 0,
        "timeout_seconds": 60.0,
    }
    return DataConfig(**{**small, **changes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusIndex:
    return CorpusIndex.open(speech_corpus(tmp_path_factory.mktemp("corpus") / "c", SIZES))


def take(loader: SpeechLoader, count: int) -> list[Update]:
    updates = iter(loader)
    taken = [next(updates) for _ in range(count)]
    updates.close()  # type: ignore[attr-defined]
    return taken


def summary(updates: list[Update]) -> list[tuple[int, str, str]]:
    return [(u.number, fingerprint(u.micro_batches), json.dumps(u.state)) for u in updates]


@pytest.fixture(scope="module")
def uninterrupted(corpus: CorpusIndex) -> list[Update]:
    updates = take(SpeechLoader(corpus, settings(), seed=4), 77)
    assert updates[-1].state["streams"]["*"][0] >= 5, "must cross epoch edges"
    return updates


def test_resume_from_each_of_75_updates(corpus: CorpusIndex, uninterrupted: list[Update]) -> None:
    expected = summary(uninterrupted)
    for done in range(1, 76):
        loader = SpeechLoader(corpus, settings(), seed=4)
        loader.load_state(json.loads(json.dumps(uninterrupted[done - 1].state)))
        assert summary(take(loader, 2)) == expected[done : done + 2]


@pytest.mark.parametrize("done", [1, 9, 10, 11, 12, 37, 74, 75])
def test_resume_with_two_workers(corpus: CorpusIndex, uninterrupted: list[Update], done: int) -> None:
    loader = SpeechLoader(corpus, settings(num_workers=2), seed=4)
    loader.load_state(uninterrupted[done - 1].state)
    assert summary(take(loader, 2)) == summary(uninterrupted[done : done + 2])


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_resume_from_each_of_75_updates_with_workers(
    corpus: CorpusIndex, uninterrupted: list[Update], num_workers: int
) -> None:
    for done in range(1, 76):
        loader = SpeechLoader(corpus, settings(num_workers=num_workers, prefetch=4), seed=4)
        loader.load_state(uninterrupted[done - 1].state)
        assert summary(take(loader, 2)) == summary(uninterrupted[done : done + 2])


def test_workers_change_nothing(corpus: CorpusIndex, uninterrupted: list[Update]) -> None:
    assert summary(take(SpeechLoader(corpus, settings(num_workers=2), seed=4), 77)) == summary(uninterrupted)


def test_two_resumes_within_one_epoch(corpus: CorpusIndex, uninterrupted: list[Update]) -> None:
    again = take(SpeechLoader(corpus, settings(), seed=4), 2)
    for count in (1, 2):
        loader = SpeechLoader(corpus, settings(num_workers=1), seed=4)
        loader.load_state(again[-1].state)
        again += take(loader, count)
    assert again[-1].state["streams"]["*"][0] == 0
    assert summary(again) == summary(uninterrupted[:5])


def test_iterating_again_goes_on_after_what_was_taken(corpus: CorpusIndex, uninterrupted: list[Update]) -> None:
    loader = SpeechLoader(corpus, settings(num_workers=1), seed=4)
    assert summary(take(loader, 3) + take(loader, 3)) == summary(uninterrupted[:6])


def test_no_more_processes_decode_than_there_are_cpus(
    corpus: CorpusIndex, uninterrupted: list[Update], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(sys, "platform", "linux")
    asked = settings(num_workers=3_000)
    assert asked.warnings() == ["`data.num_workers` is 3000, more than the CPUs that can be used (1); so many decode"]
    assert settings(num_workers=1).warnings() == settings(num_workers=0).warnings() == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch would warn of 3000
        assert summary(take(SpeechLoader(corpus, asked, seed=4), 5)) == summary(uninterrupted[:5])


def test_spawned_workers_read_the_same(corpus: CorpusIndex, uninterrupted: list[Update]) -> None:
    loader = SpeechLoader(corpus, settings(num_workers=1, start_method="spawn"), seed=4)
    assert summary(take(loader, 3)) == summary(uninterrupted[:3])


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_bins_of_one_process(corpus: CorpusIndex, world_size: int) -> None:
    alone = take(SpeechLoader(corpus, settings(bins_multiple_of=4), seed=4), 10)
    ranks = [
        take(SpeechLoader(corpus, settings(bins_multiple_of=4), seed=4, rank=r, world_size=world_size), 10)
        for r in range(world_size)
    ]
    for number, whole in enumerate(alone):
        parts = [updates[number] for updates in ranks]
        assert len({len(part.micro_batches) for part in parts}) == 1
        interleaved = [batch for step in zip(*(part.micro_batches for part in parts), strict=True) for batch in step]
        assert fingerprint(interleaved) == fingerprint(whole.micro_batches)
        assert all(part.state["streams"] == whole.state["streams"] for part in parts)


def test_going_on_with_another_number_of_processes(corpus: CorpusIndex) -> None:
    """A run of one process that goes on as two processes sees what it would have seen."""
    alone = take(SpeechLoader(corpus, settings(bins_multiple_of=2), seed=4), 12)
    batches: dict[int, list[Any]] = {}
    for rank in range(2):
        loader = SpeechLoader(corpus, settings(bins_multiple_of=2), seed=4, rank=rank, world_size=2)
        loader.load_state(alone[5].state)
        for update in take(loader, 6):
            batches.setdefault(update.number, []).append(update.micro_batches)
    for update in alone[6:]:
        first, second = batches[update.number]
        mixed = [batch for pair in zip(first, second, strict=True) for batch in pair]
        assert fingerprint(mixed) == fingerprint(update.micro_batches)


def _write_ledger(index: CorpusIndex, folder: Path, updates_before_death: int, state_is_saved: bool) -> None:
    """Train until epoch 3 is over or death: note what was seen, then save the state, as a run would its checkpoint."""
    torch.set_num_threads(1)
    loader = SpeechLoader(index, settings(num_workers=1), seed=4)
    if (folder / "state.json").exists():
        loader.load_state(json.loads((folder / "state.json").read_text()))
    for count, update in enumerate(loader, 1):
        line = json.dumps([update.number, [name for batch in update.micro_batches for name in batch.ids]])
        with (folder / "ledger.jsonl").open("a") as stream:
            stream.write(line + "\n")
        dies = count == updates_before_death
        if not dies or state_is_saved:
            (folder / "state.tmp").write_text(json.dumps(update.state))
            (folder / "state.tmp").replace(folder / "state.json")
        if update.state["streams"]["*"][0] >= 3:
            os._exit(0)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.timeout(120)
def test_exactly_once_over_three_epochs_with_ten_kills(corpus: CorpusIndex, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    generator = torch.Generator().manual_seed(0)
    num_kills = 0
    for attempt in range(60):
        life = int(torch.randint(2, 4, (), generator=generator)) if attempt < 14 else 1000
        process = context.Process(target=_write_ledger, args=(corpus, tmp_path, life, attempt % 2 == 0))
        process.start()
        process.join()  # without a timeout: with one it would wait for the workers, which outlive a kill by seconds
        assert process.exitcode in (0, -signal.SIGKILL)
        if process.exitcode == 0:
            break
        num_kills += 1
    assert num_kills >= 10
    seen = dict(json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines())
    last = max(seen)
    assert sorted(seen) == list(range(1, last + 1))
    counts = Counter(name for number in seen for name in seen[number])
    position = json.loads((tmp_path / "state.json").read_text())["streams"]["*"][1]
    assert sum(counts.values()) == 3 * len(SIZES) + position
    assert set(counts.values()) <= {3, 4}
    assert len(counts) == len(SIZES)


def test_another_corpus_or_setting_is_refused(corpus: CorpusIndex, tmp_path: Path) -> None:
    state = take(SpeechLoader(corpus, settings(), seed=4), 1)[0].state
    other = CorpusIndex.open(speech_corpus(tmp_path / "c", SIZES[:30]))
    with pytest.raises(DataError, match="--allow-data-change"):
        SpeechLoader(other, settings(), seed=4).load_state(state)
    loader = SpeechLoader(other, settings(), seed=4, allow_data_change=True)
    loader.load_state(state)
    assert take(loader, 1)[0].number == 2
    SpeechLoader(corpus, settings(num_workers=1, prefetch=1), seed=4).load_state(state)  # these change nothing


def test_utterances_without_a_frame_are_left_out(corpus: CorpusIndex) -> None:
    loader = SpeechLoader(corpus, settings(), seed=4, num_frames=lambda n: max((n - 6_000) // 320, 0))
    assert loader.num_utterances == sum(n >= 6_320 for n in SIZES)
    assert min(min(batch.audio.sizes) for u in take(loader, 20) for batch in u.micro_batches) >= 6_320


def test_bad_recordings_are_counted_and_stop_the_run_above_their_budget(tmp_path: Path) -> None:
    folder = speech_corpus(tmp_path / "c", SIZES)
    bad = {"u7", "u20", "u41"}
    for name in bad:
        (folder / f"{name}.wav").write_bytes(b"RIFF")
    index = CorpusIndex.open(folder)
    loader = SpeechLoader(index, settings(max_rejected=0.05, num_workers=1), seed=0)
    updates = take(loader, 30)
    assert set(loader.rejected) == bad
    assert {name for update in updates for name, _ in update.rejected} == bad
    seen = {name for update in updates for batch in update.micro_batches for name in batch.ids}
    assert seen == {f"u{i}" for i in range(len(SIZES))} - bad
    with pytest.raises(DataError, match=r"3 of 60 recordings cannot be used.*max_rejected"):
        take(SpeechLoader(index, settings(max_rejected=0.04), seed=0), 30)


def test_a_storage_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = speech_corpus(tmp_path / "c", [4_800] * 40)
    index = CorpusIndex.open(folder)
    for path in folder.glob("*.wav"):
        path.unlink()
    with pytest.raises(DataError, match="is the storage there"):
        take(SpeechLoader(index, settings(max_rejected=1.0, num_workers=1), seed=0), 1)


def _die(waveform_T: Tensor) -> Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return waveform_T


def _stall(waveform_T: Tensor) -> Tensor:
    signal.pause()
    return waveform_T


def test_a_killed_worker_is_named(corpus: CorpusIndex) -> None:
    with pytest.raises(DataError, match=r"a loader worker died.*data\.num_workers"):
        take(SpeechLoader(corpus, settings(num_workers=2), seed=0, prepare=_die), 1)


def test_a_stalled_worker_is_named_in_time(corpus: CorpusIndex) -> None:
    with pytest.raises(DataError, match="no data for 1 s"):
        take(SpeechLoader(corpus, settings(num_workers=1, timeout_seconds=1.0), seed=0, prepare=_stall), 1)


def _disagree(rank: int, folder: Path, seeds: list[int], results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    index = CorpusIndex.open(folder / "c")
    try:
        loader = SpeechLoader(index, settings(), seed=seeds[rank], rank=rank, world_size=2)
        results.put((rank, [name for u in take(loader, 5) for batch in u.micro_batches for name in batch.ids]))
    except DataError as error:
        results.put((rank, str(error)))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("seeds", [[1, 1], [1, 2]])
def test_two_ranks_audit_their_data(tmp_path: Path, seeds: list[int]) -> None:
    speech_corpus(tmp_path / "c", [4_800] * 35)
    CorpusIndex.open(tmp_path / "c")
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=_disagree, args=(rank, tmp_path, seeds, results)) for rank in range(2)]
    for process in processes:
        process.start()
    answers = dict(results.get() for _ in range(2))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    if seeds == [1, 2]:
        assert all("another seed, corpus or data setting" in answer for answer in answers.values())
        return
    assert not set(answers[0]) & set(answers[1])
    assert sorted(answers[0] + answers[1]) == sorted(f"u{i}" for i in range(35)), (
        "one epoch, nothing twice, nothing missed"
    )


def test_a_rank_outside_the_world_is_refused(corpus: CorpusIndex) -> None:
    with pytest.raises(ConfigError, match="`rank` must be in 0 … 1, but is 2"):
        SpeechLoader(corpus, settings(), seed=0, rank=2, world_size=2)


def test_waiting_is_measured(corpus: CorpusIndex) -> None:
    loader = SpeechLoader(corpus, settings(), seed=0)
    updates = take(loader, 3)
    assert loader.wait_seconds == pytest.approx(sum(update.wait_seconds for update in updates))
    assert loader.wait_seconds > 0


def test_one_bad_file_does_not_stop_a_tiny_corpus(tmp_path: Path) -> None:
    folder = speech_corpus(tmp_path / "c", [4_800] * 10)
    write_cuts(folder / "cuts.jsonl", [cut_fields(f"u{i}", 0.3) for i in range(10)])
    (folder / "u3.wav").unlink()
    loader = SpeechLoader(CorpusIndex.open(folder), settings(seconds_per_update=1.0), seed=0)
    take(loader, 8)
    assert set(loader.rejected) == {"u3"}
