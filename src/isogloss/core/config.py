"""Configuration: TOML into frozen pydantic models; an unknown key is an error that names the nearest known one."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from isogloss.core.errors import ConfigError
from isogloss.core.lookup import nearest


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown key, defaults are checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def changed(self, *names: str) -> list[str]:
        """Return which of these settings differ from their defaults: a resolved configuration, written out, sets all of them."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]


C = TypeVar("C", bound=Config)


def read_toml(path: Path | str) -> dict[str, Any]:
    """Read a TOML file; an absent or malformed one is a `ConfigError` with the place of the fault."""
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such recipe; `isogloss recipes list` shows those that come with isogloss"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `a.b=value` overrides (values in TOML, or plain words) to a nested mapping and return the new one."""
    result: dict[str, Any] = _copy(tree)
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            raise ConfigError(f"`--set {override}` must look like `--set section.key=value`")
        *parents, leaf = key.strip().split(".")
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"`--set {override}`: `{parent}` is a value, not a section")
        node[leaf] = _parse_value(text.strip())
    return result


def parse(model: type[C], tree: Mapping[str, Any], where: str) -> C:
    """Build a configuration; every fault is told in one line with its key, its value and the nearest known key."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        faults = [_describe(model, dict(fault)) for fault in error.errors()]
        raise ConfigError(f"{where}: " + "; ".join(faults)) from None


def to_toml(tree: Mapping[str, Any]) -> str:
    """Write a tree of plain values as TOML (None is left out)."""
    return "\n".join(_toml_lines(tree, ())) + "\n"


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _describe(model: type[BaseModel], fault: dict[str, Any]) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(location)
    if fault["type"] == "extra_forbidden":
        owner = _owner(model, location[:-1])
        hint = nearest(location[-1], sorted(owner.model_fields)) if owner else "remove it"
        return f"unknown key `{key}`; {hint}"
    if fault["type"] == "missing":
        return f"`{key}` is missing"
    message = str(fault["msg"])
    message = message.removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    # Settings that do not go together are named by the message; all of them would hide it.
    return f"`{key}` is {fault['input']!r}: {message}" if key else message


def _owner(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    owner: Any = model
    for part in path:
        known = owner.model_fields.get(part)
        if known is None:
            return None
        owner = known.annotation
        if not (isinstance(owner, type) and issubclass(owner, BaseModel)):
            return None
    return owner  # type: ignore[no-any-return]


def _toml_lines(tree: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [
        f"{key} = {_toml_value(value)}"
        for key, value in tree.items()
        if value is not None and not isinstance(value, Mapping)
    ]
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{'.'.join((*path, key))}]", *_toml_lines(value, (*path, key))]
    return lines


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        import json

        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    return _toml_value(str(value))
