"""Language codes as they are met in the wild, brought to BCP-47 and ISO 639-3.

Corpora write `eng`, `en`, `eng_Latn`, `en_US.UTF-8`, `zh-HK`, `French`, the withdrawn `iw` and `jw`, or a code of their own
such as `nst-tusom`. Equal languages must get equal tags, or sampling by language and language identification see two.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from isogloss.core.errors import ConfigError, DataError

UNDETERMINED = "und"
# Registered codes that are far more often the name of a folder: Waka, Domung, Rawang, …
_FOLDER_WORDS = frozenset(
    ("wav", "dev", "raw", "new", "old", "all", "tmp", "mic", "out", "pcm", "aux", "bad", "doc", "set")
)


@dataclass(frozen=True)
class Language:
    """`tag`: BCP-47 in canonical spelling; `iso639_3`: three letters, "" for a private code; `name`: English name, or the tag."""

    tag: str
    iso639_3: str
    name: str

    @property
    def is_known(self) -> bool:
        """True if the first subtag is a registered language."""
        return bool(self.iso639_3)

    @property
    def is_private(self) -> bool:
        """True if the tag says that it is nobody else's (RFC 5646 §2.2.7: `x-…`)."""
        return self.tag.startswith("x-")


@lru_cache(maxsize=4096)
def normalize_language(code: str) -> Language:
    """Return the language that `code` means (RFC 5646; ISO 639-1, 639-2/B and 639-3, locale names, English names).

    A code that no registry knows keeps a usable form (letters, digits and hyphens) with `iso639_3` empty. An empty or
    unprintable code is a `DataError`.
    """
    import langcodes

    text = re.sub(r"[.@].*$", "", code.strip())  # en_US.UTF-8, ca_ES@valencia
    if not text or len(text) > 100 or not text.isprintable():
        raise DataError(f"a language code must be a short text such as `fr` or `mdw`, but is {code[:100]!r}")
    try:
        parsed = langcodes.Language.get(text)
        if parsed.language and parsed.language in _names():
            return _language(langcodes.standardize_tag(text))
    except ValueError:  # not even the shape of a tag
        pass
    named = _codes().get(text.casefold())
    if named is not None:
        return _language(langcodes.standardize_tag(named))
    usable = re.sub(r"[^0-9a-z]+", "-", text.casefold()).strip("-")
    if not usable:
        raise DataError(f"a language code must have letters a to z, but is {code!r}; use its ISO 639-3 code")
    if usable == UNDETERMINED:
        return Language(UNDETERMINED, UNDETERMINED, "undetermined")
    return Language(usable, "", usable) if usable == text else normalize_language(usable)


def language_of_folder(name: str) -> Language | None:
    """Return the language that a folder is named after, None for a word such as `train`, `clips` or `wav`."""
    if name.casefold() in _FOLDER_WORDS:
        return None
    try:
        language = normalize_language(name)
    except DataError:
        return None
    return language if language.is_known else None


def known_language(code: str) -> Language:
    """Return the language that `--language` names; what is no code, or in no registry, is a `ConfigError` with the nearest names."""
    try:
        language = normalize_language(code)
    except DataError as error:
        raise ConfigError(f"`--language`: {error}") from None
    if not (language.is_known or language.is_private):
        raise ConfigError(
            f"`--language`: `{code}` is no language that a registry knows{nearest_languages(code)}; give an ISO 639 or "
            "BCP-47 code or an English name, and `mis-x-NAME` (at most eight letters) for a language that has none"
        )
    return language


def nearest_languages(name: str) -> str:
    """Return a phrase that names the languages spelled nearest, empty where none is near."""
    close = difflib.get_close_matches(name.casefold(), _codes(), n=2)
    listed = " or ".join(f"`{_codes()[match]}` ({_names()[_codes()[match]]})" for match in close)
    return f"; near it is {listed}" if listed else ""


def _language(tag: str) -> Language:
    import langcodes

    parsed = langcodes.Language.get(tag)
    primary = parsed.language or UNDETERMINED
    try:
        iso639_3 = parsed.to_alpha3()
    except LookupError:
        iso639_3 = primary if len(primary) == 3 else ""
    name = _names().get(primary, primary)
    rest = tag.partition("-")[2]
    return Language(tag, iso639_3, f"{name} ({rest})" if rest else name)


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """English name of each language subtag, from the IANA registry that langcodes carries."""
    text = resources.files("langcodes").joinpath("data/language-subtag-registry.txt").read_text(encoding="utf-8")
    names = {}
    for record in text.split("%%"):
        subtag = re.search(r"^Subtag: ([a-z]{2,3})$", record, re.MULTILINE)
        name = re.search(r"^Description: (.+)$", record, re.MULTILINE)
        if record.lstrip().startswith("Type: language\n") and subtag and name:
            names[subtag[1]] = name[1]
    names.update({f"qa{c}": f"private use qa{c}" for c in "abcdefghijklmnopqrstuvwxyz"})
    return names


@lru_cache(maxsize=1)
def _codes() -> dict[str, str]:
    """Language subtag of each English name; where two share a name, the shorter and earlier code."""
    codes: dict[str, str] = {}
    for code, name in sorted(_names().items(), key=lambda item: (len(item[0]), item[0])):
        codes.setdefault(re.sub(r"\s*\(.*\)$", "", name).casefold(), code)
    return codes
