"""Shards: lhotse opens what we wrote, we read any utterance by its place, and damage is named."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, Recording
from lhotse.shar import SharWriter

from isogloss.core.errors import ConfigError, DataError
from isogloss.data.audio import read_audio
from isogloss.data.index import CorpusIndex
from isogloss.data.loader import DataConfig, SpeechLoader
from isogloss.data.shards import shard
from small_corpus import fingerprint, speech_corpus

SIZES = [4_800 + 320 * i for i in range(25)]


@pytest.fixture
def corpus(tmp_path: Path) -> CorpusIndex:
    return CorpusIndex.open(speech_corpus(tmp_path / "corpus", SIZES))


def cuts_of(index: CorpusIndex) -> list[MonoCut]:
    return [index.cut(row) for row in range(len(index))]


def test_lhotse_opens_what_was_written(corpus: CorpusIndex, tmp_path: Path) -> None:
    ticks: list[tuple[int, int | None]] = []
    report = shard(
        cuts_of(corpus), tmp_path / "shar", shard_size=10, progress=lambda done, total: ticks.append((done, total))
    )
    assert (report.num_shards, report.num_cuts, report.rejected) == (3, 25, [])
    assert report.seconds == pytest.approx(sum(SIZES) / 16_000)
    assert ticks == [(i, 25) for i in range(1, 26)]
    theirs = list(CutSet.from_shar(in_dir=tmp_path / "shar"))
    for cut, original in zip(theirs, cuts_of(corpus), strict=True):
        assert cut.id == original.id
        assert cut.supervisions == original.supervisions
        assert cut.custom["translations"] == original.custom["translations"]
        np.testing.assert_array_equal(cut.load_audio()[0], read_audio(original))


def test_any_utterance_is_read_by_its_place(corpus: CorpusIndex, tmp_path: Path) -> None:
    shard(cuts_of(corpus), tmp_path / "shar", shard_size=10)
    index = CorpusIndex.open(tmp_path / "shar")
    assert index.shards is not None
    assert index.shards.tolist() == [0] * 10 + [1] * 10 + [2] * 5
    for row in np.random.default_rng(0).permutation(25).tolist():
        np.testing.assert_array_equal(read_audio(index.cut(row)), read_audio(corpus.cut(row)))


def test_shards_that_lhotse_wrote_are_read(corpus: CorpusIndex, tmp_path: Path) -> None:
    (tmp_path / "shar").mkdir()
    with SharWriter(tmp_path / "shar", fields={"recording": "wav"}, shard_size=10) as writer:
        for cut in cuts_of(corpus):
            writer.write(cut)
    index = CorpusIndex.open(tmp_path / "shar")
    for row in (24, 0, 13):
        np.testing.assert_allclose(read_audio(index.cut(row)), read_audio(corpus.cut(row)), atol=1e-4)


def test_training_from_shards_is_training_from_files(corpus: CorpusIndex, tmp_path: Path) -> None:
    shard(cuts_of(corpus), tmp_path / "shar", shard_size=10)
    settings = DataConfig(
        path="", seconds_per_update=3.0, micro_batch_seconds=1.0, min_seconds=0.1, max_seconds=0.6, num_workers=1
    )
    prints = []
    for index in (corpus, CorpusIndex.open(tmp_path / "shar")):
        updates = iter(SpeechLoader(index, settings, seed=0))
        prints.append([fingerprint(next(updates).micro_batches) for _ in range(6)])
    assert prints[0] == prints[1]


def test_opus_is_small_and_whole(corpus: CorpusIndex, tmp_path: Path) -> None:
    shard(cuts_of(corpus), tmp_path / "opus", audio_format="opus")
    index = CorpusIndex.open(tmp_path / "opus")
    for row in (0, 24):
        own, original = read_audio(index.cut(row)), read_audio(corpus.cut(row))
        assert len(own) == len(original) == SIZES[row]
    assert len(list(CutSet.from_shar(in_dir=tmp_path / "opus"))) == 25


def test_other_rates_and_parts_become_16_khz_mono(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "s.wav", np.sin(np.arange(44_100) / 30) * 0.4, 44_100)
    recording = Recording.from_file(tmp_path / "s.wav", recording_id="s")
    part = recording.to_cut().truncate(offset=0.25, duration=0.5)
    part.id = "part"
    shard([part], tmp_path / "shar")
    cut = CorpusIndex.open(tmp_path / "shar").cut(0)
    assert (cut.start, cut.duration, cut.recording.sampling_rate, cut.recording.num_samples) == (
        0.0,
        0.5,
        16_000,
        8_000,
    )
    np.testing.assert_allclose(read_audio(cut), read_audio(part), atol=1e-4)


def test_ids_with_dots_and_slashes_and_long_ones(corpus: CorpusIndex, tmp_path: Path) -> None:
    cuts = cuts_of(corpus)[:4]
    names = ["a.b.c", "fr/part 1/x.y", "ÿ ю 語", "n" * 180]
    for cut, name in zip(cuts, names, strict=True):
        cut.id = name
    shard(cuts, tmp_path / "shar")
    index = CorpusIndex.open(tmp_path / "shar")
    assert [index.cut(row).id for row in range(4)] == names
    assert [cut.id for cut in CutSet.from_shar(in_dir=tmp_path / "shar")] == names


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../b", "a//b", "a\0b"])
def test_ids_that_cannot_name_a_member_are_refused(corpus: CorpusIndex, tmp_path: Path, name: str) -> None:
    cut = corpus.cut(0)
    cut.id = name
    with pytest.raises(DataError, match="cannot name a member"):
        shard([cut], tmp_path / "shar")
    assert not (tmp_path / "shar").exists()


def test_nothing_is_left_of_what_was_interrupted(corpus: CorpusIndex, tmp_path: Path) -> None:
    def interrupted() -> Iterator[MonoCut]:
        yield from cuts_of(corpus)[:12]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard(interrupted(), tmp_path / "out" / "shar", shard_size=5)
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_read_is_named_and_left_out(corpus: CorpusIndex, tmp_path: Path) -> None:
    cuts = cuts_of(corpus)
    (tmp_path / "corpus" / "u3.wav").write_bytes(b"RIFF")
    report = shard(cuts, tmp_path / "shar")
    assert report.num_cuts == 24
    assert [name for name, _ in report.rejected] == ["u3"]
    with pytest.raises(DataError, match="none of 1 cuts could be written"):
        shard(cuts[3:4], tmp_path / "nothing")


def test_impossible_requests(corpus: CorpusIndex, tmp_path: Path) -> None:
    cuts = cuts_of(corpus)[:2]
    with pytest.raises(ConfigError, match="`shard_size`"):
        shard(cuts, tmp_path / "s", shard_size=0)
    with pytest.raises(ConfigError, match="`audio_format`"):
        shard(cuts, tmp_path / "s", audio_format="mp3")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="exists and is not empty"):
        shard(cuts, tmp_path / "corpus")
    with pytest.raises(DataError, match="two cuts have the id 'u0'"):
        shard([cuts[0], cuts[0]], tmp_path / "s")


def edit_tar(path: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    with tarfile.open(path) as archive:
        members = [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    with tarfile.open(path, "w") as archive:
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def add_symlink(path: Path) -> None:
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("x.flac")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), r"recording\.000001\.tar.*u1\d"),
    "empty": (lambda p: p.write_bytes(b""), r"recording\.000001\.tar: "),
    "not a tar": (lambda p: p.write_bytes(b"<html>" * 1000), r"recording\.000001\.tar: not a whole tar"),
    "gone": (lambda p: p.unlink(), r"shard 000001 has only one of its two files"),
    "swapped": (
        lambda p: p.write_bytes(p.with_name("recording.000000.tar").read_bytes()),
        r"recording\.000001\.tar: holds 'u0' where cuts\.000001\.jsonl\.gz has 'u10'",
    ),
    "one missing": (
        lambda p: edit_tar(p, lambda m: m[:4] + m[6:]),
        r"recording\.000001\.tar: holds 'u13' where .* 'u12'",
    ),
    "last missing": (lambda p: edit_tar(p, lambda m: m[:-2]), r"recording\.000001\.tar: ends before u19"),
    "one too many": (lambda p: edit_tar(p, lambda m: [*m, ("z.flac", b""), ("z.json", b"{}")]), r"holds 'z', which"),
    "no description": (lambda p: edit_tar(p, lambda m: m[:5] + m[6:]), r"'u12' has no description"),
    "other description": (lambda p: edit_tar(p, lambda m: [m[0], m[3], *m[2:]]), r"'u11\.json' does not follow"),
    "a link": (add_symlink, r"recording\.000001\.tar: 'x\.flac' is no regular file"),
    "no audio": (
        lambda p: edit_tar(p, lambda m: [("u10.nodata", b""), ("u10.nometa", b""), *m[2:]]),
        r"'u10' has no audio",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_shard_is_named(corpus: CorpusIndex, tmp_path: Path, damage: str) -> None:
    shard(cuts_of(corpus), tmp_path / "shar", shard_size=10)
    change, message = DAMAGE[damage]
    change(tmp_path / "shar" / "recording.000001.tar")
    with pytest.raises(DataError, match=message):
        CorpusIndex.open(tmp_path / "shar")


def test_cuts_of_a_shard_are_checked_like_any_others(corpus: CorpusIndex, tmp_path: Path) -> None:
    shard(cuts_of(corpus), tmp_path / "shar", shard_size=10)
    path = tmp_path / "shar" / "cuts.000002.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).splitlines()
    fields = json.loads(lines[2])
    fields["recording"]["sources"][0] = {"type": "command", "channels": [0], "source": "touch CANARY"}
    path.write_bytes(gzip.compress(b"\n".join([*lines[:2], json.dumps(fields).encode(), *lines[3:]])))
    with pytest.raises(DataError, match=r"cuts\.000002\.jsonl\.gz:3: .*it is not opened"):
        CorpusIndex.open(tmp_path / "shar")


def test_a_shard_that_shrinks_during_training_is_named(corpus: CorpusIndex, tmp_path: Path) -> None:
    shard(cuts_of(corpus), tmp_path / "shar", shard_size=10)
    index = CorpusIndex.open(tmp_path / "shar")
    path = tmp_path / "shar" / "recording.000002.tar"
    path.write_bytes(path.read_bytes()[:5_000])
    with pytest.raises(DataError, match=r"recording\.000002\.tar: u24 has 0 of \d+ bytes"):
        index.cut(24)
    path.unlink()
    with pytest.raises(DataError, match=r"recording\.000002\.tar: u24 cannot be read"):
        index.cut(24)


def test_a_flipped_bit_in_a_shard_is_not_trained_on(corpus: CorpusIndex, tmp_path: Path) -> None:
    shard(cuts_of(corpus), tmp_path / "shar")
    index = CorpusIndex.open(tmp_path / "shar")
    path = tmp_path / "shar" / "recording.000000.tar"
    data = bytearray(path.read_bytes())
    place = data.index(index.cut(7).recording.sources[0].source) + 2_000
    data[place] ^= 0x10
    path.write_bytes(bytes(data))
    with pytest.raises(DataError):
        read_audio(index.cut(7))
    read_audio(index.cut(8))
