"""`isogloss doctor`: it works here, and it knows what does not go together."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from isogloss.cli.doctor import app, codecs, conflicts, disk


def test_doctor_finds_nothing_broken_here(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    for word in ("torch", "flac", "opus", "GB free", "cores usable"):
        assert word in result.output
    assert {name: verdict for verdict, name, _ in codecs()}["flac"] == "good"


def test_known_bad_combinations_are_named() -> None:
    assert conflicts({"torch": "2.13.0+cpu"}, torch_has_cuda=False) == []
    assert conflicts({"torchaudio": "2.11.0", "torch": "2.11.0"}, torch_has_cuda=True) == []
    ((verdict, what, text),) = conflicts({"torchaudio": "2.11.0", "torch": "2.13.0+cpu"}, torch_has_cuda=False)
    assert (verdict, what) == ("warning", "torchaudio")
    assert "pip uninstall torchaudio" in text
    assert [v for v, _, _ in conflicts({"torch": "2.9.1", "lightning": "2.6.3"}, torch_has_cuda=True)] == ["fault"] * 2


def test_a_missing_folder_is_a_fault(tmp_path: Path) -> None:
    assert disk(tmp_path / "absent")[0][0] == "fault"
    result = CliRunner().invoke(app, ["--folder", str(tmp_path / "absent")])
    assert result.exit_code == 1
