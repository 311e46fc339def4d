"""From a transcript to numbers and back: which symbols there are, how a text becomes symbols, and what a model keeps of both.

Symbol 0 is the blank of CTC (the padding of nothing else), 1 stands for a symbol that the vocabulary lacks, and the others follow
in order of frequency. A vocabulary is settings, so a run's configuration and a model's folder hold it whole.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from isogloss.core.config import Config
from isogloss.core.errors import ConfigError, DataError
from isogloss.core.fields import Count

BLANK, UNKNOWN, FIRST = 0, 1, 2
UNKNOWN_MARK = "⁇"  # what an unknown symbol is written as, as sentencepiece does

Unit = Literal["characters", "words", "ipa", "phones"]

_IN_WORDS = frozenset("'’ʼʻ·-‐‑")  # punctuation that many orthographies write within a word


class Labels(Config):
    """What the labels of an utterance are; the symbols are found in the corpus where none are given.

    unit
        "characters" of the text (code points of its composed form NFC, a space between words), its "words", the segments of
        a text that is IPA ("ipa": a letter with its diacritics; stress and tone left out), or the "phones" of a phone alignment,
        without silences.
    lowercase, keep_punctuation
        Texts are composed (NFC), put into lower case, and lose punctuation and symbols, except apostrophes and hyphens within a
        word; runs of white space become one space. Phones are taken as they are, IPA is decomposed and never lowered.
    min_count
        Symbols that come less often in the corpus are unknown.
    symbols
        In order of frequency, without blank and unknown.
    """

    unit: Unit = "characters"
    lowercase: bool = True
    keep_punctuation: bool = False
    min_count: Count = 1
    symbols: tuple[str, ...] = ()

    @property
    def needs(self) -> Literal["text", "phones"]:
        """The field of a batch that the labels are made of."""
        return "phones" if self.unit == "phones" else "text"

    def split(self, text: str) -> list[str]:
        """Return the symbols of a text; of "phones", which are no text, those that a space divides."""
        if self.unit == "ipa":
            return ipa_segments(text)
        if self.unit == "phones":
            return text.split()
        words = normalize_text(text, lowercase=self.lowercase, keep_punctuation=self.keep_punctuation).split()
        return words if self.unit == "words" else list(" ".join(words))

    def join(self, symbols: Iterable[str]) -> str:
        """Write symbols as one text; the inverse of `split` on a text that is normal already."""
        return ("" if self.unit == "characters" else " ").join(symbols)

    def with_symbols_of(self, sequences: Iterable[Sequence[str]]) -> Self:
        """Return these settings with the symbols of a corpus, most frequent first, equally frequent ones by name."""
        counts = Counter(symbol for sequence in sequences for symbol in sequence)
        counts.pop(UNKNOWN_MARK, None)
        kept = sorted((s for s, n in counts.items() if n >= self.min_count), key=lambda s: (-counts[s], s))
        if not counts:
            advice = (
                "an alignment, or another `labels.unit`: characters, words or ipa"
                if self.unit == "phones"
                else "transcripts, such as a column `text` of metadata.csv"
            )
            raise DataError(f"no {self.unit} were found to learn: the corpus has no {self.needs}; give {advice}")
        if not kept:
            raise DataError(
                f"none of the {len(counts)} {self.unit} comes {self.min_count} times; lower `labels.min_count`"
            )
        return self.model_copy(update={"symbols": tuple(kept)})


class Vocabulary:
    """Numbers for the symbols of `Labels`; `len` counts blank and unknown too.

    It may have no symbols yet (a recipe before it has met its corpus); then it cannot encode.
    """

    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    def __len__(self) -> int:
        """Return C, the number of classes."""
        return len(self.labels.symbols) + FIRST

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Number of each symbol."""
        return {symbol: number for number, symbol in enumerate(self.labels.symbols, FIRST)}

    def encode(self, content: str | Sequence[str]) -> Tensor:
        """Return the numbers (int64) of a text, or of symbols that were split already."""
        if not self.labels.symbols:
            raise ConfigError(
                "a vocabulary must have symbols, but `labels.symbols` is empty; usually because the settings were not completed with "
                "a corpus (`for_corpus`)"
            )
        symbols = self.labels.split(content) if isinstance(content, str) else content
        return torch.tensor([self.numbers.get(s, UNKNOWN) for s in symbols], dtype=torch.int64)

    def symbols(self, numbers: Iterable[int]) -> list[str]:
        """Return the symbols of numbers without blanks; an unknown one is `UNKNOWN_MARK`."""
        return [UNKNOWN_MARK if n == UNKNOWN else self.labels.symbols[n - FIRST] for n in numbers if n != BLANK]

    def decode(self, numbers: Iterable[int]) -> str:
        """Return the text of numbers."""
        return self.labels.join(self.symbols(numbers))


def normalize_text(text: str, *, lowercase: bool = True, keep_punctuation: bool = False) -> str:
    """Return a text composed (NFC), in lower case, without punctuation and symbols, with single spaces.

    Letters, marks, digits and modifier letters (tones among them) stay; an apostrophe or hyphen stays within a word only.
    """
    text = unicodedata.normalize("NFC", text)
    if lowercase:
        text = unicodedata.normalize("NFC", text.lower())
    if not keep_punctuation:
        text = "".join(char if _belongs(text, place) else " " for place, char in enumerate(text))
    return " ".join(text.split())


def _belongs(text: str, place: int) -> bool:
    char = text[place]
    if char in _IN_WORDS:
        return 0 < place < len(text) - 1 and _is_letter(text[place - 1]) and _is_letter(text[place + 1])
    category = unicodedata.category(char)
    # Sk beyond ASCII are tone letters and other modifiers of phonetic alphabets
    return category[0] in "LMN" or (category == "Sk" and not char.isascii())


def _is_letter(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"


_TIES = frozenset("͜͡")
_PROSODY = frozenset("ˈˌ.|‖ˑ")  # stress, syllable and group marks: of the word, not of a segment


def ipa_segments(text: str) -> list[str]:
    """Split IPA into segments: a letter with its diacritics, length and ties; stress, boundaries and tone are left out."""
    segments: list[str] = []
    joins = False  # a tie: the next letter belongs to the last segment
    prefix = ""  # a modifier at the start of a word (ⁿd) belongs to the next letter
    is_start = True
    for char in unicodedata.normalize("NFD", text):
        category = unicodedata.category(char)
        if char in _TIES and segments:
            segments[-1] += char
            joins = True
        elif char in _PROSODY or category[0] in "ZCSPN":
            joins, is_start = False, is_start or category[0] in "ZP"
        elif category in ("Mn", "Lm") and is_start:
            prefix += char
        elif category in ("Mn", "Lm"):
            segments[-1] += char
        elif joins:
            segments[-1] += char
            joins = False
        else:
            segments.append(prefix + char)
            prefix, is_start = "", False
    return segments
