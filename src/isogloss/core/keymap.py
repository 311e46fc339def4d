"""Translate the names of tensors between codebases: anchored patterns, one rule per tensor, nothing unknown passes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One name on each side; `{i}` stands for a layer number and is carried over."""

    foreign: str
    own: str


class KeyMap:
    """A list of rules, readable in both directions."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._to_own = [(_pattern(rule.foreign), rule.own) for rule in rules]
        self._to_foreign = [(_pattern(rule.own), rule.foreign) for rule in rules]

    def to_own(self, name: str) -> str | None:
        """Return our name of a foreign tensor, None where no rule knows it."""
        return _translate(self._to_own, name)

    def to_foreign(self, name: str) -> str | None:
        """Return the foreign name of one of our tensors, None where no rule knows it."""
        return _translate(self._to_foreign, name)


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template)
    return re.compile("^" + re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", escaped) + "$")


def _translate(rules: Iterable[tuple[re.Pattern[str], str]], name: str) -> str | None:
    for pattern, template in rules:
        if match := pattern.match(name):
            return template.format(**match.groupdict())
    return None
