"""The same content in many languages, from the locale data that Babel ships (Unicode CLDR) and the number names of num2words."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

import numpy as np

from isogloss.core.errors import DataError, MissingExtraError

_UNITS = (
    *("length-kilometer", "length-meter", "length-mile", "mass-kilogram", "mass-gram", "volume-liter"),
    *("temperature-celsius", "duration-hour", "duration-minute", "duration-second", "duration-week", "area-hectare"),
)
_CURRENCIES = ("EUR", "USD", "GBP", "JPY", "INR", "CHF", "MXN", "CAD", "BRL", "RUB", "CNY", "SEK")
_NUMBERS = (*range(1, 100), *range(100, 1000, 37))
_YEAR = 2024  # of the dates; any year with a 29 February gives all of them
_PLACEHOLDER = re.compile(r"M?\d+")


@dataclass(frozen=True)
class Sentence:
    """What is said: the key of the content, equal in every language, and the text."""

    key: str
    text: str


def parallel_sentences(
    languages: list[str], count: int, *, seed: int, speaker: int, items: tuple[int, int] = (3, 6)
) -> dict[str, list[Sentence]]:
    """Return `count` sentences in each language, the same content at the same place in all of them.

    A sentence lists `items[0]` to `items[1]` names of months, weekdays, dates, territories, languages, units, currencies and
    numbers that all the languages have. It depends on the seed, the speaker and the set of languages. Raises `DataError` if
    the languages share no content.
    """
    from isogloss.core.rng import derive_seed  # torch, which the names themselves do not need

    texts = {language: _content(language) for language in languages}
    shared = sorted(set.intersection(*(set(known) for known in texts.values())))
    if len(shared) < items[1]:
        raise DataError(f"locale data has no content that all of {', '.join(languages)} share; try fewer languages")
    # Kinds have very different numbers of names: a kind is drawn first, so that not every sentence lists territories.
    kinds: dict[str, list[str]] = {}
    for key in shared:
        kinds.setdefault(key.split("-")[0], []).append(key)
    names = sorted(kinds)
    sentences: dict[str, list[Sentence]] = {language: [] for language in languages}
    for number in range(count):
        rng = np.random.default_rng(derive_seed(seed, "content", speaker, number))
        length = int(rng.integers(items[0], items[1] + 1))
        chosen: list[str] = []
        while len(chosen) < length:
            of_kind = kinds[names[int(rng.integers(len(names)))]]
            key = of_kind[int(rng.integers(len(of_kind)))]
            if key not in chosen:
                chosen.append(key)
        for language in languages:
            text = ", ".join(texts[language][key] for key in chosen)
            sentences[language].append(Sentence("cldr/" + "+".join(chosen), text))
    return sentences


@lru_cache(maxsize=256)
def _content(language: str) -> dict[str, str]:
    """Return {key: text} of everything that locale data has in a language; numbers are there in every language."""
    try:
        from babel import Locale, UnknownLocaleError
    except ImportError:
        raise MissingExtraError("babel", "phones", "Text for synthesised speech") from None
    texts = {f"number-{n}": _number(n, language) for n in _NUMBERS}
    try:
        locale = Locale.parse(language.replace("-", "_"))
    except (UnknownLocaleError, ValueError):
        try:
            locale = Locale.parse(language.split("-")[0])
        except (UnknownLocaleError, ValueError):
            return texts
    with _own_data(str(locale)):
        texts |= {f"month-{n}": name for n, name in locale.months["stand-alone"]["wide"].items()}
        texts |= {f"weekday-{n}": name for n, name in locale.days["stand-alone"]["wide"].items()}
        texts |= {f"territory-{code}": name for code, name in locale.territories.items() if len(code) == 2}
        texts |= {f"language-{code}": name for code, name in locale.languages.items() if len(code) == 2}
        texts |= _units(locale) | _dates(locale, language)
    return {key: text for key, text in texts.items() if _is_sayable(key, text)}


@contextmanager
def _own_data(name: str) -> Iterator[None]:
    """Let Babel work on a copy of a locale's data, and put back what was there.

    Locales share what they inherit, and Babel (2.18) writes what it looks up into it: once a locale without month names has
    been asked for them, other locales have none either. With copies the text is the same in whatever order languages come.
    """
    from babel import localedata

    data = localedata.load(name)
    before = dict(data)
    data.update(copy.deepcopy(before))
    try:
        yield
    finally:
        data.clear()
        data.update(before)


def _units(locale: Any) -> dict[str, str]:
    from babel.numbers import get_currency_name
    from babel.units import get_unit_name

    names = {f"unit-{unit}": get_unit_name(unit, length="long", locale=locale) or "" for unit in _UNITS}
    for code in _CURRENCIES:
        name = get_currency_name(code, locale=locale)
        names[f"currency-{code}"] = "" if name == code else name
    return names


def _dates(locale: Any, language: str) -> dict[str, str]:
    """Return {date: weekday, day and month}; languages whose number names are unknown have none."""
    from babel.dates import format_skeleton

    dates = {}
    for number in range(0, 366, 5):
        day = date.fromordinal(date(_YEAR, 1, 1).toordinal() + number)
        try:
            text = format_skeleton("MMMMEEEEd", day, locale=locale)
        except (KeyError, ValueError):  # no such pattern in this locale
            return {}
        words = re.sub(r"\d+", lambda match: _number(int(match.group()), language), text)
        dates[f"date-{day:%m}-{day:%d}"] = words
    return dates


def _number(value: int, language: str) -> str:
    """Return the name of a number, or its digits where num2words does not know the language (espeak-ng reads digits itself)."""
    try:
        from num2words import num2words
    except ImportError:
        raise MissingExtraError("num2words", "phones", "Text for synthesised speech") from None
    try:
        return str(num2words(value, lang=language.replace("-", "_")))
    except (NotImplementedError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return str(value)


def _is_sayable(key: str, text: str) -> bool:
    """Tell a name from a code that stands for a missing one, and from a name with an explanation in brackets."""
    if key.startswith("number-"):
        return bool(text)
    return len(text) > 1 and not _PLACEHOLDER.fullmatch(text) and not re.search(r"[()\[\]\d{}]", text)
