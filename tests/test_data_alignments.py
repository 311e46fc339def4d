"""CTM and TextGrid alignments in the time of each cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from lhotse import MonoCut

from data_helpers import make_cut, speechlike, write
from isogloss.core.errors import DataError
from isogloss.data.alignments import attach_ctm, attach_textgrids, read_textgrid
from isogloss.data.inputs import open_corpus, write_corpus

SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.0
<exists>
3
"IntervalTier"
"words"
0
1.0
2
0
0.4
""
0.4
1.0
"say ""5 [1]"" = x"
"TextTier"
"points"
0
1.0
1
0.5
"click"
"IntervalTier"
"ann - phones"
0
1.0
2
0.4
0.7
"s"
0.7
1.0
"eɪ"
"""
LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.0
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.0
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 0.4
            text = ""
        intervals [2]:
            xmin = 0.4
            xmax = 1.0
            text = "say ""5 [1]"" = x"
    item [2]:
        class = "IntervalTier"
        name = "ann - phones"
        xmin = 0
        xmax = 1.0
        intervals: size = 2
        intervals [1]:
            xmin = 0.4
            xmax = 0.7
            text = "s"
        intervals [2]:
            xmin = 0.7
            xmax = 1.0
            text = "eɪ"
"""


def _items(cut: MonoCut, level: str) -> list[tuple[str, float, float]]:
    alignment = cut.supervisions[0].alignment
    assert alignment is not None
    return [(item.symbol, item.start, item.duration) for item in alignment[level]]


def test_ctm_is_shifted_and_cropped_to_each_cut(tmp_path: Path) -> None:
    path = tmp_path / "p.ctm"
    path.write_text(
        ";; comment\nrec 1 1.5 0.25 b 0.9\nrec 1 0.5 1.0 a\nother 1 0 1 z NA\nrec A 3.0 1.0 c\n\n", encoding="utf-8"
    )
    cuts = [
        make_cut("u1", recording="rec", start=1.0, seconds=0.6, text="x"),
        make_cut("u2", recording="rec", start=3.2, seconds=0.5),
        make_cut("u3", recording="unknown"),
    ]
    attached = attach_ctm(cuts, path, "phone", kind="gold")
    assert (attached.num_aligned, attached.strangers, len(attached.cuts)) == (2, ["other"], 3)
    assert _items(attached.cuts[0], "phone") == [("a", 0.0, 0.5), ("b", 0.5, 0.1)]
    assert _items(attached.cuts[1], "phone") == [("c", 0.0, 0.5)]
    assert attached.cuts[0].custom["alignment_kind"] == "gold"
    assert attached.cuts[0].supervisions[0].text == "x"
    assert attached.cuts[2] is cuts[2]
    assert cuts[0].supervisions[0].alignment is None, "the given cuts are not changed"


def test_levels_add_up(tmp_path: Path) -> None:
    (tmp_path / "p.ctm").write_text("rec 1 0 0.1 a\n")
    (tmp_path / "w.ctm").write_text("rec 1 0 0.2 A\n")
    cuts = attach_ctm([make_cut("rec")], tmp_path / "p.ctm", "phone").cuts
    cuts = attach_ctm(cuts, tmp_path / "w.ctm", "word").cuts
    assert (_items(cuts[0], "phone"), _items(cuts[0], "word")) == ([("a", 0.0, 0.1)], [("A", 0.0, 0.2)])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rec 1 0 0.1", "p.ctm:2: must be"),
        ("rec 1 x 0.1 a", "p.ctm:2: start, duration"),
        ("rec 1 nan 0.1 a", "p.ctm:2: start, duration"),
        ("rec 1 -1 0.1 a", "p.ctm:2: start and duration must not be negative"),
        ("rec 1 0 -0.1 a", "p.ctm:2: start and duration must not be negative"),
        ("rec 1 0 0.1 \xff", "p.ctm:2: not UTF-8"),
    ],
)
def test_faults_of_a_ctm(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "p.ctm").write_bytes(b"rec 1 0 0.1 a\n" + line.encode("latin-1") + b"\n")
    with pytest.raises(DataError, match=message):
        attach_ctm([make_cut("rec")], tmp_path / "p.ctm", "phone")


def test_an_alignment_of_other_recordings_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p.ctm").write_text("rec 1 0 0.1 a\n")
    with pytest.raises(DataError, match="'rec', the first cut is 'x'"):
        attach_ctm([make_cut("x")], tmp_path / "p.ctm", "phone")


@pytest.mark.parametrize("text", [SHORT, LONG])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_textgrids_in_both_formats_and_encodings(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "deep" / "rec.TextGrid"
    path.parent.mkdir()
    path.write_text(text, encoding=encoding)
    assert set(read_textgrid(path)) == {"words", "ann - phones"}
    [cut] = attach_textgrids([make_cut("rec")], tmp_path).cuts
    assert _items(cut, "word") == [('say "5 [1]" = x', 0.4, 0.6)]
    assert _items(cut, "phone") == [("s", 0.4, 0.3), ("eɪ", 0.7, 0.3)]


def test_faults_of_textgrids(tmp_path: Path) -> None:
    path = tmp_path / "a.TextGrid"
    backwards, unquoted = SHORT.replace("0.7\n1.0", "0.7\n0.1"), SHORT.replace('"s"', "5")
    endless = SHORT.replace("3\n", "1e99\n", 1)
    for text in ("", "hello", SHORT[:150], backwards, unquoted, endless):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=r"a\.TextGrid"):
            read_textgrid(path)
    path.write_bytes(b"\x80\x81")
    with pytest.raises(DataError, match="UTF"):
        read_textgrid(path)
    path.write_text(SHORT.replace("words", "x").replace("phones", "y"), encoding="utf-8")
    with pytest.raises(DataError, match="no tier is called"):
        attach_textgrids([make_cut("a")], tmp_path)


def test_ctm_beside_a_corpus_is_attached_as_silver_and_kept(tmp_path: Path) -> None:
    write(tmp_path / "audio" / "a.wav", speechlike(0.5))
    (tmp_path / "metadata.csv").write_text("file_name\naudio/a.wav\n")
    (tmp_path / "phones.ctm").write_text("a 1 0.1 0.2 k\n")
    corpus = open_corpus(tmp_path)
    assert _items(corpus[0], "phone") == [("k", 0.1, 0.2)]
    assert corpus[0].custom["alignment_kind"] == "silver"
    write_corpus(corpus, tmp_path)
    assert _items(open_corpus(tmp_path)[0], "phone") == [("k", 0.1, 0.2)]


MBOSHI = Path(__file__).parents[2] / "shared" / "data" / "mboshi"


@pytest.mark.slow
@pytest.mark.skipif(not MBOSHI.exists(), reason="the recordings are not here")
def test_real_alignments() -> None:
    corpus = open_corpus(MBOSHI)
    aligned = [cut for cut in corpus if cut.supervisions[0].alignment]
    assert (len(corpus), len(aligned)) == (4_616, 4_160)
    for cut in aligned:
        assert all(start >= 0 and start + seconds <= cut.duration + 1e-6 for _, start, seconds in _items(cut, "phone"))
