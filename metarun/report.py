"""An evaluation as a table for a person and as files for a program. The protocol always stands beside the number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch

from metarun import pictures, plots, recipe
from metarun.config import Tree
from metarun.confusion import Confusion
from metarun.engine.evaluate import Score, score
from metarun.files import write_csv, write_json

WIDTH = 80
FEW = 6
"""points of a curve that a table shows"""


@dataclass(frozen=True)
class Report:
    """One evaluation.

    score           the mean of the metric over tasks
    tree            the run's config with what the evaluation changed
    which, step     the evaluated checkpoint; `which` is None for a method that has nothing to train, `step` for several
                    runs, each of which has its own
    trained         the step the run has got to
    inner_steps     updates at test time
    statistics      what the norms' statistics were taken from
    transductive    whether queries of a task were seen to influence one another
    metric          what the score is a mean of: the name of a measure
    values          of each task
    curve           the score after 0, 1, ..., `inner_steps` updates; empty for a method without any
    confusion       None for regression
    data            tells the test data from other data
    trained_by      the method whose trained network another one used
    also            the other measures that the data has, by name: of each task
    notes           what a mean of a measure must be read with, where there is anything to say
    gallery         the first tasks, to be drawn where they can be
    """

    score: Score
    tree: Tree
    folder: Path
    which: str | None
    step: int | None
    trained: int
    split: str
    inner_steps: int
    statistics: str
    transductive: bool = False
    metric: str = "accuracy"
    values: Sequence[float] = ()
    curve: Sequence[Score] = ()
    confusion: Confusion | None = None
    data: str = ""
    trained_by: Tree | None = None
    also: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    gallery: pictures.Gallery | None = None

    @property
    def others(self) -> dict[str, Score]:
        """The other measures' means over tasks."""
        return {name: score(torch.tensor(values, dtype=torch.float64)) for name, values in self.also.items()}

    @property
    def protocol(self) -> dict[str, Any]:
        tree, task = self.tree, self.tree["eval"]
        trained_by = {"trained_by": self.trained_by} if self.trained_by else {}
        return {
            "split": self.split,
            "way": task["way"],
            "shot": task["shot"],
            "query": task["query"],
            "inner_steps": self.inner_steps,
            "statistics": self.statistics,
            "transductive": self.transductive,
            "episode_seed": task["seed"],
            "data": self.data,
            "dataset": tree["dataset"],
            "algo": tree["algo"],
            **trained_by,
            "model": tree["model"],
            "checkpoint": self.which,
            "step": self.step,
            "run": str(self.folder),
        }

    @property
    def verdict(self) -> recipe.Verdict | None:
        """Beside the paper's number, where the run follows a recipe and the test classes were evaluated."""
        paper = self.tree.get("paper")
        if not paper or self.split != "test":
            return None
        done = self.tree | {"train": self.tree["train"] | {"iterations": self.trained}}
        return recipe.judge(paper, done, self.score, self.metric)

    def json(self) -> dict[str, Any]:
        out = {"metric": self.metric, **self.score._asdict(), "protocol": self.protocol}
        if self.also:
            out["also"] = {name: {"mean": each.mean, "ci95": each.ci95} for name, each in self.others.items()}
        if self.notes:
            out["notes"] = dict(self.notes)
        if self.curve:
            out["curve"] = [{"step": step, "mean": p.mean, "ci95": p.ci95} for step, p in enumerate(self.curve)]
        if self.confusion:
            out["hardest"] = self.confusion.hardest()
        return out | ({"paper": asdict(self.verdict)} if self.verdict else {})


def write(
    report: Report, folder: Path, more: Mapping[str, Any] | None = None, beside: Mapping[str, Report] | None = None
) -> None:
    """The numbers of an evaluation: eval.json, tasks.csv, and confusion.csv where there are classes.

    `more` goes into eval.json over the report's own, the tasks of the reports `beside` it into columns of tasks.csv. A
    measure that is not the first has a column of its own: `mae`, or `LABEL mae` for a report beside.
    """
    write_json(folder / "eval.json", jsonable(report.json() | dict(more or {})))
    columns = {"value": report.values, **report.also}
    for label, each in (beside or {}).items():
        columns |= {label: each.values} | {f"{label} {name}": values for name, values in each.also.items()}
    values = zip(*columns.values(), strict=True)
    write_csv(folder / "tasks.csv", ["index", *columns], ([i, *row] for i, row in enumerate(values)))
    if report.confusion:
        write_csv(folder / "confusion.csv", ["true", "predicted", "count"], report.confusion.rows())


def draw(
    report: Report,
    folder: Path,
    say: Callable[[str], Any],
    lines: Mapping[str, Report] | None = None,
    faint: Sequence[Report] = (),
) -> None:
    """curve.png, where there are curves: the report's own, or those of `lines` by label and `faint` behind them.

    Of a report alone also tasks.png, where its tasks can be drawn.
    """
    tree, task = report.tree, report.tree["eval"]
    if lines is None and report.gallery is not None:
        title = f"{tree['algo']['name']} on {tree['dataset']['name']}, {task['shot']} examples: {report.split}"
        pictures.write(report.gallery, folder / "tasks.png", title, report.score.tasks, say)
    lines = lines or {"": report}
    if not any(each.curve for each in lines.values()):
        return
    curves = {label: each.curve or [each.score] for label, each in lines.items()}
    shape = f"{task['way']}-way {task['shot']}-shot" if report.metric == "accuracy" else f"{task['shot']} examples"
    title = f"{tree['dataset']['name']}, {shape}: {report.score.tasks} {report.split} tasks, 95 % interval"
    try:
        plots.curve(folder / "curve.png", title, report.metric, curves, [each.curve for each in faint])
    except ImportError as e:
        say(f"no curve.png: {e}; pip install matplotlib")


def jsonable(content: Any) -> Any:
    """The same with null for numbers that JSON does not have: the error of an adaptation that diverged."""
    if isinstance(content, Mapping):
        return {key: jsonable(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [jsonable(value) for value in content]
    return None if isinstance(content, float) and not isfinite(content) else content


def show(report: Report, say: Callable[[str], Any], more: Mapping[str, str] | None = None) -> None:
    """The table, in lines of at most 80 columns, with the rows of `more` below the number."""
    metric = report.metric
    rows = {
        **{name: _told(report, name, each) for name, each in ({metric: report.score} | report.others).items()},
        **(more or {}),
        **protocol_rows(report),
        "inner steps": f"{report.inner_steps}" + (f"  ({_course(report)})" if report.curve else ""),
        "norm statistics": norms(report),
        "checkpoint": checkpoint(report),
    }
    if "classifier" in (algo := report.tree["algo"]):
        network = f"the features that {report.trained_by['name']} learned" if report.trained_by else algo["features"]
        rows["method"] = f"{algo['classifier']} on {network}"
    if report.confusion and (found := report.confusion.hardest(1)):
        right = f"{amount(found[0]['accuracy'], metric)} % of {found[0]['queries']}"
        rows["hardest class"] = f"{found[0]['class']}, {right} queries right"
    say("")
    table(rows, say)
    if verdict := report.verdict:
        say("")
        paper = f"{verdict.paper:g}" + ("" if verdict.paper_ci95 is None else f" ± {verdict.paper_ci95:g}")
        say(f"  {'paper':<14}{'ours':<9}{'interval':<11}verdict")
        first, *rest = wrap(verdict.text, WIDTH - 36)
        say(f"  {paper:<14}{verdict.ours:<9.4g}{f'± {verdict.ci95:.2g}':<11}{first}")
        for line in [*rest, *wrap(f"paper: {verdict.source}", WIDTH - 36)]:
            say(f"  {'':<34}{line}")
    say("")


def _told(report: Report, metric: str, score: Score) -> str:
    note = f"; {report.notes[metric]}" if metric in report.notes else ""
    return f"{shown(score, metric)}  (95 % interval over tasks{note})"


def protocol_rows(report: Report) -> dict[str, str]:
    """The tasks that were evaluated, and what of."""
    task, dataset = report.tree["eval"], report.tree["dataset"]
    shape = f"{task['shot']}-shot, {task['query']} {'query' if task['query'] == 1 else 'queries'}"
    if report.metric == "accuracy":
        shape = f"{task['way']}-way {shape} per class"
    return {
        "tasks": f"{report.score.tasks}: {shape}",
        "split": f"{report.split} {'classes' if report.metric == 'accuracy' else 'tasks'} of {dataset['name']}"
        + (f" ({dataset['split']})" if "split" in dataset else ""),
    }


def checkpoint(report: Report) -> str:
    if report.which is None:
        return "none: nothing is trained"
    return f"{report.which}, step {report.step}" if report.step is not None else f"{report.which} of each run"


def norms(report: Report) -> str:
    return report.statistics + (" (transductive)" if report.transductive else "")


def _course(report: Report) -> str:
    """A few points of the curve: `after 0, 1, 3: 20.00, 91.33, 95.00`"""
    last = len(report.curve) - 1
    points = sorted({round(i * last / (FEW - 1)) for i in range(FEW)})
    values = (amount(report.curve[i].mean, report.metric) for i in points)
    return f"after {', '.join(map(str, points))}: {', '.join(values)}"


def amount(value: float, metric: str) -> str:
    """An accuracy in %, anything else as it is."""
    return f"{100 * value:.2f}" if metric == "accuracy" else f"{value:.4g}"


def shown(score: Score, metric: str) -> str:
    return f"{amount(score.mean, metric)} ± {amount(score.ci95, metric)}{' %' if metric == 'accuracy' else ''}"


def table(rows: Mapping[str, str], say: Callable[[str], Any]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        for i, line in enumerate(wrap(value, WIDTH - width - 4)):
            say(f"  {'' if i else name:<{width}}  {line}")
