"""From a composed config to checked settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from metarun.hints import did_you_mean
from metarun.registry import ROOMS, known, load_plugins, lookup
from metarun.schema import Complaints, Tree, checked, convert, limits_of, made, shown, spelled_out
from metarun.settings import (
    AugmentSettings,
    CheckpointSettings,
    DataSettings,
    DeviceSettings,
    EvalSettings,
    TaskSettings,
    TrainSettings,
)
from metarun.types import Algorithm, Dataset, InputError, Place, setting

__all__ = ["Tree", "known", "load_plugins", "lookup"]  # part of this module for those who use it

NODES: dict[str, type] = {
    "task": TaskSettings,
    "data": DataSettings,
    "augment": AugmentSettings,
    "train": TrainSettings,
    "eval": EvalSettings,
    "checkpoint": CheckpointSettings,
    "device": DeviceSettings,
}
PLAIN = ("seed", "data_root", "paper", "plugins")
SEEDS = 2**63 - 1
"""the largest seed that torch takes"""
DEPTH = 12
"""of mappings within mappings: far more than a config has"""
CLASSIFIER = "classical"
"""the method that `eval.classifier` puts in the place of a run's own"""
KEEP = "a setting can be given another value, but not taken away"


@dataclass(frozen=True)
class Paper:
    """A recipe's published number, accuracy in % or mse, and how the protocol behind it differs from the recipe.

    `protocol` holds what the paper has otherwise, `free` names settings that it does not fix (see `recipe.protocol`).
    A run's own config has the protocol at full length.
    """

    accuracy: float | None = setting(None, least=0, most=100)
    mse: float | None = setting(None, least=0)
    ci95: float | None = setting(None, least=0)
    source: str = setting("")
    protocol: dict[str, Any] = setting({})
    free: list[str] = setting([])


@dataclass(frozen=True)
class Changes:
    """What `metarun eval` may change of a run's evaluation. None: as in the run.

    `classifier` is to take the method's place, on the features of the run's network.
    """

    episodes: int | None = setting(None, least=1)
    way: int | None = setting(None, least=1)
    shot: int | None = setting(None, least=1)
    query: int | None = setting(None, least=1)
    seed: int | None = setting(None, least=0)
    split: str = setting("test", choices=("test", "val"))
    steps: int | None = setting(None, least=0)
    statistics: str | None = setting(None, choices=("batch", "support", "running"))
    classifier: str | None = setting(None)


@dataclass(frozen=True)
class Asked:
    """The rest of what `metarun eval` is asked: `run`, or `run` against `versus`, or the average of `runs`."""

    run: str | None = setting(None)
    versus: str | None = setting(None)
    runs: str | list[str] | None = setting(None)
    checkpoint: str = setting("best", choices=("best", "last"))
    data_root: str | None = setting(None)


@dataclass(frozen=True)
class Plan:
    """A run, checked. `model` waits for what only the data knows: item_shape and outputs."""

    task: TaskSettings
    data: DataSettings
    augment: AugmentSettings
    train: TrainSettings
    eval: EvalSettings
    checkpoint: CheckpointSettings
    device: DeviceSettings
    algorithm: Algorithm
    dataset: Dataset
    model: Callable[..., Any]
    seed: int
    data_root: Path

    @property
    def place(self) -> Place:
        return Place(self.data_root, self.data.offline, self.data.skip_broken)


def deferred(kind: str, tree: Tree) -> Callable[..., Any]:
    """The class that `KIND.name` names with its settings checked, waiting for what config does not say."""
    cls = lookup(kind, tree.get(kind))
    return partial(made, cls, checked(cls, tree[kind], kind), kind)


def component(kind: str, tree: Tree) -> Any:
    """The object that a config node describes."""
    return deferred(kind, tree)()


def read(tree: Tree) -> Plan:
    """The checked run that a resolved config describes. Raises `InputError` with every complaint there is."""
    wrong = Complaints()
    _check_nodes(tree, wrong)
    parts = {
        key: wrong.about(lambda key=key, cls=cls: made(cls, checked(cls, tree[key], key), key))
        for key, cls in NODES.items()
        if key in tree
    }
    algorithm = wrong.about(lambda: component("algo", tree))
    dataset = wrong.about(lambda: component("dataset", tree))
    model = wrong.about(lambda: deferred("model", tree))
    if tree.get("paper") is not None:
        wrong.about(lambda: checked(Paper, tree["paper"], "paper"))
    wrong.end()
    return Plan(
        **parts,
        algorithm=algorithm,
        dataset=dataset,
        model=model,
        seed=_seed(tree),
        data_root=data_root(tree),
    )


def settled(tree: Tree) -> Tree:
    """The config of a new run: checked, the logger too, and with every setting spelled out.

    A default that changes in a later version then changes no run that is there already.
    """
    wrong = Complaints()
    wrong.about(lambda: read(tree))
    wrong.about(lambda: component("logger", tree))
    # Only of a new run: one that was started before a setting was there goes on with its default.
    nodes = {key: tree[key] for key in NODES if isinstance(tree.get(key), Mapping)}
    if gone := [f"{key}.{name}" for key, node in nodes.items() for name in limits_of(NODES[key]) if name not in node]:
        wrong.lines.append(f"{', '.join(gone)}: missing; {KEEP}")
    wrong.end()
    return whole(tree)


def whole(tree: Tree) -> Tree:
    """A checked config with every setting that it leaves out at its default."""
    out = dict(tree) | {"seed": _seed(tree)}
    for key, cls in NODES.items():
        out[key] = spelled_out(cls, tree[key], key)
    for kind in ROOMS:
        out[kind] = spelled_out(lookup(kind, tree.get(kind)), tree[kind], kind)
    return out


def settled_request(tree: Tree) -> Tree:
    """What `metarun eval` is asked, checked. Raises `InputError` with every complaint there is."""
    wrong = Complaints()
    allowed = {f.name for f in fields(Asked)}
    for key in tree.keys() - allowed - {"eval", "device", "plugins"}:
        hint = did_you_mean(str(key), [*allowed, "eval", "device", "plugins"])
        wrong.lines.append(f"{key}: metarun eval has no such setting; {hint}")
    given = {key: tree[key] for key in allowed & tree.keys()}
    for key in ("run", "versus", "runs"):
        if type(given.get(key)) is int:
            given[key] = str(given[key])  # a folder's name may be a number
    request: Tree | None = wrong.about(lambda: spelled_out(Asked, given, ""))
    changes = wrong.about(lambda: spelled_out(Changes, tree.get("eval", {}), "eval"))
    device = wrong.about(lambda: spelled_out(DeviceSettings, tree.get("device", {}), "device"))
    if device is not None:
        wrong.about(lambda: made(DeviceSettings, device, "device"))
    if request is not None:
        _check_which(request, wrong)
    if changes is not None and changes["classifier"] is not None:
        classical = lookup("algo", {"name": CLASSIFIER})
        wrong.about(lambda: checked(classical, {"classifier": changes["classifier"]}, "eval"))
    wrong.end()
    return tree | (request or {}) | {"eval": changes, "device": device}


def _check_which(request: Tree, wrong: Complaints) -> None:
    """`run` or `runs`, and `versus` with `run` alone."""
    if request["run"] and request["runs"]:
        wrong.lines.append("run= and runs= are both given: one run, or runs that differ in their seed? Leave one out")
    elif not request["run"] and not request["runs"]:
        beside = "versus= compares a run with run=; " if request["versus"] else ""
        wrong.lines.append(f"{beside}metarun eval needs run=PATH or run=latest, or runs='PATTERN'")
    elif request["runs"] and request["versus"]:
        wrong.lines.append("versus= compares one run with run=; leave it out, or give run= in place of runs=")


def _check_nodes(tree: Tree, wrong: Complaints) -> None:
    """The nodes there must be, the settings of the plain ones, and no others."""
    allowed = {*NODES, *ROOMS, *PLAIN}
    for key in tree.keys() - allowed:
        wrong.lines.append(f"{key}: no such node; {did_you_mean(str(key), allowed)}")
    if gone := [key for key in (*NODES, "seed", "data_root") if key not in tree]:
        wrong.lines.append(f"{', '.join(gone)}: missing; {KEEP}")
    for get in (_seed, data_root):
        wrong.about(lambda get=get: get(tree))


def _seed(tree: Tree) -> int:
    value, ok = convert(tree.get("seed"), int)
    if "seed" in tree and not (ok and 0 <= value <= SEEDS):
        raise InputError(f"seed={shown(tree['seed'])}: must be a whole number from 0 to 2^63 - 1")
    return value


def data_root(tree: Tree) -> Path:
    """The folder that datasets look for their files in."""
    value, ok = convert(tree.get("data_root"), str)
    if "data_root" in tree and not (ok and value):
        raise InputError(f"data_root={shown(tree['data_root'])}: must be the path of a folder")
    return Path(value or "").expanduser()


def load_tree(path: Path) -> Tree:
    """The config file of a run folder, as plain data: no tags, no interpolation, nothing that could run.

    Raises `InputError` for a file that no run wrote.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        text = yaml.safe_dump(tree)
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as e:
        raise InputError(f"{path} is not a run's config ({' '.join(str(e).split())[:120]})") from None
    if not isinstance(tree, dict) or not tree:
        raise InputError(f"{path} is not a run's config: it holds no settings")
    if "${" in text:
        raise InputError(
            f"{path}: holds an interpolation '${{...}}'; a run's own config is resolved, so this is not one"
        )
    if why := _not_plain(tree):
        raise InputError(f"{path} is not a run's config: {why}")
    return tree


def _not_plain(value: Any, depth: int = 0) -> str:
    """Why a value read from YAML cannot be a config; nothing where it can."""
    if depth > DEPTH:
        return "its nodes are nested too deep"
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str)]:
            return f"the key {odd[0]!r} is no name"
        return next(filter(None, (_not_plain(v, depth + 1) for v in value.values())), "")
    if isinstance(value, list):
        return next(filter(None, (_not_plain(v, depth + 1) for v in value)), "")
    return ""


def flat(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    out: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out
