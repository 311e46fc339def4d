"""Nothing that comes from outside is executed: each hostile item is refused by name, or used as the plain data that it is.

The canary is a file that any of the payloads would create.
"""

from __future__ import annotations

import gzip
import io
import json
import socket
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data_helpers import cut_of, speechlike, write
from isogloss.core.errors import DataError
from isogloss.data.audio import AudioError, read_audio
from isogloss.data.audit import audit
from isogloss.data.index import CorpusIndex
from isogloss.data.inputs import Rejected, iterate_corpus, open_corpus, write_corpus


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The name of a file in the working directory that must never come to be; connections are refused too."""
    monkeypatch.chdir(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    path = tmp_path / "canary"
    yield path
    assert not path.exists()
    assert not list(tmp_path.rglob("canary*"))


def _line(folder: Path) -> dict[str, Any]:
    path = folder / "a.wav"
    if not path.exists():
        write(path, speechlike(0.3))
    line: dict[str, Any] = cut_of(path).to_dict()
    return line


def _source(kind: str, source: str) -> Any:
    def change(line: dict[str, Any]) -> None:
        line["recording"]["sources"][0].update(type=kind, source=source)

    return change


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


LHOTSE: dict[str, Any] = {
    "command": _source("command", "touch canary"),
    "pipe in a file": _source("file", "pipe:touch canary"),
    "url": _source("url", "http://localhost:1/a.wav"),
    "address as a file": _source("file", "http://localhost:1/a.wav"),
    "s3 as a file": _source("file", "s3://bucket/a.wav"),
    "unknown type": _source("eval", "open('canary', 'w')"),
    "a type that is a list": lambda line: line["recording"]["sources"][0].update(type=["command"]),
    "a source that is a list": lambda line: line["recording"]["sources"][0].update(source=["touch canary"]),
    "zero byte": _source("file", "a.wav\0;touch canary"),
    "transforms": lambda line: line["recording"].update(transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}]),
    "another type of cut": lambda line: line.update(type="MixedCut", tracks=[]),
    "class name": lambda line: line.update(type="os.system"),
    "features only": lambda line: (line.pop("recording"), line.update(features={"storage_type": "lilcom_url"})),
    "a command beside a file": lambda line: line["recording"]["sources"].append(
        {"type": "command", "channels": [1], "source": "touch canary"}
    ),
    "negative start": lambda line: line.update(start=-1),
    "infinite duration": lambda line: line.update(duration=float("inf")),
    "a duration beyond every float": lambda line: line.update(duration=10**400),
    "a start beyond every float": lambda line: line.update(start=10**400),
    "a start beyond every recording": lambda line: line.update(start=1e300),
    "a channel that is a text": lambda line: line.update(channel="0"),
    "an id of half a character": lambda line: line.update(id="\ud800"),
    "an id of a byte": lambda line: line.update(id="caf\udce9"),
    "a path of half a character": _source("file", "b.wav\ud800"),
    "channels that are texts": lambda line: line["recording"]["sources"][0].update(channels=["0"]),
    "a recording of half a character": lambda line: line["recording"].update(id="\ud800"),
    "a rate that is a text": lambda line: line["recording"].update(sampling_rate="x"),
    "a rate of zero": lambda line: line["recording"].update(sampling_rate=0),
    "a rate beyond every float": lambda line: line["recording"].update(sampling_rate=10**400),
    "samples that are a text": lambda line: line["recording"].update(num_samples="4800"),
    "samples beyond every float": lambda line: line["recording"].update(num_samples=10**400),
    "a recording's duration that is a list": lambda line: line["recording"].update(duration=[1]),
    "channel ids that are a text": lambda line: line["recording"].update(channel_ids="0"),
    "a second language that is a number": lambda line: line["supervisions"].append(
        {**line["supervisions"][0], "language": 5}
    ),
    "a second speaker that is a list": lambda line: line["supervisions"].append(
        {**line["supervisions"][0], "speaker": ["a"]}
    ),
    "a text of half a character": lambda line: line["supervisions"][0].update(text="a\udfff"),
    "a custom text of half a character": lambda line: line["custom"].update(source="\udbff"),
    "a supervision beyond every float": lambda line: line["supervisions"][0].update(start=-(10**400)),
    "a supervision without duration": lambda line: line["supervisions"][0].pop("duration"),
    "a supervision's custom list": lambda line: line["supervisions"][0].update(custom=[1]),
    "an alignment that is a list": lambda line: line["supervisions"][0].update(alignment=[["a", 0, 1]]),
    "an alignment without times": lambda line: line["supervisions"][0].update(alignment={"word": [["a"]]}),
    "an alignment of a number": lambda line: line["supervisions"][0].update(alignment={"word": [["a", 10**400, 1]]}),
    "a custom number that is none": lambda line: line.update(custom={"a": [float("nan")]}),
    "a supervision's custom number without end": lambda line: line["supervisions"][0].update(
        custom={"a": float("-inf")}
    ),
    "custom without a bottom": lambda line: line.update(custom={"a": _nested(400)}),
    "no supervisions list": lambda line: line.update(supervisions={"a": 1}),
}


@pytest.mark.parametrize("case", LHOTSE)
def test_lhotse_manifests(canary: Path, tmp_path: Path, case: str) -> None:
    line = _line(tmp_path)
    LHOTSE[case](line)
    path = tmp_path / "cuts.jsonl"
    path.write_text(json.dumps(line) + "\n")
    for use in (open_corpus, lambda p: CorpusIndex.build(p, tmp_path / "index")):
        with pytest.raises(DataError, match=r"cuts\.jsonl:1: "):
            use(path)
    (item,) = iterate_corpus(path)
    assert isinstance(item, Rejected)
    assert item.told.startswith(f"{path}:1: ")


ROWS: dict[str, dict[str, Any]] = {
    "a path of half a character": {"file_name": "b.wav\ud800"},
    "a second path of half a character": {"path": "b.wav\ud800"},
    "an id of half a character": {"id": "\ud800"},
    "a text of half a character": {"text": "a\udfff"},
    "a column of half a character": {"x\ud800": 1},
    "an unknown column of half a character": {"x": [{"y": "\ud800"}]},
    "a start beyond every float": {"start": 10**400},
    "a duration beyond every float": {"duration": 10**400},
    "a text that is no number": {"text": float("nan")},
    "an unknown column that is no number": {"snr": [float("nan")]},
    "an unknown column without end": {"snr": float("inf")},
    "a gender without a bottom": {"gender": _nested(400)},
}


@pytest.mark.parametrize("case", [*LHOTSE, *ROWS])
def test_a_hostile_line_of_json_is_one_line_of_the_audit(canary: Path, tmp_path: Path, case: str) -> None:
    good = _line(tmp_path)
    bad = json.loads(json.dumps(good))
    if case in ROWS:
        good, bad = {"file_name": "a.wav"}, {"file_name": "a.wav", **ROWS[case]}
        path = tmp_path / "metadata.jsonl"
    else:
        LHOTSE[case](bad)
        path = tmp_path / "cuts.jsonl"
    path.write_text(json.dumps(bad) + "\n" + json.dumps(good) + "\n")
    report = audit(iterate_corpus(tmp_path), num_workers=1)
    assert (report.num_input, report.verdicts) == (2, {"manifest": 1})
    assert [cut.id for cut in report.cuts] == ["a"]
    report.write(tmp_path / "report.json")
    told = report.rejected[0].told
    assert told.startswith(f"{path}:1: ")
    assert told.isprintable()
    assert len(told) < 400


def test_a_command_in_a_cut_object_is_not_run_either(canary: Path, tmp_path: Path) -> None:
    cut = cut_of(write(tmp_path / "a.wav", speechlike(0.3)))
    cut.recording.sources[0].type, cut.recording.sources[0].source = "command", "touch canary"
    with pytest.raises(AudioError, match="not opened"):
        read_audio(cut)
    assert audit([cut], num_workers=1).verdicts == {"source": 1}


NAMES = {
    "pipe": ("pipe:touch canary", "is a command"),
    "kaldi pipe": ("touch canary |", "is a command"),
    "kaldi pipe with spaces": ("sox a.wav -t wav - |  ", "is a command"),
    "address": ("https://localhost:1/a.wav", "is an address"),
    "file address": ("file:///etc/passwd", "is an address"),
    "zero byte": ("a.wav\0b", "zero byte"),
    "parent": ("../../etc/passwd", "leaves the corpus folder"),
    "hidden parent": ("audio/../../x.wav", "leaves the corpus folder"),
}


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("form", ["metadata.csv", "metadata.jsonl", "nemo.json", "t.tsv", "wav.scp"])
def test_paths_of_other_manifests(canary: Path, tmp_path: Path, form: str, case: str) -> None:
    name, reason = NAMES[case]
    if form == "wav.scp" and case == "zero byte":
        name = "x\0y"
    content = {
        "metadata.csv": f'file_name\n"{name}"\n',
        "metadata.jsonl": json.dumps({"file_name": name}),
        "nemo.json": json.dumps({"audio_filepath": name, "duration": 1}),
        "t.tsv": f".\n{name}\t100\n",
        "wav.scp": f"r1 {name}\n",
    }[form]
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / form).write_text(content)
    path = folder / form if form in ("nemo.json", "t.tsv") else folder
    with pytest.raises(DataError, match=reason):
        open_corpus(path)
    if form.endswith(("json", "jsonl")):  # a line that stands for itself
        (item,) = iterate_corpus(path)
        assert isinstance(item, Rejected)
        assert reason in item.reason
    else:
        with pytest.raises(DataError, match=reason):
            list(iterate_corpus(path))


def test_names_with_shell_words_are_names(canary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    names = [
        "a;touch canary;.sph",
        "$(touch canary).wav",
        "`touch canary`.wav",
        "x|touch canary.wav",
        "a&touch canary&.flac",
        "-rf.wav",
    ]
    for number, name in enumerate(names):
        plain = write(folder / "plain.wav", speechlike(0.3, number))
        plain.rename(folder / name)
    report = audit(iterate_corpus(folder), num_workers=1)
    assert len(report.cuts) == len(names)
    write_corpus(report.cuts, folder)
    assert len(open_corpus(folder)) == len(names)


def test_absolute_paths_to_what_is_no_audio_are_rejected_and_never_shown(canary: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the password is swordfish")
    (tmp_path / "metadata.csv").write_text(f"file_name\n{secret}\n/dev/zero\n/proc/self/mem\n/dev/tty\n")
    items = list(iterate_corpus(tmp_path))
    assert all(isinstance(item, Rejected) for item in items)
    assert "swordfish" not in repr(items)


def test_pickles_and_code_named_like_recordings_and_manifests(canary: Path, tmp_path: Path) -> None:
    payload = b"cos\nsystem\n(S'touch canary'\ntR."  # protocol 0: runs as soon as anything unpickles it
    folder = tmp_path / "corpus"
    for name in ("a.wav", "b.flac", "c.mp3", "d.opus", "e.ogg"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(payload)
    assert [item.verdict for item in iterate_corpus(folder) if isinstance(item, Rejected)] == ["unreadable"] * 5
    for name in ("cuts.jsonl", "metadata.csv", "metadata.jsonl", "t.tsv"):
        path = tmp_path / name
        path.write_bytes(payload)
        with pytest.raises(DataError):
            open_corpus(path)
        path.unlink()


def test_a_line_without_end_does_not_fill_the_memory(canary: Path, tmp_path: Path) -> None:
    path = tmp_path / "cuts.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=9) as stream:  # a bomb: 40 kB that unpack to 40 MB
        for _ in range(40):
            stream.write(b'{"a": "' + b"x" * (1 << 20))
    with pytest.raises(DataError, match="longer than"):
        open_corpus(path)


def _shar(folder: Path, members: list[tuple[tarfile.TarInfo, bytes]], lines: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    with gzip.open(folder / "cuts.000000.jsonl.gz", "wt") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    with tarfile.open(folder / "recording.000000.tar", "w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return folder


def _member(
    name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
    return info, data if kind == tarfile.REGTYPE else b""


@pytest.mark.parametrize(
    "members",
    [
        [_member("../canary.flac"), _member("../canary.json")],
        [_member("/tmp/canary.flac"), _member("/tmp/canary.json")],
        [_member("a.flac", kind=tarfile.SYMTYPE, link="/etc/passwd"), _member("a.json")],
        [_member("a.flac", kind=tarfile.LNKTYPE, link="../x"), _member("a.json")],
        [_member("a.flac", kind=tarfile.CHRTYPE), _member("a.json")],
        [_member("a.flac", kind=tarfile.FIFOTYPE), _member("a.json")],
        [_member("a.flac")],
        [],
    ],
)
def test_archives_are_read_in_place_and_never_unpacked(canary: Path, tmp_path: Path, members: list[Any]) -> None:
    line = _line(tmp_path)
    line["id"] = "a"
    line["recording"]["sources"] = [{"type": "shar", "channels": [0], "source": ""}]
    folder = _shar(tmp_path / "shar", members, [line])
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"recording\.000000\.tar"):
        list(iterate_corpus(folder))
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_no_audio_in_a_shard_is_rejected_by_the_audit(canary: Path, tmp_path: Path) -> None:
    line = _line(tmp_path)
    line["recording"]["sources"] = [{"type": "shar", "channels": [0], "source": ""}]
    folder = _shar(tmp_path / "shar", [_member("a.flac", b"cos\nsystem\n"), _member("a.json", b"{}")], [line])
    assert audit(iterate_corpus(folder), num_workers=1).verdicts == {"unreadable": 1}
