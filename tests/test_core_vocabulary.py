"""Texts to symbols and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from isogloss.core.errors import ConfigError, DataError
from isogloss.core.vocabulary import BLANK, FIRST, UNKNOWN, Labels, Vocabulary, normalize_text


def test_symbols_are_ordered_by_frequency_then_name_and_numbered_behind_blank_and_unknown() -> None:
    labels = Labels().with_symbols_of(["banana", "bc"])
    assert labels.symbols == ("a", "b", "n", "c")
    vocabulary = Vocabulary(labels)
    assert len(vocabulary) == 6
    assert vocabulary.encode("Cabz").tolist() == [FIRST + 3, FIRST, FIRST + 1, UNKNOWN]
    assert vocabulary.decode([FIRST + 3, BLANK, FIRST, UNKNOWN]) == "ca⁇"


def test_rare_symbols_are_unknown() -> None:
    labels = Labels(min_count=2).with_symbols_of(["aab", "a"])
    assert labels.symbols == ("a",)
    with pytest.raises(DataError, match=r"none of the 2 characters comes 9 times; lower `labels.min_count`"):
        Labels(min_count=9).with_symbols_of(["aab"])
    with pytest.raises(DataError, match="the corpus has no text; give transcripts"):
        Labels().with_symbols_of([])
    with pytest.raises(DataError, match="the corpus has no phones; give an alignment"):
        Labels(unit="phones").with_symbols_of([""])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Kyéma, yeékirá!\tIKÓÓ ", "kyéma yeékirá ikóó"),
        ("e\u0301", "é"),  # composed
        ("İ", "i̇"),
        ("l'eau d’ici 'quoted' rock-'n'-roll", "l'eau d’ici quoted rock n roll"),
        ("sə˥˧kvɯ˥˩ ^ 5€", "sə˥˧kvɯ˥˩ 5"),
        ("ʔut͡ɕʰiboɹa", "ʔut͡ɕʰiboɹa"),
        ("मैं हूँ।", "मैं हूँ"),
        ("¿Qué? — nada…", "qué nada"),
    ],
)
def test_normal_form(text: str, expected: str) -> None:
    assert normalize_text(text) == expected
    assert normalize_text(expected) == expected


def test_case_and_punctuation_can_be_kept() -> None:
    assert normalize_text("A, b", lowercase=False, keep_punctuation=True) == "A, b"


@pytest.mark.parametrize(
    ("unit", "text", "symbols"),
    [
        ("characters", "Ab c", ["a", "b", " ", "c"]),
        ("words", "Ab c", ["ab", "c"]),
        ("ipa", "t͡ɕʰi.ˈbo", ["t͡ɕʰ", "i", "b", "o"]),
        ("phones", "AH0 B", ["AH0", "B"]),
    ],
)
def test_units(unit: str, text: str, symbols: list[str]) -> None:
    labels = Labels(unit=unit)  # type: ignore[arg-type]
    assert labels.split(text) == symbols
    assert labels.split(labels.join(symbols)) == symbols
    assert labels.needs == ("phones" if unit == "phones" else "text")


def test_a_vocabulary_without_symbols_is_refused() -> None:
    with pytest.raises(ConfigError, match="symbols"):
        Vocabulary(Labels()).encode("a")


def test_labels_of_a_corpus_are_found_in_one_pass(tmp_path: Path) -> None:
    from isogloss.data.index import CorpusIndex
    from isogloss.data.text import labels_of_corpus
    from small_corpus import cut_fields, write_cuts

    cuts = [cut_fields(f"u{i}", 1.0) for i in range(3)]
    cuts[0]["supervisions"][0]["text"] = "Bab"
    cuts[1]["supervisions"][0]["text"] = "ab"
    del cuts[2]["supervisions"][0]["text"]
    cuts[2]["supervisions"][0]["alignment"] = {"phone": [["SIL", 0.0, 0.1], ["K", 0.1, 0.1], ["A", 0.2, 0.1]]}
    write_cuts(tmp_path / "cuts.jsonl", cuts)
    index = CorpusIndex.build(tmp_path, tmp_path / "index")
    assert labels_of_corpus(Labels(), index).symbols == ("b", "a")
    assert labels_of_corpus(Labels(unit="phones"), index).symbols == ("A", "K")
    given = Labels(symbols=("x",))
    assert labels_of_corpus(given, index) is given
