"""A recipe: the protocol that it stands for, and our number beside the paper's, when they may be compared at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from metarun.config import Tree
from metarun.engine.evaluate import Score
from metarun.measures import MEASURES
from metarun.schema import shown
from metarun.types import InputError

MEASURED = ("task", "eval", "algo", "model", "dataset", "data", "augment", "train")
"""The nodes that say what is measured; the others say where, how it is watched and what is kept."""
BESIDE_IT = (
    "eval.seed",  # a choice of test tasks like any other
    "dataset.split_seed",  # no paper's own shuffle can be repeated
    "dataset.download",
    "data.offline",
    "data.skip_broken",
    "train.log_every",
    "train.val_every",
    "train.val_episodes",
)
"""Settings of these nodes that are no part of a protocol."""
ABSENT = object()
ROUNDING = 1e-9
"""by which the same number, once read and once computed, may differ"""


@dataclass(frozen=True)
class Verdict:
    """`paper` and `ours` in % (or mse), with the half-widths of their intervals (`paper_ci95` may be unknown)."""

    paper: float
    paper_ci95: float | None
    ours: float
    ci95: float
    text: str
    source: str


def protocol(own: Tree, paper: Tree) -> Tree:
    """What a run must be to be compared: the recipe's own settings, but for what `paper` says of them.

    own     the whole config that the recipe alone composes to
    paper   its `paper` node: `free` names settings, or whole nodes, that the paper does not fix, and `protocol` holds
            what it fixes otherwise than the recipe does
    """
    free = paper.get("free") or []
    full = {node: dict(own[node]) for node in MEASURED}
    for key in free:
        node, _, setting = key.partition(".")
        if node not in full or (setting and setting not in full[node]):
            raise InputError(f"paper.free: '{key}' is no setting of this recipe's protocol; take it out")
    for key in [*BESIDE_IT, *free]:
        node, _, setting = key.partition(".")
        full[node] = {name: value for name, value in full[node].items() if setting and name != setting}
    for node, settings in (paper.get("protocol") or {}).items():
        if not isinstance(settings, Mapping):
            raise InputError(f"paper.protocol.{node}={shown(settings)}: must be a mapping of settings")
        full[node] = full.get(node, {}) | dict(settings)
    return full


def differences(protocol: Tree, run: Tree) -> list[str]:
    """Where a run departs from a published protocol: `train.iterations 1500, not 60000`."""
    return [
        line
        for node, settings in protocol.items()
        for key in _that_count(settings, run.get(node, {}))
        for line in _departs(f"{node}.{key}", settings[key], run.get(node, {}).get(key, ABSENT))
    ]


def _that_count(wanted: Tree, got: Tree) -> list[str]:
    """Of another method, model or dataset, its name says enough."""
    return ["name"] if "name" in wanted and wanted["name"] != got.get("name") else [*wanted]


def _departs(key: str, wanted: Any, got: Any) -> Iterator[str]:
    if wanted == got:
        return
    if not (isinstance(wanted, Mapping) and isinstance(got, Mapping)):
        told = ["absent" if v is ABSENT else shown(v) for v in (got, wanted)]
        yield f"{key} {told[0]}, not {told[1]}"
        return
    for inner in dict.fromkeys([*wanted, *got]):
        yield from _departs(f"{key}.{inner}", wanted.get(inner, ABSENT), got.get(inner, ABSENT))


def judge(paper: Tree, run: Tree, score: Score, metric: str = "accuracy") -> Verdict | None:
    """`within` where the two intervals meet, else `above` or `below by x` points (an error: `below` or `above by x`).

    `not comparable: ...` where the run (its config, with what the evaluation changed) departs from `paper.protocol`.
    None where the paper has no number for `metric`.
    """
    published = paper.get(metric)
    if published is None:
        return None
    scale = 100 if metric == "accuracy" else 1
    ours, ci95 = scale * score.mean, scale * score.ci95
    gap = ours - published
    if departs := differences(paper.get("protocol") or {}, run):
        text = f"not comparable: {'; '.join(departs)}"
    elif abs(gap) <= ci95 + (paper.get("ci95") or 0.0) + ROUNDING:
        text = "within"
    else:
        higher, by = gap > 0, f"{abs(gap):{'.1f' if metric == 'accuracy' else '.2g'}}"
        beaten = higher == MEASURES[metric].higher_is_better
        text = ("above" if higher else "below") + ("" if beaten else f" by {by}")
    return Verdict(published, paper.get("ci95"), ours, ci95, text, paper.get("source", ""))
