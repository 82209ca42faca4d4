"""What a resumed run may change of itself: where and how it is computed, and how much longer it goes on."""

from __future__ import annotations

from pathlib import Path

from metarun import config
from metarun.config import Tree
from metarun.engine.optim import TIED_TO_LENGTH
from metarun.types import InputError

FREE = ("device", "logger", "data_root", "data.offline", "checkpoint", "plugins")
"""Nodes and settings that say where and how a run is computed and kept, not what it is."""


def continued(own: Tree, asked: Tree, typed: list[str], folder: Path) -> Tree:
    """The run's own config with what may change on resuming. Raises `InputError` for what would change its meaning."""
    tree = dict(own)
    for key in typed:
        node, _, leaf = key.partition(".")
        if node in FREE or key in FREE:  # a whole node for a choice (device=cpu), else the one setting that was typed
            whole = not leaf or not isinstance(tree.get(node), dict)
            tree[node] = asked[node] if whole else tree[node] | {leaf: asked[node][leaf]}
    before, now = config.flat(own), config.flat(asked)
    for key in typed:
        if {key, key.split(".")[0]} & {*FREE, "resume", "hydra"}:
            continue
        for leaf in [k for k in now if k == key or k.startswith(f"{key}.")]:
            if leaf == "train.iterations":
                if now[leaf] != before.get(leaf) and own["train"]["schedule"] in TIED_TO_LENGTH:
                    raise InputError(
                        f"train.iterations={now[leaf]}: this run's schedule is '{own['train']['schedule']}', which "
                        f"ends at its {before.get(leaf)} iterations; another length is another run: start a new one"
                    )
                tree["train"] = tree["train"] | {"iterations": now[leaf]}
            elif now[leaf] != before.get(leaf):
                raise InputError(
                    f"{leaf}={now[leaf]}: the run in {folder} has {before.get(leaf)}, and another value would be "
                    "another run; leave it out, or start a new run without resume="
                )
    return tree
