"""Paths that the operating system refuses are one sentence, told before anything is computed."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from isogloss.cli import main as cli
from isogloss.cli._out import check_file, check_folder
from isogloss.core.errors import CheckpointError, ConfigError
from isogloss.core.os_errors import advice, explain


def _verb(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def app(**_: object) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "isogloss.cli.doctor", SimpleNamespace(app=app))


def test_a_refused_path_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/model.safetensors")
    _verb(monkeypatch, error)
    with pytest.raises(SystemExit) as left:
        cli.main(["doctor"])
    told = capsys.readouterr().err
    assert left.value.code == 1
    assert told.startswith("isogloss: /data/model.safetensors: Permission denied: ")
    assert "change its permissions" in told
    assert told.count("\n") == 1
    with pytest.raises(PermissionError):  # with --debug the traceback is kept
        cli.main(["doctor", "--debug"])


@pytest.mark.parametrize(
    "error",
    [
        OSError("no path, so nobody's file"),
        FileNotFoundError(errno.ENOENT, "gone", str(Path(cli.__file__).parent / "table.txt")),
        ValueError("a defect"),
    ],
)
def test_defects_keep_their_traceback(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    _verb(monkeypatch, error)
    with pytest.raises(type(error)):
        cli.main(["doctor"])


def test_a_full_disk_is_told_without_a_path() -> None:
    assert "free some space" in (explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) or "")
    assert explain(OSError(errno.EBADF, "bad descriptor")) is None
    assert "space" not in advice(PermissionError(errno.EACCES, "Permission denied"))


@pytest.mark.parametrize(
    "command",
    [
        ["demo", "--out", "FILE"],
        ["benchmark", "objectives", "--data", "none", "--out", "FILE"],
        ["extract", "--from", "none", "--data", "none", "--out", "FILE/below"],
        ["label", "--data", "none", "--out", "FILE"],
        ["export", "none", "FILE"],
        ["probe", "phones", "--data", "none", "--out", "FOLDER"],
        ["probe", "ctc", "--data", "none", "--out", "FOLDER"],
        ["probe", "lid", "--data", "none", "--out", "FILE/results.jsonl"],
        ["abx", "--data", "none", "--out", "FOLDER"],
        ["predict", "--model", "none", "--data", "none", "--out", "FOLDER"],
        ["predict", "--model", "none", "--data", "none", "--results", "FOLDER"],
        ["evaluate", "--reference", "none", "--hypothesis", "none", "--metric", "wer", "--out", "FOLDER"],
        ["languages", "overlap", "--from", "none", "--out", "FILE"],
        ["languages", "lesions", "--from", "none", "--data", "none", "--out", "FILE"],
        ["corpus", "audit", "none", "--out", "FILE"],
        ["corpus", "segment", "none", "--out", "FILE"],
        ["corpus", "split", "none", "--out", "FILE"],
        ["corpus", "shard", "none", "--out", "FILE"],
        ["corpus", "stats", "none", "--out", "FILE/table.md"],
        ["corpus", "prepare", "debian", "--out", "FILE"],
        ["corpus", "import", "fleurs", "none", "--out", "FILE"],
        ["corpus", "synthesize", "--language", "sw", "--out", "FILE"],
    ],
    ids=lambda command: "-".join(command[:2]),
)
def test_out_is_checked_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    file = tmp_path / "taken"
    file.write_text("something", encoding="utf-8")
    with pytest.raises(SystemExit) as left:
        cli.main([word.replace("FILE", str(file)).replace("FOLDER", str(tmp_path)) for word in command])
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert "must be a fol" in told or "must be a file" in told
    assert told.startswith("isogloss: ")
    assert file.read_text(encoding="utf-8") == "something"


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(tmp_path / "new" / "folder")
    check_file(tmp_path / "new" / "results.jsonl")
    check_folder(None)
    check_file(None)
    old = tmp_path / "old.jsonl"
    old.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    for check, place in ((check_folder, tmp_path / "new"), (check_file, tmp_path / "a.jsonl"), (check_file, old)):
        with pytest.raises(ConfigError, match="cannot be written by you"):
            check(place)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == old)
    check_file(old)  # in a folder that cannot be written, as /dev/stdout is
    for place, is_replaced in ((tmp_path / "a.jsonl", False), (old, True)):
        with pytest.raises(ConfigError, match="cannot be written by you"):
            check_file(place, is_replaced=is_replaced)


def test_a_link_to_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match="must be a folder"):
        check_folder(tmp_path / "link" / "run")


def test_saving_where_one_may_not_gives_no_advice_about_space(tmp_path: Path) -> None:
    from isogloss.hub.save import commit_folder

    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "model.safetensors")

    with pytest.raises(CheckpointError, match="change its permissions") as caught:
        commit_folder(tmp_path / "model", "model.json", refuse)
    assert "space" not in str(caught.value)
