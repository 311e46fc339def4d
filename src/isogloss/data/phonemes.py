"""Phones of text, through espeak-ng: for silver labels where a corpus has text but no alignment."""

from __future__ import annotations

from isogloss.data._espeak import ipa, strip_stress, voice_of, without_switches

_LENGTH = str.maketrans("", "", "ːˑ")


def phonemize(text: str, language: str, *, keep_stress: bool = False, keep_length: bool = True) -> list[str]:
    """Return the IPA phones of a text in a language (BCP-47), without word boundaries.

    Stress marks are removed unless `keep_stress`; length marks stay unless `keep_length` is false. Marks of a switch to
    another language inside the text are always removed. An empty list if the text has no words. Raises `DataError` for a
    language that espeak-ng does not speak, `MissingExtraError` without espeakng-loader.
    """
    return [
        phone
        for word in phonemize_words(text, language, keep_stress=keep_stress, keep_length=keep_length)
        for phone in word
    ]


def phonemize_words(
    text: str, language: str, *, keep_stress: bool = False, keep_length: bool = True
) -> list[list[str]]:
    """Return the IPA phones of each spoken word of a text; words that are said together count as one. See `phonemize`."""
    if not any(character.isalnum() for character in text):
        return []
    words = []
    for word in without_switches(ipa(" ".join(text.split()), voice_of(language))).split():
        phones = [_clean(phone, keep_stress=keep_stress, keep_length=keep_length) for phone in word.split("_")]
        words.append([phone for phone in phones if phone])
    return [word for word in words if word]


def can_phonemize(language: str) -> bool:
    """Tell whether espeak-ng speaks a language (BCP-47)."""
    from isogloss.core.errors import DataError

    try:
        voice_of(language)
    except DataError:
        return False
    return True


def _clean(phone: str, *, keep_stress: bool, keep_length: bool) -> str:
    if not keep_stress:
        phone = strip_stress(phone)
    return phone if keep_length else phone.translate(_LENGTH)
