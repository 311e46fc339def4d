"""The index: what it holds, how it is found again, and what it refuses."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lhotse import CutSet

from isogloss.core.errors import DataError
from isogloss.data.index import CorpusIndex
from small_corpus import cut_fields, speech_corpus, write_cuts


def test_holds_what_lhotse_reads(tmp_path: Path) -> None:
    folder = speech_corpus(tmp_path / "c", [16_000, 24_000, 8_000, 16_320])
    index = CorpusIndex.open(folder)
    cuts = list(CutSet.from_file(folder / "cuts.jsonl"))
    assert len(index) == 4
    assert index.seconds == pytest.approx(sum(cut.duration for cut in cuts))
    for row, cut in enumerate(cuts):
        assert float(index.durations[row]) == pytest.approx(cut.duration)
        assert index.language_names[index.languages[row]] == cut.supervisions[0].language
        assert index.speaker_names[index.speakers[row]] == cut.supervisions[0].speaker
        assert index.source_names[index.sources[row]] == cut.custom["source"]
        own = index.cut(row)
        assert own.recording.sources[0].source == str(folder / f"u{row}.wav")
        own.recording.sources[0].source = cut.recording.sources[0].source
        assert own == cut
        assert index.cut_id(row) == cut.id


def test_unknown_language_and_speaker_are_minus_one(tmp_path: Path) -> None:
    write_cuts(tmp_path / "cuts.jsonl", [cut_fields("a", 1.0, language=None, speaker=None)])
    index = CorpusIndex.open(tmp_path)
    assert index.languages.tolist() == index.speakers.tolist() == [-1]


def test_the_same_manifest_has_the_same_hash_however_it_is_stored(tmp_path: Path) -> None:
    folder = speech_corpus(tmp_path / "c", [16_000] * 5)
    plain = CorpusIndex.open(folder / "cuts.jsonl")
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "cuts.jsonl.gz").write_bytes(gzip.compress((folder / "cuts.jsonl").read_bytes()))
    packed = CorpusIndex.open(tmp_path / "z")
    assert plain.manifest == packed.manifest
    write_cuts(folder / "cuts.jsonl", [cut_fields(f"u{i}", 1.0) for i in (1, 0, 2, 3, 4)])
    assert CorpusIndex.open(folder).manifest != plain.manifest


def test_is_built_once_and_again_when_the_manifest_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = speech_corpus(tmp_path / "c", [16_000] * 3)
    first = CorpusIndex.open(folder)
    with monkeypatch.context() as patched:
        patched.setattr(CorpusIndex, "build", classmethod(lambda *_: pytest.fail("built again")))
        assert CorpusIndex.open(folder).folder == first.folder
    write_cuts(folder / "cuts.jsonl", [cut_fields("u1", 1.0)])
    assert len(CorpusIndex.open(folder)) == 1


def test_a_place_that_cannot_be_written_sends_it_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = speech_corpus(tmp_path / "c", [16_000] * 3)
    (folder / ".isogloss-index").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert CorpusIndex.open(folder).folder.is_relative_to(tmp_path / "cache")


def test_from_a_cut_set(tmp_path: Path) -> None:
    folder = speech_corpus(tmp_path / "c", [16_000, 8_000])
    cuts = CutSet.from_file(folder / "cuts.jsonl").with_recording_path_prefix(str(folder))
    index = CorpusIndex.build(cuts, tmp_path / "index")
    assert [index.cut(row).duration for row in range(2)] == [1.0, 0.5]


def test_pickled_it_is_a_path(tmp_path: Path) -> None:
    index = CorpusIndex.open(speech_corpus(tmp_path / "c", [16_000] * 50))
    data = pickle.dumps(index)
    assert len(data) < 1000
    again = pickle.loads(data)  # our own bytes, a moment old
    assert again.manifest == index.manifest
    np.testing.assert_array_equal(again.durations, index.durations)


def broken(**changes: Any) -> bytes:
    fields = cut_fields("bad", 1.0)
    for key, value in changes.items():
        if key in ("sources", "transforms"):
            fields["recording"][key] = value
        else:
            fields[key] = value
    return json.dumps(fields).encode()


def source(kind: str, place: Any) -> list[dict[str, Any]]:
    return [{"type": kind, "channels": [0], "source": place}]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"\xef\xbb\xbf{}", "not a line of JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"id": "bad", ', "not a line of JSON"),
        (b"[" * 100_000, "not a line of JSON"),
        (b"[1]", "must be a JSON object"),
        (broken(id=""), "`id` must be a text"),
        (broken(id=5), "`id` must be a text"),
        (broken(start=-1), "`start` must be a number"),
        (broken(duration=float("nan")), "`duration` must be a number"),
        (broken(duration=0), "`duration` of bad must be above"),
        (broken(duration="1"), "`duration` must be a number"),
        (broken(duration=True), "`duration` must be a number"),
        (broken(type="MixedCut"), "must be a MonoCut"),
        (broken(recording=None), "has no `recording`"),
        (broken(transforms=[{"name": "Speed"}]), "unapplied `transforms`"),
        (broken(sources=source("command", "touch CANARY")), "it is not opened"),
        (broken(sources=source("url", "http://x/a.wav")), "it is not opened"),
        (broken(sources=source("file", "pipe:touch CANARY")), "it is not opened"),
        (broken(sources=source("file", "s3://x/a.wav")), "it is not opened"),
        (broken(sources=source("file", 7)), "it is not opened"),
        (broken(sources=["a.wav"]), "it is not opened"),
        (broken(sources=source("shar", "")), "Shar folder"),
        (broken(supervisions={"a": 1}), "`supervisions`"),
        (broken(supervisions=[{"language": 5}]), "`language`"),
        (broken(custom=[1]), "`custom`"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    good = json.dumps(cut_fields("good", 1.0)).encode()
    (tmp_path / "cuts.jsonl").write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=rf"cuts\.jsonl:2: .*{reason}"):
        CorpusIndex.open(tmp_path)
    assert not list(tmp_path.glob("**/index.json"))
    assert not list(tmp_path.rglob("CANARY"))


def test_what_lhotse_refuses_is_named_when_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "cuts.jsonl").write_bytes(broken(surprise=1) + b"\n")
    with pytest.raises(DataError, match="lhotse does not accept this cut"):
        CorpusIndex.open(tmp_path).cut(0)


def test_duplicate_ids_are_refused(tmp_path: Path) -> None:
    write_cuts(tmp_path / "cuts.jsonl", [cut_fields(name, 1.0) for name in ("a", "b", "c", "b")])
    with pytest.raises(DataError, match=r"'b' \(cuts 2 and 4\)"):
        CorpusIndex.open(tmp_path)


def test_no_cuts_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no cuts|no recordings"):
        CorpusIndex.open(tmp_path)
    (tmp_path / "cuts.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match="has no cuts"):
        CorpusIndex.open(tmp_path)


def test_a_manifest_that_was_cut_short_is_named(tmp_path: Path) -> None:
    lines = "".join(json.dumps(cut_fields(f"u{i}", 1.0 + i / 7)) + "\n" for i in range(200))
    data = gzip.compress(lines.encode())
    (tmp_path / "cuts.jsonl.gz").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cuts\.jsonl\.gz:\d+: "):
        CorpusIndex.open(tmp_path)
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0xFF
    (tmp_path / "cuts.jsonl.gz").write_bytes(bytes(damaged))
    with pytest.raises(DataError, match=r"cuts\.jsonl\.gz:\d+: "):
        CorpusIndex.open(tmp_path)


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    index = CorpusIndex.open(speech_corpus(tmp_path / "c", [16_000] * 3))
    (index.folder / "duration.bin").write_bytes(b"1234")
    with pytest.raises(DataError, match=r"duration\.bin: must have 12 bytes"):
        CorpusIndex.open(tmp_path / "c")


def test_other_forms_are_indexed_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    speech_corpus(tmp_path / "c" / "fr", [16_000] * 2)
    speech_corpus(tmp_path / "c" / "mdw", [8_000] * 3)
    for path in (tmp_path / "c").rglob("cuts.jsonl"):
        path.unlink()
    before = sorted(tmp_path.glob("c/**/*"))
    index = CorpusIndex.open(tmp_path / "c")
    assert sorted(index.language_names[number] for number in index.languages) == ["fr"] * 2 + ["mdw"] * 3
    assert sorted(tmp_path.glob("c/**/*")) == before
    assert CorpusIndex.open(tmp_path / "c").folder == index.folder
    assert Path(index.cut(0).recording.sources[0].source).exists()
    (tmp_path / "c" / "fr" / "u0.wav").write_bytes(b"nothing")
    with pytest.raises(DataError, match="corpus audit"):
        CorpusIndex.open(tmp_path / "c")


def test_languages_are_normalised(tmp_path: Path) -> None:
    write_cuts(
        tmp_path / "cuts.jsonl", [cut_fields(f"u{i}", 1.0, language=x) for i, x in enumerate(("fra", "fr", "French"))]
    )
    index = CorpusIndex.open(tmp_path)
    assert index.language_names == ["fr"]
    assert index.cut(2).supervisions[0].language == "fr"
