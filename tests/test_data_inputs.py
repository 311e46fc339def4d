"""Each accepted form of a corpus, and each fault of a manifest as `file:line: reason`."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet

from data_helpers import cut_of, speechlike, write
from isogloss.core.errors import DataError
from isogloss.data.audio import read_audio
from isogloss.data.audit import audit
from isogloss.data.folders import folder_of_cut
from isogloss.data.inputs import Rejected, form_of, iterate_corpus, open_corpus, write_corpus, write_fairseq
from isogloss.data.shards import shard


def _fields(corpus: CutSet) -> list[tuple[Any, ...]]:
    return [
        (
            cut.id,
            cut.supervisions[0].language,
            cut.supervisions[0].speaker,
            cut.supervisions[0].text,
            round(cut.duration, 4),
        )
        for cut in corpus
    ]


@pytest.fixture
def audio_folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("a.wav", "b.flac", "c.opus")):
        write(tmp_path / "corpus" / "audio" / name, speechlike(0.3 + 0.1 * number, number))
    return tmp_path / "corpus"


def test_bare_folders_of_languages_and_other_things(tmp_path: Path) -> None:
    for name in ("ckb/1.wav", "Polish/1.wav", "eng_Latn/deep/er/1.wav", "wav/1.wav", "0.wav"):
        write(tmp_path / name, speechlike(0.2))
    (tmp_path / "notes.txt").write_text("not audio")
    write(tmp_path / ".hidden" / "x.wav", speechlike(0.2))
    corpus = open_corpus(tmp_path)
    assert form_of(tmp_path) == "folder"
    assert [(cut.id, cut.supervisions[0].language) for cut in corpus] == [
        ("0", None),
        ("Polish-1", "pl"),
        ("ckb-1", "ckb"),
        ("eng_Latn-deep-er-1", "en"),
        ("wav-1", None),
    ]
    assert {cut.custom["source"] for cut in corpus} == {tmp_path.name}
    assert [cut.supervisions[0].language for cut in open_corpus(tmp_path, language="sw")] == [
        "sw",
        "pl",
        "ckb",
        "en",
        "sw",
    ]


def test_files_that_differ_in_suffix_only_get_different_ids(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", speechlike(0.2))
    write(tmp_path / "a.flac", speechlike(0.2))
    assert [cut.id for cut in open_corpus(tmp_path)] == ["a-flac", "a-wav"]


def test_metadata_csv(audio_folder: Path) -> None:
    (audio_folder / "metadata.csv").write_text(
        "\ufefffile_name,lang,speaker_id,sex,transcription,translation,translation_language,translation_de,emotion,licence\n"
        'audio/a.wav,pol,s1,F,"Dzień, dobry",Good day,eng,Guten Tag,happy,CC0-1.0\n'
        "\n"
        "audio/b.flac,pl,s2,male,,,,,,\n",
        encoding="utf-8",
    )
    first, second = open_corpus(audio_folder)
    assert form_of(audio_folder) == "table"
    supervision = first.supervisions[0]
    assert (supervision.text, supervision.language, supervision.speaker, supervision.gender) == (
        "Dzień, dobry",
        "pl",
        "s1",
        "female",
    )
    assert first.custom == {
        "source": "corpus",
        "emotion": "happy",
        "license": "CC0-1.0",
        "translations": {"en": "Good day", "de": "Guten Tag"},
    }
    assert (second.supervisions[0].gender, second.supervisions[0].text) == ("male", None)
    assert len(read_audio(first)) == 4_800


def test_metadata_jsonl_with_segments_of_one_recording(audio_folder: Path) -> None:
    lines = [
        {"file_name": "audio/c.opus", "start": 0.0, "duration": 0.2, "text": "one"},
        {"file_name": "audio/c.opus", "start": 0.2, "duration": 0.2, "id": "own-name", "translations": {"fra": "deux"}},
    ]
    (audio_folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    first, second = open_corpus(audio_folder)
    assert (first.id, second.id) == ("audio-c", "own-name")
    assert first.recording.id == second.recording.id
    assert second.custom["translations"] == {"fr": "deux"}
    np.testing.assert_array_equal(read_audio(second), read_audio(audio_folder / "audio/c.opus")[3_200:6_400])


def test_common_voice_table(tmp_path: Path) -> None:
    write(tmp_path / "clips" / "x.mp3", speechlike(0.3))
    (tmp_path / "validated.tsv").write_text(
        'client_id\tpath\tsentence\tgender\tlocale\nabc\tx.mp3\tHe said "no\tmale_masculine\tzh-HK\n', encoding="utf-8"
    )
    [cut] = open_corpus(tmp_path / "validated.tsv")
    supervision = cut.supervisions[0]
    assert (supervision.text, supervision.language, supervision.speaker, supervision.gender) == (
        'He said "no',
        "zh-HK",
        "abc",
        "male",
    )


def test_fairseq_in_and_out(audio_folder: Path, tmp_path: Path) -> None:
    (audio_folder / "train.tsv").write_text(f"{audio_folder}\naudio/a.wav\t4800\naudio/b.flac\t6400\n")
    (audio_folder / "train.ltr").write_text("H E Y | Y O U |\nN O |\n")
    (audio_folder / "train.km").write_text("1 1 2\n3\n")
    corpus = open_corpus(audio_folder / "train.tsv", language="en")
    assert _fields(corpus) == [("audio-a", "en", None, "HEY YOU", 0.3), ("audio-b", "en", None, "NO", 0.4)]
    assert [cut.custom["units"] for cut in corpus] == ["1 1 2", "3"]
    path = write_fairseq(corpus, tmp_path / "out" / "train.tsv")
    again = open_corpus(path, language="en")
    assert path.read_text().splitlines() == [str(audio_folder / "audio"), "a.wav\t4800", "b.flac\t6400"]
    assert path.with_suffix(".ltr").read_text() == "H E Y | Y O U |\nN O |\n"
    assert [cut.supervisions[0].text for cut in again] == ["HEY YOU", "NO"]
    with pytest.raises(DataError, match="whole files"):
        write_fairseq([corpus[0].truncate(duration=0.1)], tmp_path / "x.tsv")


def test_fairseq_manifest_of_another_machine_and_of_other_files(audio_folder: Path) -> None:
    path = audio_folder / "t.tsv"
    path.write_text("/no/such/root\naudio/a.wav\t4800\naudio/b.flac\t9999\n")
    good, bad = iterate_corpus(path)
    assert isinstance(bad, Rejected)
    assert not isinstance(good, Rejected)
    assert (bad.verdict, bad.place) == ("changed", f"{path}:3")


def test_nemo(audio_folder: Path) -> None:
    line = {"audio_filepath": "audio/a.wav", "duration": 0.31, "text": "hi", "lang": "eng", "speaker": 7, "offset": 0.0}
    (audio_folder / "m.json").write_text(json.dumps(line) + "\n\n")
    assert _fields(open_corpus(audio_folder / "m.json")) == [("audio-a", "en", "7", "hi", 0.3)]


def test_kaldi(audio_folder: Path) -> None:
    (audio_folder / "wav.scp").write_text(f"r1 audio/a.wav\nr2 {audio_folder}/audio/b.flac\n")
    (audio_folder / "text").write_text("r1 hello there\nr2 two\n")
    (audio_folder / "utt2spk").write_text("r1 s1\nr2 s2\n")
    (audio_folder / "spk2gender").write_text("s1 f\ns2 m\n")
    (audio_folder / "spk2age").write_text("s1 31\n")
    (audio_folder / "utt2lang").write_text("r1 nld\nr2 eng\n")
    first, second = corpus = open_corpus(audio_folder)
    assert _fields(corpus) == [("r1", "nl", "s1", "hello there", 0.3), ("r2", "en", "s2", "two", 0.4)]
    assert (first.supervisions[0].gender, first.custom["age"], second.supervisions[0].gender) == (
        "female",
        "31",
        "male",
    )
    for name in ("text", "utt2spk", "utt2lang"):
        (audio_folder / name).unlink()
    (audio_folder / "segments").write_text("u1 r1 0.1 0.2\nu2 r2 0 0.4\n")
    assert [(cut.id, cut.start, round(cut.duration, 3)) for cut in open_corpus(audio_folder)] == [
        ("u1", 0.1, 0.1),
        ("u2", 0.0, 0.4),
    ]


def test_kaldi_paths_start_at_the_directory_or_else_where_one_works(
    audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kaldi = tmp_path / "exp" / "data" / "train"
    kaldi.mkdir(parents=True)
    (kaldi / "wav.scp").write_text("r1 audio/a.wav\nr2 audio/b.flac\n")
    monkeypatch.chdir(audio_folder)
    assert [cut.recording.sources[0].source for cut in open_corpus(kaldi)] == [
        str(audio_folder / "audio" / name) for name in ("a.wav", "b.flac")
    ]
    write(kaldi / "audio" / "a.wav", speechlike(0.7, 9))
    assert open_corpus(kaldi)[0].duration == 0.7, "the directory comes first"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=rf"wav\.scp:2: .*does not exist; .* starts at {kaldi}, or .* {tmp_path} \(1 of 2"
    ):
        open_corpus(kaldi)
    (kaldi / "segments").write_text("u1 r2 0.1 0.2\n")
    with pytest.raises(DataError, match=rf"segments:1: .*does not exist; .* starts at {kaldi}, or"):
        open_corpus(kaldi)
    (kaldi / "segments").unlink()
    (kaldi / "wav.scp").write_text("r1 /nowhere/a.wav\n")
    with pytest.raises(DataError, match=r"does not exist \(1 of 1"):
        open_corpus(kaldi)


def test_prepared_corpora_and_cuts_files_and_their_move(audio_folder: Path, tmp_path: Path) -> None:
    corpus = open_corpus(audio_folder, language="mdw")
    write_corpus(corpus, audio_folder)
    first = (audio_folder / "cuts.jsonl.gz").read_bytes()
    assert form_of(audio_folder) == "cuts"
    assert [cut.to_dict() for cut in open_corpus(audio_folder)] == [cut.to_dict() for cut in corpus]
    write_corpus(open_corpus(audio_folder), audio_folder)
    assert (audio_folder / "cuts.jsonl.gz").read_bytes() == first, "the same cuts give the same bytes"
    moved = audio_folder.rename(tmp_path / "moved")
    assert sum(len(read_audio(cut)) for cut in open_corpus(moved)) == 4_800 + 6_400 + 8_000
    plain = tmp_path / "mine.jsonl"
    plain.write_bytes(
        gzip.decompress((moved / "cuts.jsonl.gz").read_bytes()).replace(b'"audio/', f'"{moved}/audio/'.encode())
    )
    assert len(open_corpus(plain)) == 3
    assert [path.name for path in moved.iterdir() if path.name.startswith(".")] == [], "nothing half-written is left"


def test_shar_in_and_back_to_files(audio_folder: Path, tmp_path: Path) -> None:
    corpus = open_corpus(audio_folder, language="mdw")
    shard(corpus, tmp_path / "shar", shard_size=2)
    shards = open_corpus(tmp_path / "shar")
    assert form_of(tmp_path / "shar") == "shar"
    assert [cut.id for cut in shards] == [cut.id for cut in corpus]
    for cut, original in zip(shards, corpus, strict=True):
        np.testing.assert_allclose(read_audio(cut), read_audio(original), atol=1e-4)
    write_corpus(shards, tmp_path / "files")
    assert sum(len(read_audio(cut)) for cut in open_corpus(tmp_path / "files")) == 4_800 + 6_400 + 8_000


def test_names_that_are_not_utf8_survive_a_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    plain = write(folder / "x.wav", speechlike(0.2))
    plain.rename(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.wav"))
    corpus = open_corpus(folder)
    assert [cut.id for cut in corpus] == ["caf\\xe9"]
    write_corpus(corpus, folder)
    assert len(read_audio(open_corpus(folder)[0])) == 3_200


def test_folders_that_are_not_utf8_survive_a_corpus_and_shards(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    plain = write(tmp_path / "x.wav", speechlike(0.2))
    folder.mkdir()
    plain.rename(folder / "x.wav")
    corpus = open_corpus(folder)
    write_corpus(corpus, tmp_path / "prepared")
    shard(corpus, tmp_path / "shar")
    for place in (folder, tmp_path / "prepared", tmp_path / "shar"):
        (cut,) = open_corpus(place)
        assert len(read_audio(cut)) == 3_200
        assert (cut.custom["source"], folder_of_cut(cut)) == ("caf\\xe9", "caf\\xe9")


def test_write_corpus_refuses_duplicates_and_nothing_and_keeps_the_old(audio_folder: Path) -> None:
    corpus = list(open_corpus(audio_folder))
    before = write_corpus(corpus, audio_folder).read_bytes()
    for bad in ([corpus[0], corpus[0]], []):
        with pytest.raises(DataError, match="twice|no cuts"):
            write_corpus(bad, audio_folder)
    assert (audio_folder / "cuts.jsonl.gz").read_bytes() == before
    corpus[1].custom["x"] = float("nan")
    with pytest.raises(DataError, match="audio-b"):
        write_corpus(corpus, audio_folder)


CSV = "file_name,start,duration\n"
FAULTS: dict[str, tuple[str, bytes | str, str]] = {
    "no column": ("metadata.csv", "name,text\na,b\n", "metadata.csv:1: a column `file_name`"),
    "semicolons": ("metadata.csv", "file_name;text\na.wav;b\n", "file_name;text; its cells must be separated by commas"),
    "a column twice": ("metadata.csv", "file_name,x,x\na,b,c\n", "metadata.csv:1: the column 'x' is there twice"),
    "too many cells": ("metadata.csv", CSV + "audio/a.wav,0,0.1,7\n", "metadata.csv:2: has 4 cells"),
    "open quote": ("metadata.csv", 'file_name,text\naudio/a.wav,"never\nclosed\n', "metadata.csv:3: not a table"),
    "negative start": ("metadata.csv", CSV + "audio/a.wav,-1,0.1\n", "metadata.csv:2: `start` must be a number of at least 0"),
    "nan start": ("metadata.csv", CSV + "audio/a.wav,nan,0.1\n", "metadata.csv:2: `start`"),
    "zero duration": ("metadata.csv", CSV + "audio/a.wav,0,0\n", "metadata.csv:2: `duration` must be a number above 0"),
    "no file name": ("metadata.csv", CSV + ",0,1\n", "metadata.csv:2: has no `file_name`"),
    "not UTF-8": ("metadata.csv", b"file_name\naudio/\xff\xfe.wav\n", "metadata.csv:2: not UTF-8 at byte 6"),
    "leaves the folder": ("metadata.csv", "file_name\n../../etc/x.wav\n", "metadata.csv:2: the path '../../etc/x.wav' leaves"),
    "duplicate id": ("metadata.csv", "file_name,id\naudio/a.wav,x\naudio/b.flac,x\n", "metadata.csv:3: the id 'x' was used before, at"),
    "bad language": ("metadata.csv", "file_name,lang\naudio/a.wav,??\n", "metadata.csv:2: audio-a: a language code must"),
    "deep JSON": ("metadata.jsonl", '{"a":' * 100_000, "metadata.jsonl:1: not a line of JSON: nested too deeply"),
    "cut JSON": ("metadata.jsonl", '{"file_name": "audio/a.wav"}\n{"file_na', "metadata.jsonl:2: not a line of JSON"),
    "no object": ("metadata.jsonl", "1\n", "metadata.jsonl:1: must be a JSON object, but is a int"),
    "an array": ("metadata.jsonl", '\n[\n{"file_name": "audio/a.wav"},\n{"file_name": "b"}\n]', "metadata.jsonl:2: a JSON array;"),
    "an array in a line": ("metadata.jsonl", '[{"file_name": "audio/a.wav"}]', "metadata.jsonl:1: a JSON array;"),
    "an array of cuts": ("cuts.jsonl", "ARRAY", "cuts.jsonl:1: a JSON array; write one object per line"),
    "a wrong type": ("metadata.jsonl", '{"file_name": ["a"]}\n', "metadata.jsonl:1: `file_name` must be a text, but is a list"),
    "true as start": ("metadata.jsonl", '{"file_name": "audio/a.wav", "start": true}\n', "metadata.jsonl:1: `start`"),
    "an infinite start": ("metadata.jsonl", '{"file_name": "audio/a.wav", "start": 1e999}\n', "metadata.jsonl:1: `start`"),
    "fairseq size": ("t.tsv", ".\naudio/a.wav\tmany\n", "t.tsv:1: "),
    "fairseq labels": ("t.tsv", ".\naudio/a.wav\t4800\n", "t.km:2: has 2 lines, but t.tsv has 1"),
    "kaldi segments": ("segments", "u1 r1 0.3 0.1\n", "segments:1: must have 0 <= start < end"),
    "kaldi stranger": ("segments", "u1 r9 0 0.1\n", "segments:1: the recording 'r9' is not in wav.scp"),
    "kaldi twice": ("wav.scp", "r1 audio/a.wav\nr1 audio/b.flac\n", "wav.scp:2: 'r1' comes twice"),
    "kaldi text": ("text", "zzz what\n", "has 'zzz', which no recording"),
    "cuts start": ("cuts.jsonl", "NEGATIVE", "cuts.jsonl:1: `start` must be"),
    "cuts twice": ("cuts.jsonl", "TWICE", "cuts.jsonl:2: the id 'a' was used before"),
    "cuts cut": ("cuts.jsonl", "HALF", "cuts.jsonl:1: not a line of JSON"),
    "cuts damaged gzip": ("cuts.jsonl.gz", b"\x1f\x8b\x08\x00garbage", "cuts.jsonl.gz:1: cannot be read"),
}  # fmt: skip


def _opened(name: str) -> Callable[[Path], Path]:
    if name == "t.tsv":
        return lambda folder: folder / name
    return lambda folder: folder


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_of_a_manifest_is_told_with_its_place(audio_folder: Path, case: str) -> None:
    name, content, message = FAULTS[case]
    if isinstance(content, str):
        line = json.dumps(cut_of(audio_folder / "audio" / "a.wav").to_dict())
        content = {
            "NEGATIVE": line.replace('"start": 0', '"start": -1', 1),
            "TWICE": f"{line}\n{line}\n",
            "HALF": line[:200],
            "ARRAY": f"[\n{line},\n{line}\n]\n",
        }.get(content, content)
        content = content.encode()
    if name in ("segments", "text"):
        (audio_folder / "wav.scp").write_text("r1 audio/a.wav\n")
    if case == "fairseq labels":
        (audio_folder / "t.km").write_text("1\n2\n")
    (audio_folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_corpus(_opened(name)(audio_folder))
    assert message in str(caught.value) or (case == "fairseq size" and "t.tsv:" in str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["metadata.jsonl", "m.json", "cuts.jsonl"])
def test_a_line_of_json_stands_for_itself(audio_folder: Path, name: str) -> None:
    """A broken line, also the first, is rejected with its place; used + rejected is the number of lines."""
    good = [{"file_name": "audio/a.wav"}, {"file_name": "audio/b.flac", "language": "fr"}]
    if name == "cuts.jsonl":
        good = [cut_of(audio_folder / "audio" / file).to_dict() for file in ("a.wav", "b.flac")]
        good[1]["id"] = "other"
    no_code = '{"id": "no", "file_name": "audio/a.wav", "language": "??"}' if name != "cuts.jsonl" else "null"
    bad = ['{"file_na', no_code, '{"file_name": ["a"], "start": 0}', '{"file_name": "pipe:cat x |", "recording": 1}']
    lines = [bad[0], json.dumps(good[0]), *bad[1:], "", json.dumps(good[1])]
    (audio_folder / name).write_text("\n".join(lines))
    place = audio_folder / name if name == "m.json" else audio_folder
    items = list(iterate_corpus(place))
    rejected = [item for item in items if isinstance(item, Rejected)]
    ids = [f"{name}:{number}" for number in (1, 3, 4, 5)]
    if name != "cuts.jsonl":  # this line tells its id, only its language is no code
        ids[1] = "no"
        assert rejected[1].told.startswith(f"{audio_folder / name}:3: no: a language code")
    assert [item.id for item in rejected] == ids
    assert len(items) == len(rejected) + 2
    assert "not a line of JSON" in rejected[0].reason
    assert name not in rejected[0].reason
    report = audit(iterate_corpus(place), num_workers=1)
    assert (report.num_input, len(report.cuts), report.verdicts) == (6, 2, {"manifest": 4})
    with pytest.raises(DataError, match=rf"{name}:1: not a line of JSON.* \(4 of 6 recordings"):
        open_corpus(place)
    (audio_folder / name).write_text("\n".join(bad[:1]))
    with pytest.raises(DataError, match=rf"{name}:1: not a line of JSON"):
        open_corpus(place)


def test_an_array_of_objects_is_one_error_and_not_lines(audio_folder: Path) -> None:
    path = audio_folder / "m.json"
    path.write_text('[\n{"audio_filepath": "audio/a.wav"},\n{"audio_filepath": "audio/b.flac"}\n]\n')
    for use in (form_of, open_corpus, lambda p: list(iterate_corpus(p))):
        with pytest.raises(DataError, match=r"m\.json:1: a JSON array; write one object per line$"):
            use(path)


def test_an_id_that_ends_like_its_place_is_told(audio_folder: Path) -> None:
    (audio_folder / "wav.scp").write_text("".join(f"{key} audio/gone{key}.wav\n" for key in ("1", "2")))
    told = [item.told for item in iterate_corpus(audio_folder) if isinstance(item, Rejected)]
    assert [text.partition("wav.scp:")[2][:5] for text in told] == ["1: 1:", "2: 2:"]


def test_a_language_that_is_no_code_costs_its_row_alone_in_a_table(audio_folder: Path) -> None:
    (audio_folder / "metadata.csv").write_text("file_name,language\naudio/a.wav,??\naudio/b.flac,fr\n")
    first, second = iterate_corpus(audio_folder)
    assert isinstance(first, Rejected)
    assert (first.id, first.verdict) == ("audio-a", "manifest")
    assert not isinstance(second, Rejected)


def test_missing_recordings_are_named_by_their_line(audio_folder: Path) -> None:
    (audio_folder / "metadata.csv").write_text("file_name\naudio/a.wav\naudio/gone.wav\n")
    with pytest.raises(
        DataError, match=r"metadata\.csv:3: audio-gone: .*gone\.wav: does not exist \(1 of 2 recordings"
    ):
        open_corpus(audio_folder)
    assert [isinstance(item, Rejected) for item in iterate_corpus(audio_folder)] == [False, True]


def test_what_is_no_corpus(tmp_path: Path) -> None:
    (tmp_path / "x.xml").write_text("<a/>")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("x.xml", "empty.jsonl", "pipe.jsonl", "gone", "."):
        with pytest.raises(DataError):
            open_corpus(tmp_path / name)


_MANIFESTS = {
    "metadata.csv": b"file_name,text,start,duration,lang\naudio/a.wav,hi,0,0.2,en\naudio/b.flac,\"ho\",0.1,0.2,fr\n",
    "metadata.jsonl": b'{"file_name": "audio/a.wav", "text": "hi", "start": 0.1}\n'
    b'{"file_name": "audio/b.flac", "translations": {"fr": "x"}}\n',
    "t.tsv": b".\naudio/a.wav\t4800\naudio/b.flac\t6400\n",
    "m.json": b'{"audio_filepath": "audio/a.wav", "duration": 0.3, "text": "hi"}\n{"audio_filepath": "audio/b.flac", "duration": 0.4}\n',
    "wav.scp": b"r1 audio/a.wav\nr2 audio/b.flac\n",
    "cuts.jsonl": b"",
}  # fmt: skip


_PIECES = (b"\0", b"\xff", b"{", b"[", b'"', b"\n", b",", b"\t", b"-", b"9e9", b"null", b"true", b" ", b"../")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(_MANIFESTS)))
def test_fuzzed_manifests_give_corpora_or_one_line_with_a_place(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, name: str
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    content = _MANIFESTS[name]
    for file in ("a.wav", "b.flac"):
        write(folder / "audio" / file, speechlike(0.3))
    if name == "cuts.jsonl":
        lines = [json.dumps(cut_of(folder / "audio" / file).to_dict()) for file in ("a.wav", "b.flac")]
        content = "\n".join(lines).replace(str(folder / "audio"), "audio").encode()  # the same bytes in every run
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(("set", "cut", "insert", "repeat")))
        piece = data.draw(st.sampled_from(_PIECES))
        if kind == "set":
            content = content[:place] + piece + content[place + 1 :]
        elif kind == "insert":
            content = content[:place] + piece + content[place:]
        elif kind == "cut":
            content = content[:place] or b"x"
        else:
            content = content[:place] + content[max(0, place - 30) :]
    (folder / name).write_bytes(content)
    told = ""
    items: list[Any] = []
    try:
        items = list(iterate_corpus(_opened(name)(folder) if name != "m.json" else folder / name))
    except DataError as error:
        told = str(error)
    assert not told or told.startswith(str(folder))
    assert all(isinstance(item, Rejected) or item.duration > 0 for item in items)
