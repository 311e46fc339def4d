"""Find a plug-in by its file name: no registry, nothing imported that was not asked for."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import TypeVar

from isogloss.core.errors import ConfigError

T = TypeVar("T")
_SINGULARS = {"corpora": "corpus", "families": "family"}


def names_in(package: str, *, without: frozenset[str] = frozenset({"base"})) -> list[str]:
    """Return the module names of a package, sorted, without its shared parts and private modules."""
    paths = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(paths) if m.name not in without and not m.name.startswith("_"))


def nearest(name: str, known: list[str]) -> str:
    """Return a phrase that names the nearest known name, or those that begin with a word near it, or lists all of them.

    Case does not matter. Names of several words are put in quotes, so that a comma in one does not divide it.
    """
    spelled = {own.casefold(): own for own in reversed(known)}
    wanted = name.casefold()
    if close := difflib.get_close_matches(wanted, spelled, n=1):
        return f"did you mean `{spelled[close[0]]}`?"
    begins: dict[str, list[str]] = {}
    for own in known:
        begins.setdefault(re.split(r"[\s,]", own.casefold())[0], []).append(own)
    if close := difflib.get_close_matches(wanted, begins, n=1, cutoff=0.75):
        return f"did you mean {' or '.join(f'`{own}`' for own in begins[close[0]])}?"
    quoted = (f"`{own}`" if len(own.split()) > 1 or "," in own else own for own in known)
    return f"known are {', '.join(quoted)}"


def find_module(package: str, name: str) -> ModuleType:
    """Import `package.name`; a name that no file has is a `ConfigError` that names the nearest one."""
    known = names_in(package)
    if name not in known:
        plural = package.rsplit(".", 1)[-1]
        kind = _SINGULARS.get(plural, plural.removesuffix("s"))
        raise ConfigError(f"there is no {kind} `{name}`; {nearest(name, known)}")
    return importlib.import_module(f"{package}.{name}")


def find_class(module: ModuleType, base: type[T]) -> type[T]:
    """Return the one class of a module that derives from `base` and was defined there."""
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} must define one {base.__name__}, but defines {len(found)}")
    return found[0]
