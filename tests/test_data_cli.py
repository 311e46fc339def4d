"""`isogloss corpus …` from end to end, with honest exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data_helpers import speechlike, write
from isogloss.cli.corpus import app
from isogloss.cli.main import main
from isogloss.data.inputs import open_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    lines = ["file_name,language,speaker,gender,text"]
    for number in range(12):
        name = f"audio/{number}.wav"
        write(tmp_path / "corpus" / name, speechlike(0.4, number))
        lines.append(
            f"{name},{('fr', 'sw')[number % 2]},s{number // 2 % 3 + 3 * (number % 2)},{'fm'[number % 2]},text {number}"
        )
    (tmp_path / "corpus" / "metadata.csv").write_text("\n".join(lines))
    return tmp_path / "corpus"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fails(capfd: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["corpus", *map(str, arguments)])
    assert caught.value.code == code
    error = capfd.readouterr().err
    assert "Traceback" not in error
    return error


def test_audit_stats_split_segment_shard(corpus: Path, tmp_path: Path) -> None:
    assert "12 (0.00 h)" in run("audit", corpus, "--out", tmp_path / "clean", "--workers", 1)
    assert json.loads((tmp_path / "clean" / "report.json").read_text())["used"] == 12
    assert all(len(cut.custom["sha256"]) == 64 for cut in open_corpus(tmp_path / "clean"))
    shown = run(
        "stats", tmp_path / "clean", "--out", tmp_path / "t.md", "--out", tmp_path / "t.csv", "--expect-utterances", 12
    )
    assert "fr French" in shown
    assert "| fr French |" in (tmp_path / "t.md").read_text()
    run("split", tmp_path / "clean", "--out", tmp_path / "parts", "--share", "train=0.6", "--share", "test=0.4")
    train, test = open_corpus(tmp_path / "parts" / "train"), open_corpus(tmp_path / "parts" / "test")
    assert len(train) + len(test) == 12
    assert not {cut.supervisions[0].speaker for cut in train} & {cut.supervisions[0].speaker for cut in test}
    run("split", tmp_path / "clean", "--out", tmp_path / "few", "--by", "shots", "--shots", 1, "--shots", 2)
    assert len(open_corpus(tmp_path / "few" / "shots-2")) == 4
    run(
        "segment",
        tmp_path / "clean",
        "--out",
        tmp_path / "cut",
        "--method",
        "energy",
        "--min-seconds",
        0.05,
        "--max-seconds",
        0.35,
    )
    assert len(open_corpus(tmp_path / "cut")) > 12
    run("shard", tmp_path / "clean", "--out", tmp_path / "shar", "--shard-size", 5)
    assert "12" in run("stats", tmp_path / "shar")
    assert "12 (0.00 h)" in run("audit", tmp_path / "shar", "--workers", 1, "--out", tmp_path / "back")
    assert len(open_corpus(tmp_path / "back")) == 12


def test_bad_recordings_are_named_and_the_exit_code_is_honest(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (corpus / "audio" / "3.wav").write_bytes(b"")
    error = fails(capfd, 1, "audit", corpus, "--out", tmp_path / "clean", "--workers", 1)
    assert "rejected (empty) audio-3" in error
    assert "8.3% of 12 recordings cannot be used" in error
    assert len(open_corpus(tmp_path / "clean")) == 11, "the good ones are written all the same"
    run("audit", corpus, "--workers", 1, "--max-rejected", 0.1)
    assert "3.wav: has 0 bytes (1 of 12" in fails(capfd, 1, "stats", corpus)


def test_languages_that_nobody_knows_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "recordings"
    for number, name in enumerate(("fr/a", "mboshi/a", "mboshi/deep/b", "radio/a", "c")):
        write(folder / f"{name}.wav", speechlike(0.4, number))
    shown = run("audit", folder, "--workers", 1, "--out", tmp_path / "clean")
    assert "warning: `mboshi` is a folder whose name is no language; near it is `mdw` (Mbosi)" in shown
    assert "the 2 utterances in it have none" in shown
    assert "warning: `radio` is a folder" in shown
    assert "`fr`" not in shown
    assert "`c" not in shown, "a file beside the folders names nothing"
    assert re.search(r"warnings │ +2 ", shown)
    faults = json.loads((tmp_path / "clean" / "report.json").read_text())["naming_faults"]
    assert [fault["name"] for fault in faults] == ["mboshi", "radio"]
    assert "warnings" in (shown := run("audit", folder, "--workers", 1, "--language", "mdw"))
    assert "no language" not in shown
    # codes of a table are kept, and told
    lines = ["file_name,language", "fr/a.wav,klingonish", "mboshi/a.wav,klingonish", "radio/a.wav,fr", "c.wav,x-mine"]
    (folder / "metadata.csv").write_text("\n".join(lines))
    shown = run("audit", folder, "--workers", 1)
    assert "warning: `klingonish` is the language of 2 utterances, but no registry knows it" in shown
    assert re.search(r"warnings │ +1 ", shown)
    for verb in (["audit"], ["stats"], ["segment", "--out", tmp_path / "x"]):
        told = fails(capfd, 2, verb[0], folder, *verb[1:], "--language", "klingonish")
        assert "`--language`: `klingonish` is no language that a registry knows; near it is `tlh` (Klingon)" in told
        told = fails(capfd, 2, verb[0], folder, *verb[1:], "--language", "??")
        assert "`--language`: a language code must have letters a to z, but is '??'" in told
        assert "`--language`: a language code must be" in fails(capfd, 2, verb[0], folder, *verb[1:], "--language", "")


def test_mistakes_are_one_sentence(corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert "no such corpus" in fails(capfd, 1, "stats", tmp_path / "gone")
    assert "--share train" in fails(capfd, 2, "split", corpus, "--out", tmp_path / "x", "--share", "train")
    assert "--test-source" in fails(capfd, 2, "split", corpus, "--out", tmp_path / "x", "--by", "source")
    assert "there is no source 'z'" in fails(
        capfd, 1, "split", corpus, "--out", tmp_path / "x", "--by", "source", "--test-source", "z"
    )
    assert "do not add up" in fails(capfd, 1, "stats", corpus, "--expect-utterances", 13)
    assert "must end in" in fails(capfd, 2, "stats", corpus, "--out", tmp_path / "x.pdf")
    told = fails(capfd, 2, "prepare", "debain", "--out", tmp_path / "x")
    assert "there is no corpus `debain`; did you mean `debian`?" in told
    (tmp_path / "empty").mkdir()
    told = fails(capfd, 1, "audit", tmp_path / "empty", "--workers", 1)
    assert "empty: has no recordings; accepted are wav" in told
    assert "above" not in told
    assert "must look like" in fails(capfd, 2, "audit", corpus, "--ctm", "tone=x")
    assert "Missing option" in fails(capfd, 2, "segment", corpus)


def test_textgrids_and_ctm_can_be_given(corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.ctm").write_text("0 1 0.1 0.1 k\n1 1 0 0.1 o\n")
    run(
        "audit",
        corpus,
        "--ctm",
        f"phone={tmp_path / 'a.ctm'}",
        "--alignment-kind",
        "gold",
        "--out",
        tmp_path / "c",
        "--workers",
        1,
    )
    cuts = {cut.id: cut for cut in open_corpus(tmp_path / "c")}
    assert cuts["audio-0"].supervisions[0].alignment["phone"][0].symbol == "k"
    assert cuts["audio-0"].custom["alignment_kind"] == "gold"
    (tmp_path / "a.ctm").write_text("stranger 1 0.1 0.1 k\n")
    assert "no alignment belongs to any cut" in fails(
        capfd, 1, "audit", corpus, "--ctm", f"phone={tmp_path / 'a.ctm'}", "--workers", 1
    )


def test_as_a_process_and_without_heavy_imports(corpus: Path) -> None:
    code = (
        "import sys; import isogloss.cli.corpus as c; "
        "heavy = {'torch', 'lhotse', 'scipy', 'matplotlib', 'soundfile', 'transformers'} & set(sys.modules); "
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    call = [sys.executable, "-c", "from isogloss.cli.main import main; main()", "corpus"]
    done = subprocess.run([*call, "stats", str(corpus)], capture_output=True, text=True, timeout=120, check=True)
    assert "fr French" in done.stdout
