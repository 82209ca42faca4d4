"""The end of a sweep: what its folder keeps, the one look at test classes, and what is said."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

from metarun.engine.evaluate import Score
from metarun.report import shown
from metarun.sweep.executor import Pool
from metarun.sweep.report import show_end, write_end
from metarun.sweep.study import read_json
from metarun.sweep.trial import Goal, Space, Trial, Work, ranked, run_folder
from metarun.sweep.worker import TEST, WITH_PARENT

EVAL = "eval.json"
Say = Callable[[str], Any]


@dataclass(frozen=True)
class Outcome:
    """A sweep that has come to its end. `words`: what all its runs share, as it was typed."""

    folder: Path
    trials: list[Trial]
    space: Space
    goal: Goal
    words: Sequence[str]
    seeds: int
    config_dir: str | None

    @property
    def best(self) -> Trial | None:
        return next(iter(ranked(self.trials, self.goal)), None)


def end(of: Outcome, pool: Pool, say: Say, stop: Callable[[], bool]) -> int:
    """Writes and says all there is to it; 1 where no trial has been completed."""
    files = write_end(of.folder, of.trials, of.space, of.goal, of.words, say, of.seeds)
    told = tested(of.folder, of.best, of.seeds, pool, stop) if of.best else []
    show_end(of.folder, of.trials, of.space, of.goal, say, files, of.config_dir)
    for line in told:
        say(f"  {line}")
    if told:
        say("")
    return 0 if of.best else 1


def tested(folder: Path, best: Trial, seeds: int, pool: Pool, stop: Callable[[], bool]) -> list[str]:
    """What the best setting is worth on test classes, evaluated where trials run, and once: never to choose by."""
    out, log = folder / f"test-{best.number}", folder / f"test-{best.number}.log"
    if result(out) is None and not stop():
        shutil.rmtree(out, ignore_errors=True)  # of an evaluation that was killed
        out.mkdir()
        runs = [run_folder(folder.resolve(), best.number, seed, seeds) for seed in range(seeds)]
        words = TEST, str(out.resolve()), *map(str, runs)
        argv = (sys.executable, "-m", "metarun.sweep.worker", WITH_PARENT, *words)
        job = pool.start(Work(argv, {}, Path.cwd(), log.resolve()), 0)
        while job.ended() is None and not stop():
            sleep(0.05)
    if (found := result(out)) is None:
        return [f"trial {best.number} was not evaluated on test classes; see {log}"]
    of = f"mean of {seeds} seeds, " if seeds > 1 else ""
    return [f"trial {best.number} on test classes: {found}  ({of}95 % interval)", f"{out / EVAL}"]


def result(folder: Path) -> str | None:
    """What an evaluation in `folder` has found: `accuracy 93.40 ± 0.51 %`; None where there is none."""
    found = read_json(folder / EVAL)
    if not isinstance(found, dict):
        return None
    return f"{found['metric']} {shown(Score(found['mean'], found['ci95'], found['tasks']), found['metric'])}"
