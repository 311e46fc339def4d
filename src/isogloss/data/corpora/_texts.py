"""Read the transcripts that come with Debian's recordings: each parser takes text, runs nothing, and skips what it does not know."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

_LUA_TOKEN = re.compile(
    r"""
    --\[\[ .*? \]\] | --[^\n]*                        # comments
  | (?P<double>"(?:[^"\\\n]|\\.)*")                   # strings
  | (?P<single>'(?:[^'\\\n]|\\.)*')
  | (?P<name>[A-Za-z_]\w*)
  | (?P<sign>\.\.|[(),])
    """,
    re.VERBOSE | re.DOTALL,
)
_LUA_ESCAPES = {"n": "\n", "t": " ", "r": "", "\n": "\n"}
_SOUND = re.compile(r"<sound\s([^<>]*)/?>")
_ATTRIBUTE = re.compile(r"""([a-z]+)\s*=\s*"([^"]*)\"""")


@dataclass(frozen=True)
class DialogLine:
    """One line of a dialogue: its name, the font that tells who speaks, the English original and the text of the file."""

    name: str
    font: str
    original: str
    text: str


def parse_dialogs(source: str) -> list[DialogLine]:
    """Return the lines of a dialogue script: `dialogId(name, font, original)`, in most files followed by `dialogStr(text)`.

    Where no `dialogStr` follows, the text is empty. Calls with other arguments than string literals (joined by `..` or not)
    are not dialogue and are skipped.
    """
    lines: list[DialogLine] = []
    for function, arguments in _lua_calls(source):
        if function == "dialogId" and len(arguments) == 3:
            name, font, original = arguments
            lines.append(DialogLine(name, font, clean(original), ""))
        elif function == "dialogStr" and len(arguments) == 1 and lines and not lines[-1].text:
            lines[-1] = replace(lines[-1], text=clean(arguments[0]))
    return lines


def parse_prompts(source: str) -> dict[str, str]:
    """Return {prompt name: text} of a list with one `name: text` a line; `;` starts a comment."""
    prompts = {}
    for line in source.lstrip("\ufeff").splitlines():
        name, sign, text = line.partition(":")
        if sign and not line.lstrip().startswith(";") and " " not in name.strip():
            prompts[name.strip()] = clean(text)
    return prompts


def parse_stamp(source: str) -> dict[str, str]:
    """Return {POSIX locale: text} of a picture's description: the first line is English, the others `locale.utf8=text`."""
    first, *others = source.lstrip("\ufeff").splitlines() or [""]
    texts = {"en": clean(first)}
    for line in others:
        locale, sign, text = line.partition("=")
        if sign and locale.endswith(".utf8") and clean(text):
            texts[locale.removesuffix(".utf8")] = clean(text)
    return {locale: text for locale, text in texts.items() if text}


def parse_sounds(source: str) -> dict[str, str]:
    """Return {file: name} of the `<sound name="…" file="…"/>` elements of a sound theme.

    The elements are picked out one by one, so entities that a document defines for itself are never expanded.
    """
    sounds = {}
    for element in _SOUND.finditer(re.sub(r"<!--.*?-->", "", source, flags=re.DOTALL)):
        attributes = dict(_ATTRIBUTE.findall(element[1]))
        if "file" in attributes and "name" in attributes:
            sounds[attributes["file"]] = clean(html.unescape(attributes["name"]))
    return sounds


def clean(text: str) -> str:
    """Return the text on one line, without quotation marks around the whole of it."""
    text = " ".join(text.split())
    for left, right in (("“", "”"), ('"', '"'), ("«", "»")):
        if len(text) > 2 and text.startswith(left) and text.endswith(right) and left not in text[1:-1]:
            return text[1:-1].strip()
    return text


def language_tag(locale: str) -> str:
    """Return the BCP-47 tag of a POSIX locale: `pt_BR` is `pt-BR`, `sr@latin` is `sr-Latn`, `ca@valencia` is `ca-valencia`."""
    main, _, modifier = locale.partition("@")
    parts = main.replace("_", "-").split("-")
    tag = "-".join([parts[0].lower(), *(part.upper() for part in parts[1:])])
    suffix = {"latin": "Latn", "ijekavian": "ijekavsk", "ijekavianlatin": "Latn-ijekavsk", "valencia": "valencia"}
    return f"{tag}-{suffix.get(modifier, modifier)}" if modifier else tag


def _lua_calls(source: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (function, string arguments) of every call whose arguments are all string literals."""
    tokens: list[tuple[str | None, str]] = [
        (m.lastgroup, m.group()) for m in _LUA_TOKEN.finditer(source) if m.lastgroup is not None
    ]
    position = 0
    while position < len(tokens) - 1:
        kind, name = tokens[position]
        position += 1
        if kind != "name" or tokens[position] != ("sign", "("):
            continue
        arguments, end = _lua_arguments(tokens, position + 1)
        if arguments is not None:
            position = end
            yield name, arguments


def _lua_arguments(tokens: list[tuple[str | None, str]], position: int) -> tuple[list[str] | None, int]:
    arguments: list[str] = []
    joined = False
    while position < len(tokens):
        kind, token = tokens[position]
        position += 1
        if kind in ("double", "single"):
            value = _lua_string(token)
            if joined:
                arguments[-1] += value
            else:
                arguments.append(value)
            joined = False
        elif token == ")":
            return arguments, position
        elif token == ".." and arguments:
            joined = True
        elif token != ",":
            return None, position
    return None, position


def _lua_string(token: str) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] is not None:
            return chr(int(match[1])) if int(match[1]) < 128 else ""
        return _LUA_ESCAPES.get(match[2], match[2])

    return re.sub(r"\\(?:(\d{1,3})|(.))", value, token[1:-1], flags=re.DOTALL)
