from __future__ import annotations

import json
from pathlib import Path

import jiwer
import pytest

from isogloss.cli.main import main
from isogloss.core.errors import DataError
from isogloss.evaluation.scoring import check_ids, read_rows, score_files
from isogloss.evaluation.tables import read_results

TEXTS = {f"u{k:02d}": text for k, text in enumerate(["a b c", "b c d e", "a", "d d", "e a b c", "c"] * 4)}


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    rows = [{"id": k, "text": t, "speaker": f"s{n // 4}"} for n, (k, t) in enumerate(TEXTS.items())]
    return jsonl(tmp_path / "test.jsonl", rows)  # type: ignore[arg-type]


def kaldi(path: Path, texts: dict[str, str]) -> Path:
    path.write_text("".join(f"{k} {t}\n" for k, t in texts.items()), encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["evaluate", *map(str, arguments)])
    return int(left.value.code or 0)


def test_two_systems_and_their_difference(tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {k: t if k != "u03" else "" for k, t in TEXTS.items()}
    bad = {k: t.replace("a", "x") for k, t in TEXTS.items()}
    out = tmp_path / "results.jsonl"
    files = kaldi(tmp_path / "good.txt", good), kaldi(tmp_path / "bad.txt", bad)
    assert (
        run(
            "--reference",
            reference,
            "--hypothesis",
            files[0],
            "--hypothesis",
            files[1],
            "--metric",
            "wer",
            "--out",
            out,
        )
        == 0
    )
    first, second, difference = read_results(out)
    assert first.value == pytest.approx(jiwer.wer(list(TEXTS.values()), list(good.values())))
    assert second.value == pytest.approx(jiwer.wer(list(TEXTS.values()), list(bad.values())))
    assert difference.value == pytest.approx(first.value - second.value)
    assert difference.system == "good − bad"
    assert (first.unit, first.num_units) == ("speaker", 6)
    assert difference.high < 0
    assert set(first.meta["sha256"]) == {"test", "good", "bad"}
    assert "good − bad" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:3] + t[4:], "lacks `u03` (1 of 24)"),
        (lambda t: [*t, t[5]], "`u05` more than once"),
        (lambda t: [*t, ("zz", "a")], "has `zz`, which the reference lacks (1)"),
        (lambda t: [t[1], t[0], *t[2:]], "row 1 is `u01`, but must be `u00`"),
        (lambda t: [("u00 ", "a"), *t[2:]], "lacks `u01`"),
    ],
)
def test_tampered_ids_are_named(
    tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str], change, message: str
) -> None:
    changed = change(list(TEXTS.items()))
    hypothesis = tmp_path / "hyp.txt"
    hypothesis.write_text("".join(f"{k} {t}\n" for k, t in changed))
    assert run("--reference", reference, "--hypothesis", hypothesis, "--metric", "cer") == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"id": "x", "text": "a"}\n{"id": 3, "text": "a"}\n', "a.jsonl:2: `id` must be a text"),
        ("a.jsonl", '{"id": "x"}\n', "a.jsonl:1: must have `id` and one of"),
        ("a.jsonl", "\n[1]\n", "a.jsonl:2: must be an object"),
        ("a.jsonl", "{\n", "a.jsonl:1: not JSON"),
        ("a.jsonl", "[" * 100_000 + "\n", "a.jsonl:1: not JSON"),
        ("a.csv", "id,text\nx,a,b\n", "a.csv:2: must have 2 columns"),
        ("a.csv", "id,text\nx\n", "a.csv:2: must have 2 columns"),
        ("a.txt", "\n", "has no rows"),
        ("a.txt", "x a\nx b\n", "`x` more than once"),
        ("a.jsonl", '{"id": "x", "text": "a", "score": 1}\n', "has both `text` and `score`"),
    ],
)
def test_faults_of_files_have_their_place(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r".") as caught:
        read_rows(tmp_path / name)
    assert message in str(caught.value)


def test_every_format_reads_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("u1 ngá sá\nu2\n", encoding="utf-8")
    (tmp_path / "a.csv").write_text("\ufeffid,text,speaker\nu1,ngá sá,ann\nu2,,bob\n", encoding="utf-8")
    (tmp_path / "a.tsv").write_text("speaker\tid\ttext\nann\tu1\tngá sá\nbob\tu2\t\n", encoding="utf-8")
    rows = [{"id": "u1", "text": "ngá sá", "speaker": "ann"}, {"id": "u2", "text": "", "speaker": "bob"}]
    jsonl(tmp_path / "a.jsonl", rows)  # type: ignore[arg-type]
    for name in ("a.txt", "a.csv", "a.tsv", "a.jsonl"):
        read = read_rows(tmp_path / name)
        assert (read.ids, read.values) == (["u1", "u2"], ["ngá sá", ""])
        assert read.speakers == ([None, None] if name == "a.txt" else ["ann", "bob"])
        check_ids(read, read)


def test_labels_and_scores(tmp_path: Path) -> None:
    languages = ["fr", "es", "ru"] * 6
    truth = read_rows(kaldi(tmp_path / "truth.txt", {f"u{k}": x for k, x in enumerate(languages)}))
    guesses = [*languages[:15], "xx", "fr", "fr"]
    guess = read_rows(kaldi(tmp_path / "guess.txt", {f"u{k}": x for k, x in enumerate(guesses)}))
    right = read_rows(kaldi(tmp_path / "right.txt", {f"u{k}": x for k, x in enumerate(languages)}))

    def value(metric, reference, *hypotheses):
        return [r.value for r in score_files(reference, hypotheses, metric, dataset="d", resamples=100)]

    assert value("accuracy", truth, guess, right) == pytest.approx([15 / 18, 1, 15 / 18 - 1])
    assert value("macro_accuracy", truth, guess) == pytest.approx([(5 / 6 + 5 / 6 + 5 / 6) / 3])
    f1 = (2 * 5 / 13 + 2 * 5 / 11 + 2 * 5 / 11 + 0) / 4  # fr: 5 hits, 2 false, 1 missed; es, ru: one missed; xx: none
    assert value("macro_f1", truth, guess) == pytest.approx([f1])
    alone, perfect, difference = value("macro_f1", truth, guess, right)
    assert perfect == 1
    assert difference == pytest.approx(alone - perfect)
    trial = read_rows(kaldi(tmp_path / "trial.txt", {f"t{k}": ("nontarget", "target")[k % 2] for k in range(20)}))
    score = read_rows(kaldi(tmp_path / "score.txt", {f"t{k}": str(k % 2 - (k == 1)) for k in range(20)}))
    assert value("eer", trial, score)[0] == pytest.approx(1 / 20, abs=0.05)
    assert value("eer", trial, score, score)[2] == 0
    with pytest.raises(DataError, match="the score of `u0` must be a finite number, but is `fr`"):
        value("eer", read_rows(kaldi(tmp_path / "r.txt", {f"u{k}": "target" for k in range(18)})), guess)
    numbers = read_rows(kaldi(tmp_path / "n.txt", {f"u{k}": "1" for k in range(18)}))
    with pytest.raises(DataError, match="must be `target` or `nontarget`, but is `fr`"):
        value("eer", truth, numbers)
