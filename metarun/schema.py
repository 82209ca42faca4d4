"""A config node against the dataclass it describes: every key, type and limit, all complaints together."""

from __future__ import annotations

import contextlib
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from math import isfinite
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from metarun.hints import did_you_mean
from metarun.types import InputError, Limits

Tree = dict[str, Any]


class Complaints:
    """Gathers what is wrong with many things, to be told together."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def about(self, make: Callable[[], Any]) -> Any:
        """What `make` makes; None where it raises `InputError`, whose complaint is kept."""
        try:
            return make()
        except InputError as e:
            self.lines.append(str(e))

    def end(self) -> None:
        """Raises an `InputError` with all complaints, if there are any."""
        if self.lines:
            raise InputError("\n".join(dict.fromkeys(self.lines)))  # each once


def checked(cls: type, node: Any, where: str) -> Tree:
    """The settings of `cls` in a config node, each of the right type and within its limits.

    Raises `InputError` with a line for each thing wrong: an unknown key, a wrong type, a value out of range.
    """
    if not isinstance(node, Mapping):
        raise InputError(f"{where}={node!r}: must be a mapping of settings; set one with {where}.KEY=VALUE")
    hints = get_type_hints(cls)
    limits = limits_of(cls)
    good: Tree = {}
    wrong: list[str] = []
    for key, value in node.items():
        name = f"{where}.{key}" if where else str(key)
        if key == "name":
            continue
        if key not in limits:
            near = did_you_mean(str(key), limits) if limits else f"{node.get('name', where)} has none"
            wrong.append(f"{name}: no such setting; {near}")
            continue
        typed, ok = convert(value, hints[key])
        if not ok:
            quoted = (
                f": '{name}=\"{value}\"'"
                if str in (hints[key], *get_args(hints[key])) and isinstance(value, (int, float))
                else ""
            )
            wrong.append(f"{name}={shown(value)}: must be {_say(hints[key])}{quoted}")
        elif typed is not None and (why := limits[key].broken_by(typed)):
            wrong.append(f"{name}={shown(typed)}: {why}")
        else:
            good[key] = typed
    if wrong:
        raise InputError("\n".join(wrong))
    return good


def limits_of(cls: type) -> dict[str, Limits]:
    """The settings of a component by name, with their limits: its fields made with `setting`."""
    if not is_dataclass(cls):
        where = f"{cls.__module__}.{cls.__name__}"
        raise InputError(f"{where} is registered but is no dataclass: write @dataclass(frozen=True) below @register")
    return {f.name: f.metadata[Limits.key] for f in fields(cls) if Limits.key in f.metadata}


def spelled_out(cls: type, node: Any, where: str) -> Tree:
    """The settings of `cls` as `checked` reads them, with the defaults of those that the node leaves out."""
    given = checked(cls, node, where)
    out: Tree = {"name": node["name"]} if "name" in node else {}
    for f in fields(cls):
        if Limits.key in f.metadata:
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            out[f.name] = given.get(f.name, default)
    return out


def made(cls: type, settings: Tree, where: str, **given: Any) -> Any:
    """`cls(**settings, **given)`; what the class itself refuses becomes an `InputError` about `where`."""
    try:
        return cls(**settings, **given)
    except ValueError as e:
        raise InputError(f"{where}: {e}") from None


def convert(value: Any, hint: Any) -> tuple[Any, bool]:
    """The value as its type hint wants it, and whether it could be. Nothing is parsed out of strings."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value, True
    if origin in (Union, types.UnionType):
        tries = [convert(value, a) for a in args]
        return next((t for t in tries if t[1]), (None, False))
    if hint is type(None):
        return None, value is None
    if origin is Literal:
        return value, isinstance(value, str) and value in args
    if origin is list:
        items = [convert(v, args[0]) for v in value] if isinstance(value, (list, tuple)) else [(None, False)]
        return [v for v, _ in items], all(ok for _, ok in items)
    if origin is dict:
        return (dict(value or {}), True) if isinstance(value, (Mapping, type(None))) else (None, False)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value), isfinite(value)
        return None, False
    if hint is int and isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value), True  # 1e4
    return value, isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def shown(value: Any) -> str:
    """A value as it is typed: `abc`, `null`, `[1, 2]`."""
    text = json.dumps(value, default=str) if isinstance(value, (dict, list, bool, type(None))) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _say(hint: Any) -> str:
    words = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", type(None): "null"}
    if hint in words:
        return words[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is list:
        return f"a list, each {_say(args[0])}"
    if origin is Literal:
        return " or ".join(args)
    if origin is dict:
        return "a mapping {key: value}"
    return " or ".join(_say(a) for a in args)
