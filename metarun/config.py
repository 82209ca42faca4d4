"""From a composed config to checked settings: every value against its type and limits, all complaints together."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from metarun.hints import did_you_mean
from metarun.settings import CheckpointSettings, DeviceSettings, EvalSettings, TaskSettings, TrainSettings
from metarun.types import REGISTRY, Algorithm, Dataset, InputError, Limits

ROOMS = {"algo": "algorithms", "dataset": "data", "model": "models", "logger": "loggers"}
NODES: dict[str, type] = {
    "task": TaskSettings,
    "train": TrainSettings,
    "eval": EvalSettings,
    "checkpoint": CheckpointSettings,
    "device": DeviceSettings,
}
PLAIN = ("seed", "data_root", "paper", "plugins")
Tree = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A run, checked. `model` waits for what only the data knows: item_shape and outputs."""

    task: TaskSettings
    train: TrainSettings
    eval: EvalSettings
    checkpoint: CheckpointSettings
    device: DeviceSettings
    algorithm: Algorithm
    dataset: Dataset
    model: Callable[..., Any]
    seed: int
    data_root: Path


def load_plugins(modules: list[str]) -> None:
    """Imports the person's own modules, whose `@register` lines extend the registries."""
    sys.path.insert(0, str(Path.cwd()))
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as e:
            raise InputError(f"plugins: cannot import '{name}': {e}; is it in this folder or installed?") from e


def known(kind: str) -> dict[str, type]:
    """Every class of a kind by name: metarun's own, installed plugins' (entry points), and the person's."""
    room = importlib.import_module(f"metarun.{ROOMS[kind]}")
    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")
    for entry in importlib.metadata.entry_points(group="metarun.plugins"):
        entry.load()
    return REGISTRY[kind]


def lookup(kind: str, node: Any) -> type:
    if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
        raise InputError(f"{kind}: needs a name; choose one with {kind}=NAME (metarun list {kind})")
    options = known(kind)
    if node["name"] not in options:
        hint = did_you_mean(node["name"], options)
        raise InputError(f"{kind}.name: no {kind} is called '{node['name']}'; {hint} (your own: plugins=[your.module])")
    return options[node["name"]]


def checked(cls: type, node: Mapping[str, Any] | None, where: str) -> Tree:
    """The settings of `cls` in a config node, each of the right type and within its limits.

    Raises `InputError` with a line for each thing wrong: an unknown key, a wrong type, a value out of range.
    """
    hints = get_type_hints(cls)
    limits = {f.name: f.metadata[Limits.key] for f in fields(cls) if Limits.key in f.metadata}
    good: Tree = {}
    wrong: list[str] = []
    for key, value in (node or {}).items():
        if key == "name" and key not in limits:
            continue
        if key not in limits:
            wrong.append(f"{where}.{key}: no such setting; {did_you_mean(str(key), limits)}")
            continue
        typed, ok = _convert(value, hints[key])
        if not ok:
            wrong.append(f"{where}.{key}={value!r}: must be {_say(hints[key])}")
        elif typed is not None and (why := limits[key].broken_by(typed)):
            wrong.append(f"{where}.{key}={value}: {why}")
        else:
            good[key] = typed
    if wrong:
        raise InputError("\n".join(wrong))
    return good


def made(cls: type, settings: Tree, where: str, **given: Any) -> Any:
    """`cls(**settings, **given)`; what the class itself refuses becomes an `InputError` about `where`."""
    try:
        return cls(**settings, **given)
    except ValueError as e:
        raise InputError(f"{where}: {e}") from None


def deferred(kind: str, tree: Tree) -> Callable[..., Any]:
    """The class that `KIND.name` names with its settings checked, waiting for what config does not say."""
    cls = lookup(kind, tree.get(kind))
    return partial(made, cls, checked(cls, tree[kind], kind), kind)


def component(kind: str, tree: Tree) -> Any:
    """The object that a config node describes."""
    return deferred(kind, tree)()


def read(tree: Tree) -> Plan:
    """The checked run that a resolved config describes. Raises `InputError` with every complaint there is."""
    wrong: list[str] = []

    def attempt(make: Callable[[], Any]) -> Any:
        try:
            return make()
        except InputError as e:
            wrong.append(str(e))

    def plain(key: str, kind: type, least: float | None = None) -> Any:
        value, ok = _convert(tree.get(key), kind)
        if not ok or (least is not None and value < least):
            raise InputError(f"{key}={tree.get(key)!r}: must be {_say(kind)}" + (f" of at least {least}" if ok else ""))
        return value

    allowed = {*NODES, *ROOMS, *PLAIN}
    for key in tree.keys() - allowed:
        wrong.append(f"{key}: no such node; {did_you_mean(str(key), allowed)}")
    parts = {
        key: attempt(lambda key=key, cls=cls: made(cls, checked(cls, tree.get(key), key), key))
        for key, cls in NODES.items()
    }
    algorithm = attempt(lambda: component("algo", tree))
    dataset = attempt(lambda: component("dataset", tree))
    model = attempt(lambda: deferred("model", tree))
    seed = attempt(lambda: plain("seed", int, 0))
    data_root = attempt(lambda: plain("data_root", str))
    if wrong:
        raise InputError("\n".join(wrong))
    return Plan(**parts, algorithm=algorithm, dataset=dataset, model=model, seed=seed, data_root=Path(data_root))


def load_tree(path: Path) -> Tree:
    """A config file of a run folder, as plain data: no tags, no interpolation, nothing that could run."""
    try:
        tree = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise InputError(f"{path} is not a config ({str(e).splitlines()[0]})") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} is not a config: it holds no settings")
    if "${" in yaml.safe_dump(tree):
        raise InputError(
            f"{path}: holds an interpolation '${{...}}'; a run's own config is resolved, so this is not one"
        )
    return tree


def flat(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    out: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _convert(value: Any, hint: Any) -> tuple[Any, bool]:
    """The value as its type hint wants it, and whether it could be. Nothing is parsed out of strings."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value, True
    if origin in (Union, types.UnionType):
        tries = [_convert(value, a) for a in args]
        return next((t for t in tries if t[1]), (None, False))
    if hint is type(None):
        return None, value is None
    if origin is list:
        items = [_convert(v, args[0]) for v in value] if isinstance(value, (list, tuple)) else [(None, False)]
        return [v for v, _ in items], all(ok for _, ok in items)
    if origin is dict:
        return (dict(value), True) if isinstance(value, Mapping) else (None, False)
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value), isfinite(value)
    return value, isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _say(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", type(None): "null"}
    if hint in words:
        return words[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is list:
        return f"a list, each {_say(args[0])}"
    if origin is dict:
        return "a mapping {key: value}"
    return " or ".join(_say(a) for a in args)
