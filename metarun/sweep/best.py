"""The best setting as a recipe: `metarun train --config-dir SWEEP experiment=best` composes what its trial ran.

Later words win, as they do where they are typed. A recipe among them stays underneath; its paper's number then stands
beside a protocol that says what was changed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarun.files import write_atomic
from metarun.sweep.trial import Goal, Trial, run_folder
from metarun.sweep.words import amount, overrides

NAME = "best"
EMPTY = "best_empty"
"""the recipe that empties mappings, for a file can only add to one"""
RECIPE = "experiment"
GROUPS = ("algo", "dataset", "model", "device", "logger")
"""what else may be chosen by name"""
ELSEWHERE = ("hydra", "resume")
"""what says where a run is, not what it is"""
Tree = dict[str, Any]


def write_best(sweep: Path, words: Sequence[str], trial: Trial, goal: Goal, seeds: int = 1) -> Path:
    """Writes `SWEEP/experiment/best.yaml`, and another that it builds on where that must be; the path.

    words   what all trials share, as it was typed: `dataset=omniglot`, `train.iterations=500`

    Raises `ValueError` for words that a file cannot say.
    """
    from omegaconf import OmegaConf

    recipe = Recipe([*words, *overrides(trial.params)])
    tree = recipe.tree
    if recipe.base is not None and (paper := changed_protocol(run_folder(sweep, trial.number, 0, seeds))):
        merge(tree, {"paper": {"protocol": paper}})
    folder = sweep / RECIPE
    folder.mkdir(exist_ok=True)
    value = "" if trial.value is None else f", {goal.metric} {amount(trial.value, goal, 2)}"
    head = f"the best setting of {sweep.name}: trial {trial.number}{value}"
    if recipe.emptied:
        nothing: Tree = {}
        for key in recipe.emptied:
            put(nothing, key, None)
        _write(folder / f"{EMPTY}.yaml", "what best.yaml sets anew, taken away first", OmegaConf.to_yaml(nothing))
    below = [recipe.base] * (recipe.base is not None) + [EMPTY] * bool(recipe.emptied)
    chosen = [{f"override /{group}": option} for group, option in recipe.choices.items()]
    content = OmegaConf.to_yaml(OmegaConf.create({"defaults": [*below, "_self_", *chosen], **tree}))
    _write(folder / f"{NAME}.yaml", head, content)
    return folder / f"{NAME}.yaml"


def command(sweep: Path, config_dir: str | None = None) -> str:
    """What to type for it; `config_dir` is what the sweep was given, and a command takes but one."""
    folders = ",".join(f"file://{path.resolve()}" for path in (sweep, Path(config_dir or "")))
    where = [f"hydra.searchpath=[{folders}]"] if config_dir else ["--config-dir", str(sweep)]
    return shlex.join(["metarun", "train", *where, f"{RECIPE}={NAME}"])


def _write(path: Path, head: str, content: str) -> None:
    text = f"# @package _global_\n# {head}\n{content}"
    write_atomic(path, lambda file: file.write(text.encode()))


class Recipe:
    """What words say, as a file does.

    base        the recipe that was chosen among them
    choices     by group
    tree        settings, nested
    emptied     the mappings among them that are set as a whole
    """

    def __init__(self, words: Sequence[str]) -> None:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        self.base: str | None = None
        self.choices: dict[str, str | None] = {}
        self.tree: Tree = {}
        self.emptied: list[str] = []
        for word, o in zip(words, OverridesParser.create().parse_overrides(list(words)), strict=True):
            key, value = o.key_or_group, None if o.is_delete() else o.value()
            if key.split(".")[0] in ELSEWHERE:
                continue
            if o.is_delete() or o.package is not None or o.is_sweep_override():
                raise ValueError(f"'{word}' has no words in a file")
            if key == RECIPE:
                self.base = None if value is None else str(value)
                if value in (NAME, EMPTY):
                    raise ValueError(f"'{word}' would be this recipe itself; give that one another name")
            elif key in GROUPS and not isinstance(value, Mapping):
                self.choices[key] = None if value is None else str(value)
            else:
                self._set(key, value, adds=o.is_add() or o.is_force_add())

    def _set(self, key: str, value: Any, adds: bool) -> None:
        if not isinstance(value, Mapping):
            put(self.tree, key, value)
            return
        # A node is added to. A mapping within one is a value of its own, which takes the place of the one before: typed
        # at once, or as null first (see `app.replacing`).
        before = get(self.tree, key)
        if "." in key and (not adds or before is NULL):
            put(self.tree, key, dict(value))
            self.emptied.append(key)
        else:
            put(self.tree, key, merge(before if isinstance(before, dict) else {}, value))


NULL = object()
"""a setting that is there and null"""


def get(tree: Tree, key: str) -> Any:
    """The value of a setting, `NULL` where it is null; None where there is none."""
    found: Any = tree
    for name in key.split("."):
        if not isinstance(found, dict) or name not in found:
            return None
        found = found[name]
    return NULL if found is None else found


def put(tree: Tree, key: str, value: Any) -> None:
    *nodes, last = key.split(".")
    for node in nodes:
        if not isinstance(tree.get(node), dict):
            tree[node] = {}
        tree = tree[node]
    tree[last] = value


def merge(tree: Tree, more: Mapping[str, Any]) -> Tree:
    """Adds to a tree in place, node by node."""
    for key, value in more.items():
        both = isinstance(value, Mapping) and isinstance(tree.get(key), dict)
        tree[key] = merge(tree[key], value) if both else value
    return tree


def changed_protocol(run: Path) -> Tree:
    """Where a run departs from the protocol of the recipe it follows: that protocol's own settings, by node.

    Empty where there is no such run, or no paper's number to its recipe.
    """
    from metarun.config import load_tree
    from metarun.types import InputError

    try:
        tree = load_tree(run / "config.yaml")
    except InputError:
        return {}
    protocol = (tree.get("paper") or {}).get("protocol") or {}
    departs = {
        node: {key: value for key, value in settings.items() if tree.get(node, {}).get(key, NULL) != value}
        for node, settings in protocol.items()
    }
    return {node: settings for node, settings in departs.items() if settings}
