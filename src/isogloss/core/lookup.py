"""Find a plug-in by its file name: no registry, nothing imported that was not asked for."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

from isogloss.core.errors import ConfigError

T = TypeVar("T")


def names_in(package: str, *, without: frozenset[str] = frozenset({"base"})) -> list[str]:
    """Return the module names of a package, sorted, without its shared parts and private modules."""
    paths = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(paths) if m.name not in without and not m.name.startswith("_"))


def nearest(name: str, known: list[str]) -> str:
    """Return a phrase that names the nearest known word, or lists all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"known are {', '.join(known)}"


def find_module(package: str, name: str) -> ModuleType:
    """Import `package.name`; a name that no file has is a `ConfigError` that names the nearest one."""
    known = names_in(package)
    if name not in known:
        kind = package.rsplit(".", 1)[-1].removesuffix("s")
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
