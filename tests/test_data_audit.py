"""The bad-audio zoo: each kind of bad file among good ones gets exactly its verdict, and the good are all used."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lhotse import CutSet

from data_helpers import FORMATS, cut_of, speechlike, write
from isogloss.core.errors import DataError
from isogloss.data import _examine
from isogloss.data._containers import check_container
from isogloss.data._examine import Examiner, Window, examine
from isogloss.data.audit import audit
from isogloss.data.inputs import Rejected, iterate_corpus, open_corpus, write_corpus

Maker = Callable[[Path], Any]


def _bytes(content: bytes) -> Maker:
    return lambda path: path.write_bytes(content)


def _samples(samples: Any, rate: int = 16_000, **options: Any) -> Maker:
    return lambda path: write(path, np.asarray(samples), rate, **options)


def _changed(change: Callable[[bytearray], Any], seed: int = 90, seconds: float = 2.0) -> Maker:
    def make(path: Path) -> None:
        data = bytearray(write(path, speechlike(seconds, seed)).read_bytes())
        result = change(data)
        path.write_bytes(data if result is None else result)

    return make


def _header(channels: int = 1, rate: int = 16_000, block: int = 2) -> bytes:
    data = b"\0\1" * 8_000
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * block, block, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _flip(place: float, mask: int = 0xFF) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[int(len(data) * place)] ^= mask

    return change


def _half(data: bytearray) -> bytes:
    return bytes(data[: len(data) // 2])


def _half_wav(data: bytearray) -> bytes:
    """Cut a WAV and mend the outer size only, as some copying tools do."""
    half = data[: len(data) // 2]
    half[4:8] = struct.pack("<I", len(half) - 8)
    return bytes(half)


def _drop_page(data: bytearray) -> bytes:
    pages = data.split(b"OggS")
    return b"OggS".join([*pages[:3], *pages[4:]])


def _pcm(seed: int) -> np.ndarray:
    return np.round(speechlike(0.5, seed) * 32767).astype(np.int16)


def _spike(value: float) -> np.ndarray:
    samples = speechlike(0.5, 91)
    samples[100] = value
    return samples


ZOO: dict[str, tuple[Maker, str]] = {
    "zero-bytes.wav": (_bytes(b""), "empty"),
    "html.wav": (_bytes(b"<!DOCTYPE html><title>404</title>" * 50), "unreadable"),
    "text.mp3": (_bytes(b"not an mp3 at all " * 40), "unreadable"),
    "zeros.flac": (_bytes(b"\0" * 4_000), "unreadable"),
    "rate-zero.wav": (_bytes(_header(rate=0)), "header"),
    "channels-60000.wav": (_bytes(_header(channels=60_000)), "header"),
    "channels-zero.wav": (_bytes(_header(channels=0)), "header"),
    "contradiction.wav": (_bytes(_header(block=3)), "header"),
    "rate-absurd.wav": (_bytes(_header(rate=1_000)), "header"),
    "a-folder.wav": (lambda path: path.mkdir(), "not a file"),
    "a-fifo.wav": (os.mkfifo, "not a file"),
    "a-device.wav": (lambda path: path.symlink_to("/dev/zero"), "not a file"),
    "dangling.wav": (lambda path: path.symlink_to(path.parent / "gone"), "missing"),
    "half.wav": (_changed(_half), "truncated"),
    "half-with-new-riff-size.wav": (_changed(_half_wav), "truncated"),
    "half.flac": (_changed(_half), "damaged"),
    "half.ogg": (_changed(_half, seconds=20.0), "truncated"),
    "half.opus": (_changed(_half, seconds=20.0), "truncated"),
    "half.mp3": (_changed(_half), "truncated"),
    "no-data-chunk.wav": (_bytes(_header()[:36]), "truncated"),
    "rotten.flac": (_changed(_flip(0.5)), "damaged"),
    "rotten-md5.flac": (_changed(lambda data: _flip(30 / len(data))(data)), "damaged"),
    "rotten.ogg": (_changed(_flip(0.5), seconds=20.0), "damaged"),
    "rotten.opus": (_changed(_flip(0.5, 1), seconds=20.0), "damaged"),
    "page-missing.ogg": (_changed(_drop_page, seconds=20.0), "damaged"),
    "rotten-header.mp3": (_changed(lambda data: data.__setitem__(slice(4_000, 4_600), b"\0" * 600), seconds=20.0), "damaged"),
    "nan.wav": (_samples(_spike(np.nan), subtype="FLOAT"), "non-finite"),
    "inf.wav": (_samples(_spike(np.inf), subtype="FLOAT"), "non-finite"),
    "1e30.wav": (_samples(_spike(1e30), subtype="FLOAT"), "amplitude"),
    "silent.wav": (_samples(np.zeros(8_000)), "silent"),
    "constant.wav": (_samples(np.full(8_000, 0.4)), "constant"),
    "one-sample.wav": (_samples(np.array([0.5])), "too short"),
    "no-samples.wav": (_samples(np.zeros(0)), "empty"),
    "short.flac": (_samples(speechlike(0.05, 92)), "too short"),
    "zz-twice.flac": (_samples(_pcm(0)), "duplicate"),
    "zz-twice.wav": (_samples(_pcm(1)), "duplicate"),
}  # fmt: skip

# What must be used although stock tools stumble, with the beginning of the warning
GOOD: dict[str, tuple[Maker, str]] = {
    "a-good.wav": (_samples(_pcm(0)), ""),
    "a-good.flac": (_samples(_pcm(1)), ""),
    "a-good.mp3": (_samples(speechlike(0.5, 2)), ""),
    "a-good.ogg": (_samples(speechlike(0.5, 3)), ""),
    "a-good.opus": (_samples(speechlike(0.5, 4)), ""),
    "deep-24-bit.flac": (_samples(speechlike(0.5, 5), subtype="PCM_24"), ""),
    "deep-8-bit.flac": (_samples(speechlike(0.5, 6), subtype="PCM_S8"), ""),
    "telephone.wav": (_samples(speechlike(0.5, 7, 8_000), 8_000), "has 8000 Hz"),
    "stereo.flac": (_samples(np.stack([speechlike(0.5, 8, 44_100)] * 2, 1), 44_100), "has 2 channels"),
    "opposite.wav": (_samples(np.stack([speechlike(0.5, 9), -0.95 * speechlike(0.5, 9)], 1)), "its channels cancel"),
    "loud.wav": (_samples(speechlike(0.5, 10) * 30_000, subtype="FLOAT"), "peaks at"),
    "clipped.wav": (_samples(np.clip(speechlike(0.5, 11) * 20, -1, 1)), ""),
    "offset.wav": (_samples(speechlike(0.5, 12) + 0.2), "has an offset"),
    "piped.wav": (_changed(lambda d: d.__setitem__(slice(40, 44), b"\xff" * 4) or d.__setitem__(slice(4, 8), b"\xff" * 4), 93, 0.5), ""),
    "tagged.mp3": (_changed(lambda d: bytes(b"ID3\4\0\0\0\0\0\5hello" + d + b"TAG" + b"\0" * 125), 94, 0.5), ""),
    "a;touch canary;.wav": (_samples(speechlike(0.5, 95)), ""),
    os.fsdecode(b"caf\xe9.wav"): (_samples(speechlike(0.5, 96)), ""),
}  # fmt: skip


def _fill(folder: Path, makers: dict[str, tuple[Maker, str]]) -> None:
    folder.mkdir(exist_ok=True)
    for name, (make, _) in makers.items():
        plain = folder / f"being-made{Path(name).suffix}"  # soundfile cannot open every name
        make(plain)
        plain.rename(folder / name)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("zoo") / "corpus"
    _fill(folder, GOOD)
    _fill(folder, ZOO)
    begin = time.monotonic()
    report = audit(iterate_corpus(folder), num_workers=2)
    assert time.monotonic() - begin < 60
    return folder, report


def test_the_zoo_has_33_cases_and_more() -> None:
    assert len(ZOO) >= 33


@pytest.mark.parametrize("name", ZOO)
def test_each_bad_recording_gets_its_verdict(zoo: tuple[Path, Any], name: str) -> None:
    verdicts = {item.place.rpartition("/")[2]: item for item in zoo[1].rejected}
    assert verdicts[name].verdict == ZOO[name][1], verdicts[name].reason
    assert verdicts[name].reason


@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_each_good_recording_is_used(zoo: tuple[Path, Any], name: str) -> None:
    used = {Path(cut.recording.sources[0].source).name: cut for cut in zoo[1].cuts}
    assert name in used
    warnings = [text for cut_id, text in zoo[1].warnings if cut_id == used[name].id]
    expected = GOOD[name][1]
    if expected:
        assert any(text.startswith(expected) for text in warnings), warnings
    elif name != "clipped.wav":
        assert not warnings


def test_used_and_rejected_are_the_input(zoo: tuple[Path, Any], tmp_path: Path) -> None:
    folder, report = zoo
    assert report.num_input == len(ZOO) + len(GOOD) == len(report.cuts) + len(report.rejected)
    assert {Path(cut.recording.sources[0].source).name for cut in report.cuts} == set(GOOD)
    assert sum(report.verdicts.values()) == len(ZOO)
    report.write(tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (told["input"], told["used"], told["rejected"]) == (report.num_input, len(GOOD), len(ZOO))
    assert not list(folder.parent.rglob("canary"))
    # what was used can be trained on: the corpus of it opens, and a second audit agrees
    write_corpus(report.cuts, tmp_path / "clean")
    again = audit(open_corpus(tmp_path / "clean"), num_workers=1)
    assert len(again.cuts) == len(GOOD)
    assert not again.rejected


def test_open_corpus_refuses_what_has_bad_files_and_says_how_to_go_on(zoo: tuple[Path, Any]) -> None:
    with pytest.raises(DataError, match=r"of \d+ recordings cannot be used; `isogloss corpus audit`"):
        open_corpus(zoo[0])


def test_the_budget(zoo: tuple[Path, Any]) -> None:
    report = zoo[1]
    report.check_budget(0.9)
    with pytest.raises(DataError, match="--max-rejected"):
        report.check_budget(0.01)
    duplicates = sum(verdict == "duplicate" for _, verdict in ZOO.values())
    assert report.damaged_share == pytest.approx((len(ZOO) - duplicates) / (len(ZOO) + len(GOOD)))


def test_damage_after_an_earlier_audit_is_found_in_every_format(tmp_path: Path) -> None:
    """WAV and MP3 have no checksum of their own: the hash of the first audit is what finds a changed bit."""
    for number, suffix in enumerate(FORMATS):
        write(tmp_path / "corpus" / f"a.{suffix}", speechlike(1.0, number))
    first = audit(open_corpus(tmp_path / "corpus"), num_workers=1)
    assert len(first.cuts) == len(FORMATS)
    for path in (tmp_path / "corpus").iterdir():
        data = bytearray(path.read_bytes())
        place = int(len(data) * 0.6)
        for i in range(place, place + 8):
            data[i] ^= 0x55
        path.write_bytes(data)
    second = audit(first.cuts, num_workers=1)
    assert not second.cuts
    assert set(second.verdicts) <= {"changed", "damaged", "unreadable"}


def test_fuzzed_files_are_never_used_with_other_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cuts = []
    for number, suffix in enumerate(FORMATS):
        original = write(tmp_path / f"a.{suffix}", speechlike(0.6, number))
        [cut] = audit([cut_of(original)], num_workers=1).cuts
        for trial in range(12):
            data = bytearray(original.read_bytes())
            for place in rng.integers(0, len(data), size=rng.integers(1, 5)):
                data[place] ^= 1 << rng.integers(0, 8)
            if trial % 4 == 3:
                data = data[: rng.integers(1, len(data))]
            path = tmp_path / f"f{trial}.{suffix}"
            path.write_bytes(data)
            fuzzed = type(cut).from_dict(cut.to_dict())
            fuzzed.id = f"{suffix}-{trial}"
            fuzzed.recording.sources[0].source = str(path)
            cuts.append(fuzzed)
    report = audit(cuts, keep_duplicates=True, num_workers=2)
    assert report.num_input == len(cuts) == len(report.cuts) + len(report.rejected)
    assert all(cut.custom["sha256"] for cut in report.cuts)  # used only where every sample is what it was
    assert len(report.rejected) > len(cuts) / 2


def test_fuzzed_flac_and_ogg_are_found_without_an_earlier_hash(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number, suffix in enumerate(("flac", "ogg", "opus")):
        original = write(tmp_path / f"a.{suffix}", speechlike(0.6, number))
        true = examine(original, [Window(0, 9_600, None)]).windows[0].sha256
        data = original.read_bytes()
        for _ in range(25):
            fuzzed = bytearray(data)
            fuzzed[rng.integers(60, len(data))] ^= 1 << rng.integers(0, 8)
            found = examine(bytes(fuzzed), [Window(0, 9_600, None)])
            # a flip in a comment or in padding changes nothing that is heard
            assert found.verdict or found.windows[0].sha256 == true


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_an_mp3_that_lost_frames_is_found_by_the_count_in_its_header(tmp_path: Path, keep: float) -> None:
    def fault(verdict: str, message: str) -> Exception:
        return DataError(f"{verdict}: {message}")

    data = write(tmp_path / "a.mp3", speechlike(4.0)).read_bytes()
    assert check_container(data, "MP3", fault) == []
    with pytest.raises(DataError, match=r"truncated: its header promises \d+ frames but \d+ are there"):
        check_container(data[: int(len(data) * keep)], "MP3", fault)
    headless = data.replace(b"Xing", b"none").replace(b"Info", b"none")
    assert check_container(headless, "MP3", fault) == []
    assert check_container(headless[:-7], "MP3", fault) == [
        "the last MP3 frame is not whole: the recording was probably stopped or cut short"
    ]


def test_manifest_that_contradicts_the_file(tmp_path: Path) -> None:
    cut = cut_of(write(tmp_path / "a.wav", speechlike(1.0)))
    wrong_rate = type(cut).from_dict(cut.to_dict())
    wrong_rate.recording.sampling_rate = 8_000
    longer = type(cut).from_dict(cut.to_dict())
    longer.recording.num_samples = 20_000
    beyond = type(cut).from_dict(cut.to_dict())
    beyond.start = 0.5
    for bad, verdict in ((wrong_rate, "rate"), (longer, "changed"), (beyond, "window")):
        assert audit([bad], num_workers=1).verdicts == {verdict: 1}


def test_utterances_of_one_recording_are_judged_one_by_one(tmp_path: Path) -> None:
    samples = np.concatenate([speechlike(0.5, 1), np.zeros(8_000, np.float32), speechlike(0.5, 2), speechlike(0.5, 1)])
    path = write(tmp_path / "a.flac", samples)
    cuts = []
    for number in range(4):
        cut = cut_of(path, start=number * 0.5, duration=0.5)
        cut.id = f"u{number}"
        cuts.append(cut)
    report = audit(CutSet(cuts), num_workers=1)
    assert [cut.id for cut in report.cuts] == ["u0", "u2"]
    assert [(item.id, item.verdict) for item in report.rejected] == [("u1", "silent"), ("u3", "duplicate")]
    assert audit(cuts, keep_duplicates=True, num_workers=1).verdicts == {"silent": 1}


def test_duplicate_ids_keep_the_first(tmp_path: Path) -> None:
    first, second = (
        cut_of(write(tmp_path / "a.wav", speechlike(0.5, 1))),
        cut_of(write(tmp_path / "b.wav", speechlike(0.5, 2))),
    )
    second.id = first.id
    report = audit([first, second], num_workers=1)
    assert (len(report.cuts), report.verdicts) == (1, {"duplicate id": 1})
    assert report.cuts[0].recording.id == "a"


def test_order_progress_and_workers_do_not_change_the_report(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / f"{number}.wav", speechlike(0.2 + 0.02 * (number % 5), number % 7))
    seen: list[tuple[int, int | None]] = []
    cuts = open_corpus(tmp_path)
    one = audit(cuts, num_workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 10) for n in range(1, 11)]
    assert one.to_dict() == audit(cuts, num_workers=3).to_dict()


def test_a_decoder_that_asks_for_too_much_memory_or_dies_costs_one_recording(tmp_path: Path) -> None:
    good = write(tmp_path / "a.wav", speechlike())
    examiner = Examiner()
    try:
        assert not examiner.examine(good, [Window(0, 8_000, None)]).verdict
        process = examiner._process
        assert process is not None
        process.kill()
        process.wait()
        died = examiner.examine(good, [Window(0, 8_000, None)])
        assert died.verdict == "damaged"
        assert "died" in died.reason
        assert examiner.examine(good, [Window(0, 8_000, None)]).windows[0].num_samples == 8_000
    finally:
        examiner.close()


def test_the_helper_has_a_memory_limit() -> None:
    """Run the helper's own start-up and ask for more than it may have."""
    code = (
        "import io, sys; sys.argv = ['x', str(1 << 30)]; from isogloss.data import _examine as e\n"
        "def grab(source, windows, tell=None):\n"
        "    try: bytearray(3 << 30)\n"
        "    except MemoryError: return e.Examination(verdict='refused')\n"
        "    return e.Examination(verdict='given')\n"
        "e.examine = grab; e._main()"
    )
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code],
        input=b'{"path": "x", "bytes": 0, "windows": []}\n',
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert json.loads(done.stdout)["verdict"] == "refused", done.stderr


def test_a_decoder_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = write(tmp_path / "a.wav", speechlike())
    monkeypatch.setattr(_examine, "__name__", "timeit")  # `python -m timeit N` runs on and prints nothing of ours
    examiner = Examiner(timeout_seconds=0.3)
    monkeypatch.setattr(examiner, "_start", lambda: _start_sleeper(examiner))
    found = examiner.examine(good, [])
    assert found.verdict == "timeout"
    assert examiner._process is None


def _start_sleeper(examiner: Examiner) -> Any:
    import subprocess

    examiner._process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    return examiner._process


def test_nothing_of_the_working_directory_is_imported_by_the_helper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.wav", speechlike())
    (tmp_path / "numpy.py").write_text("open('canary', 'w')\nraise SystemExit")
    monkeypatch.chdir(tmp_path)
    report = audit(open_corpus(tmp_path), num_workers=1)
    assert len(report.cuts) == 1
    assert not (tmp_path / "canary").exists()


def test_rejected_of_the_manifest_are_counted(tmp_path: Path) -> None:
    cut = cut_of(write(tmp_path / "a.wav", speechlike()))
    report = audit([Rejected("x", "m:3", "missing", "gone"), cut], num_workers=1)
    assert (report.num_input, len(report.cuts), len(report.rejected)) == (2, 1, 1)


def test_cuts_whose_language_is_no_code_keep_their_report(tmp_path: Path) -> None:
    """Nothing looked at the codes of cuts that come from lhotse; everything was decoded when they are looked at."""
    cuts = [cut_of(write(tmp_path / f"{n}.wav", speechlike(0.3, n)), language="fr") for n in range(3)]
    for cut in cuts[:2]:
        cut.supervisions[0].language = "中文"
    report = audit(CutSet(cuts), num_workers=1)
    assert len(report.cuts) == 3
    ((name, text),) = report.naming_faults
    assert name == "中文"
    assert text.startswith("is the language of 2 utterances, but a language code must have letters a to z")


@pytest.mark.parametrize("folders", [("wavs",), ("s12", "s7", "train")])
def test_folders_of_speakers_or_parts_are_one_warning(tmp_path: Path, folders: tuple[str, ...]) -> None:
    for number, name in enumerate([*folders, folders[0]]):
        write(tmp_path / name / f"{number}.wav", speechlike(0.3, number))
    report = audit(iterate_corpus(tmp_path), num_workers=1, folder=tmp_path)
    ((name, text),) = report.naming_faults
    assert name == str(tmp_path)
    listed = {1: "only `wavs`", 3: "only `s12` and 2 more"}[len(folders)]
    assert text == (
        f"has no subfolder that is named after a language, {listed}; the {len(folders) + 1} utterances below it have none: "
        "give `--language`"
    )
    # beside a folder of a language, each is told
    write(tmp_path / "fr" / "x.wav", speechlike(0.3, 9))
    report = audit(iterate_corpus(tmp_path), num_workers=1, folder=tmp_path)
    assert [name for name, _ in report.naming_faults] == sorted(folders)


def test_a_misspelled_column_is_told_where_nothing_else_says_it(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / f"{number}.wav", speechlike(0.3, number))
    table = tmp_path / "metadata.csv"
    table.write_text("file_name,langauge,transcirpt,sentence_id,notes\n0.wav,fr,oui,1,a\n1.wav,fr,non,2,b\n")
    report = audit(iterate_corpus(tmp_path), num_workers=1)
    assert report.naming_faults == [
        ("langauge", "is a column that nothing reads; did you mean `language`?"),
        ("sentence_id", "is a column that nothing reads; did you mean `sentence`?"),
        ("transcirpt", "is a column that nothing reads; did you mean `transcript`?"),
    ]
    table.write_text("file_name,langauge,sentence,sentence_id\n0.wav,fr,oui,1\n1.wav,fr,non,2\n")
    assert [name for name, _ in audit(iterate_corpus(tmp_path), num_workers=1).naming_faults] == ["langauge"]
