"""Runs side by side on the same tasks: two of any kind, task by task, or many that differ in their seed alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

import torch

from metarun.config import Tree
from metarun.engine.evaluate import Score, score
from metarun.measures import MEASURES
from metarun.recipe import MEASURED, differences
from metarun.report import Report, amount, norms, protocol_rows, show, shown, table
from metarun.types import InputError

NOT_MEASURED = ("train.log_every",)
"""Settings of the nodes that are compared which change nothing about a run."""


@dataclass(frozen=True)
class Versus:
    """Run A against run B on the same tasks, so that what is hard about a task for both falls out of the difference."""

    a: Report
    b: Report

    @property
    def difference(self) -> Score:
        """A - B, task by task"""
        return paired(self.a.values, self.b.values)

    @property
    def others(self) -> dict[str, Score]:
        """The same of the other measures."""
        return {name: paired(self.a.also[name], self.b.also[name]) for name in self.a.also}

    @property
    def verdict(self) -> str:
        gap, measure = self.difference, MEASURES[self.a.metric]
        if gap.tasks < 2 or not abs(gap.mean) > gap.ci95:
            return "no difference can be told"
        return f"{'A' if measure.better(gap.mean, 0.0) else 'B'} is better"

    def json(self) -> dict[str, Any]:
        gap = self.difference
        other = {"mean": self.b.score.mean, "ci95": self.b.score.ci95, "protocol": self.b.protocol}
        difference = {"mean": gap.mean, "ci95": gap.ci95}
        also = {
            name: {
                "mean": self.b.others[name].mean,
                "ci95": self.b.others[name].ci95,
                "difference": {"mean": gap.mean, "ci95": gap.ci95},
            }
            for name, gap in self.others.items()
        }
        more = {"also": also} if also else {}
        return {"versus": {**other, "difference": difference, "verdict": self.verdict, **more}}

    @property
    def lines(self) -> dict[str, Report]:
        """By what a picture calls them."""
        return {f"{name}: {method(report)}": report for name, report in (("A", self.a), ("B", self.b))}

    def show(self, say: Callable[[str], Any]) -> None:
        gap, metric = self.difference, self.a.metric
        say("")
        for name, report in (("A", self.a), ("B", self.b)):
            say(f"  {name}      {report.folder}")
            say(f"         {shown(report.score, metric)}  {method(report)}; norms: {norms(report)}")
        unit = " points" if metric == "accuracy" else ""
        say(f"  A - B  {signed(gap, metric)}{unit}  (95 % interval, paired)")
        say(f"         {self.verdict}")
        for name, gap in self.others.items():
            say(f"  A - B  {signed(gap, name)}  of {name}")
        say("")
        table(protocol_rows(self.a), say)
        say("")


def paired(a: Sequence[float], b: Sequence[float]) -> Score:
    """A - B, task by task"""
    return score(torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64))


def signed(gap: Score, metric: str) -> str:
    return f"{'+' if gap.mean > 0 else ''}{amount(gap.mean, metric)} ± {amount(gap.ci95, metric)}"


def method(report: Report) -> str:
    """`maml, 3 inner steps`"""
    algo = report.tree["algo"]
    name = algo.get("classifier", algo["name"]) + (f" on {report.trained_by['name']}" if report.trained_by else "")
    steps = f", {report.inner_steps} inner step{'s' if report.inner_steps > 1 else ''}" if report.inner_steps else ""
    return f"{name}{steps}"


@dataclass(frozen=True)
class Seeds:
    """Runs that differ in their seed alone, on the same tasks.

    `average` is the evaluation of all of them: a task's value is its mean over the runs.
    """

    each: Sequence[Report]
    average: Report

    @property
    def means(self) -> list[float]:
        return [report.score.mean for report in self.each]

    @property
    def sd(self) -> float | None:
        """The sample standard deviation of the runs' means; None for one run"""
        return stdev(self.means) if len(self.means) > 1 else None

    @property
    def named(self) -> dict[str, Report]:
        """By seed, or by folder where that would not tell them apart."""
        seeds = [f"seed {report.tree['seed']}" for report in self.each]
        names = seeds if len({*seeds}) == len(seeds) else short([report.folder for report in self.each])
        return dict(zip(names, self.each, strict=True))

    def json(self) -> dict[str, Any]:
        rows = [
            {
                "run": str(report.folder),
                "seed": report.tree["seed"],
                "mean": report.score.mean,
                "ci95": report.score.ci95,
                "step": report.step,
            }
            for report in self.each
        ]
        spread = {"seed_sd": self.sd, "least": min(self.means), "most": max(self.means)}
        protocol = self.average.protocol | {"run": [row["run"] for row in rows]}
        return {"protocol": protocol, "runs": {"count": len(rows), **spread, "each": rows}}

    def show(self, say: Callable[[str], Any]) -> None:
        metric = self.average.metric
        names = short([report.folder for report in self.each])
        width = max(map(len, names))
        say("")
        for name, report in zip(names, self.each, strict=True):
            say(f"  {name:<{width}}  seed {report.tree['seed']:<4} {shown(report.score, metric)}")
        show(self.average, say, {"mean of runs": f"{len(self.each)}, {self._spread(metric)}"})

    def _spread(self, metric: str) -> str:
        if self.sd is None:
            return "so nothing is known of how seeds differ"
        sd, least, most = (amount(value, metric) for value in (self.sd, min(self.means), max(self.means)))
        same = len({report.tree["seed"] for report in self.each}) < len(self.each)
        return f"sd over seeds {sd}, from {least} to {most}" + ("; some have the same seed" if same else "")


def short(folders: Sequence[Path]) -> list[str]:
    """The folders below the one that holds them all."""
    above = os.path.commonpath([folder.absolute().parent for folder in folders])
    return [os.path.relpath(folder.absolute(), above) for folder in folders]


def alike(trees: Sequence[Tree], folders: Sequence[Path]) -> None:
    """Raises `InputError` for runs that differ in more than their seed, naming in what."""
    first = {node: {k: v for k, v in trees[0][node].items() if f"{node}.{k}" not in NOT_MEASURED} for node in MEASURED}
    for tree, folder in zip(trees[1:], folders[1:], strict=True):
        if departs := differences(first, tree):
            raise InputError(
                f"runs: {folder} is no other seed of {folders[0]}: {'; '.join(departs[:3])}; "
                "name runs that differ in nothing but their seed"
            )
