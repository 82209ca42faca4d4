"""An evaluation as a table for a person and as JSON for a program. The protocol always stands beside the number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

from metarun import recipe
from metarun.config import Tree
from metarun.engine.evaluate import Score


@dataclass(frozen=True)
class Report:
    """One evaluation.

    metric          what the score is a mean of: accuracy or mse
    tree            the run's config with what the evaluation changed
    step            the evaluated checkpoint's step
    trained         the step the run has got to
    inner_steps     updates at test time
    statistics      what the norms' statistics were taken from
    """

    metric: str
    score: Score
    tree: Tree
    folder: Path
    which: str
    step: int
    trained: int
    split: str
    inner_steps: int
    statistics: str

    @property
    def protocol(self) -> dict[str, Any]:
        tree, task = self.tree, self.tree["eval"]
        return {
            "split": self.split,
            "way": task["way"],
            "shot": task["shot"],
            "query": task["query"],
            "inner_steps": self.inner_steps,
            "statistics": self.statistics,
            "transductive": self.statistics == "batch",
            "episode_seed": task["seed"],
            "dataset": tree["dataset"],
            "algo": tree["algo"],
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
        return out | ({"paper": asdict(self.verdict)} if self.verdict else {})


def show(report: Report, say: Callable[[str], Any]) -> None:
    """The table, in lines of at most 80 columns."""
    score, protocol = report.score, report.protocol
    norm = protocol["statistics"] + (" (transductive)" if protocol["transductive"] else "")
    queries = f"{protocol['query']} {'query' if protocol['query'] == 1 else 'queries'}"
    percent = report.metric == "accuracy"
    shape = f"{protocol['shot']}-shot, {queries}"
    if percent:
        shape = f"{protocol['way']}-way {shape} per class"
    rows = {
        report.metric: f"{amount(score.mean, report.metric)} ± {amount(score.ci95, report.metric)}"
        f"{' %' if percent else ''}  (95 % interval over tasks)",
        "tasks": f"{score.tasks}: {shape}",
        "split": f"{report.split} {'classes' if percent else 'tasks'} of {protocol['dataset']['name']}"
        + (f" ({protocol['dataset']['split']})" if "split" in protocol["dataset"] else ""),
        "inner steps": f"{protocol['inner_steps']}",
        "norm statistics": norm,
        "checkpoint": f"{report.which}, step {report.step}",
    }
    say("")
    _table(rows, say)
    if verdict := report.verdict:
        say("")
        paper = f"{verdict.paper:g}" + ("" if verdict.paper_ci95 is None else f" ± {verdict.paper_ci95:g}")
        say(f"  {'paper':<14}{'ours':<9}{'interval':<11}verdict")
        first, *more = wrap(verdict.text, 80 - 36)
        say(f"  {paper:<14}{verdict.ours:<9.4g}{f'± {verdict.ci95:.2g}':<11}{first}")
        for line in [*more, f"paper: {verdict.source}"]:
            say(f"  {'':<34}{line}")
    say("")


def amount(value: float, metric: str) -> str:
    """An accuracy in %, an mse as it is."""
    return f"{100 * value:.2f}" if metric == "accuracy" else f"{value:.4g}"


def _table(rows: dict[str, str], say: Callable[[str], Any]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        for i, line in enumerate(wrap(value, 80 - width - 4)):
            say(f"  {'' if i else name:<{width}}  {line}")
