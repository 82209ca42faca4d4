"""A recipe's verdict: our number beside the paper's, when they may be compared at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metarun.config import Tree, flat
from metarun.engine.evaluate import Score


@dataclass(frozen=True)
class Verdict:
    """`paper` and `ours` in %, with the half-widths of their intervals (`paper_ci95` may be unknown)."""

    paper: float
    paper_ci95: float | None
    ours: float
    ci95: float
    text: str
    source: str


def differences(protocol: Tree, run: Tree) -> list[str]:
    """Where a run departs from a published protocol: `train.iterations 1500, not 60000`."""
    done = flat(run)
    return [
        f"{key} {done.get(key, 'absent')}, not {value}"
        for key, value in flat(protocol).items()
        if done.get(key) != value
    ]


def judge(paper: dict[str, Any], run: Tree, score: Score) -> Verdict:
    """`within` where the two intervals meet, else `above` or `below by x` points.

    `not comparable: ...` where the run (its config, with what the evaluation changed) departs from `paper.protocol`.
    """
    ours, ci95 = 100 * score.mean, 100 * score.ci95
    gap = ours - paper["accuracy"]
    if departs := differences(paper.get("protocol", {}), run):
        text = f"not comparable: {'; '.join(departs)}"
    elif abs(gap) <= ci95 + (paper.get("ci95") or 0.0):
        text = "within"
    else:
        text = "above" if gap > 0 else f"below by {-gap:.1f}"
    return Verdict(paper["accuracy"], paper.get("ci95"), ours, ci95, text, paper.get("source", ""))
