"""The driver: starts runs as slots become free, reads what they report, and writes down what becomes of them.

It never waits for one run in particular. Whatever ends it, the record and the runs' folders are enough to go on.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from time import monotonic, sleep
from typing import Any, Protocol

from metarun import runs
from metarun.config import Tree
from metarun.files import write_json
from metarun.sweep.executor import Job, Pool, close
from metarun.sweep.rows import METRICS, Mark, objective, reports, rows
from metarun.sweep.settings import SweepSettings
from metarun.sweep.study import RESULT, STOP, TRIAL, Study, read_json
from metarun.sweep.trial import COMPLETE, FAILED, RUNNING, Goal, Params, Trial, Work, run_folder
from metarun.sweep.worker import WITH_PARENT
from metarun.types import InputError, TrainingError

LOG = "work.log"
"""what the process of a run says, beside its own log.txt"""
PAUSE = 0.02
"""seconds between two looks at what runs"""


class Asker(Protocol):
    """What says which setting comes next; see `search.Search`."""

    def ask(self, number: int) -> Params | None: ...
    def reported(self, number: int, value: float) -> bool: ...
    def ended(self, number: int, state: str, value: float | None) -> None: ...


class Listener(Protocol):
    """Who is told of what happens; see `table`."""

    def started(self, trial: Trial, slot: int, what: str) -> None: ...
    def reported(self, trial: Trial, step: int, value: float) -> None: ...
    def freed(self, slot: int) -> None: ...
    def ended(self, trial: Trial) -> None: ...
    def tick(self) -> None: ...


@dataclass
class Run:
    """One seed of a trial, until it is over."""

    trial: Trial
    seed: int
    folder: Path
    alike: Hashable = None
    """what other runs must have in common with it to share its process"""
    lives: int = 0
    """how often it was taken up again without having got on"""
    saved: int = 0
    """when its checkpoint was written, as far as is known"""
    read: Mark = Mark()
    """how far its rows were read"""
    began: float = 0.0
    over: bool = False


@dataclass
class Place:
    """A slot in use."""

    slot: int
    job: Job
    runs: list[Run] = field(default_factory=list)


@dataclass
class Driver:
    """One call of a sweep, or of a plain multirun (`goal` None).

    limit       trials in all
    tree        the config of a trial's run, by its params and which of the seeds it is
    alike       what two configs must have in common for their runs to share a process
    """

    folder: Path
    settings: SweepSettings
    goal: Goal | None
    limit: int
    asker: Asker
    study: Study
    pool: Pool
    listener: Listener
    tree: Callable[[Params, int], Tree]
    alike: Callable[[Tree], Hashable] = lambda tree: None
    command: Callable[[Sequence[Path]], tuple[str, ...]] = lambda folders: (
        sys.executable,
        "-m",
        "metarun.sweep.worker",
        WITH_PARENT,
        *map(str, folders),
    )
    waiting: deque[Run] = field(default_factory=deque)
    places: dict[int, Place] = field(default_factory=dict)
    codes: dict[int, int] = field(default_factory=dict)
    """what the processes of trials that have failed would have said"""
    exhausted: bool = False
    """whether there is nothing left to ask for"""

    def drive(self, stop: Callable[[], bool]) -> bool:
        """Until every trial is over, True, or until `stop`. Raises `TrainingError` where too many have failed."""
        self.adopt()
        while not stop():
            moved = [self._look(place) for place in [*self.places.values()]]
            self._fill()
            self.listener.tick()
            if not self.places and not self.waiting and self.exhausted:
                return True
            most = self.settings.max_failures
            failed = [trial for trial in self.study.trials if trial.state == FAILED]
            if most is not None and len(failed) > most:
                raise TrainingError(
                    f"{len(failed)} trials failed, more than sweep.max_failures={most}; the last: {failed[-1].reason}"
                )
            if not any(moved):
                sleep(PAUSE)
        return False

    def rest(self) -> None:
        """What still runs saves and ends, to be gone on with another time."""
        close([place.job for place in self.places.values()])
        self.places.clear()

    def adopt(self) -> None:
        """Takes up what was running when the driver before this one ended."""
        for trial in self.study.trials:
            if trial.state == RUNNING:
                for seed in range(self.settings.seeds if trial.measured else 1):
                    if seed not in trial.measured:
                        self._adopted(self._run(trial, seed))
        self.exhausted = len(self.study.trials) >= self.limit

    def _adopted(self, run: Run) -> None:
        if (result := read_json(run.folder / RESULT)) is not None:  # it ended, with nobody there to be told
            self._read(run)
            self._over(run, result["state"], result["reason"], result["code"])
        elif run.trial.state == RUNNING:
            self.waiting.append(run)

    def _run(self, trial: Trial, seed: int) -> Run:
        """With its folder ready to be worked in."""
        folder = run_folder(self.folder, trial.number, seed, self.settings.seeds)
        folder.mkdir(exist_ok=True)
        if (folder / runs.CONFIG).exists():
            tree = runs.read_config(folder)
        else:
            tree = self.tree(trial.params, seed)
            runs.write_config(folder, tree)
        self._note(trial, seed)
        return Run(trial, seed, folder, self.alike(tree))

    def _note(self, trial: Trial, seed: int, **more: Any) -> None:
        """What its run's own folder is to know of a trial."""
        goal = {"metric": self.goal.metric, "maximize": self.goal.maximize} if self.goal else None
        about = {"trial": trial.number, "seed": seed, "params": trial.params, "goal": goal, **more}
        write_json(run_folder(self.folder, trial.number, seed, self.settings.seeds) / TRIAL, about)

    def _fill(self) -> None:
        """Starts what waits, or the next that is asked for, in every slot that is free."""
        for slot in range(self.pool.slots):
            if slot in self.places:
                continue
            together = self._next()
            if not together:
                return
            folders = [run.folder for run in together]
            work = Work(self.command(folders), {}, Path.cwd(), folders[0] / LOG)
            for run in together:
                run.began, run.saved = monotonic(), _saved(run.folder)
            self.places[slot] = Place(slot, self.pool.start(work, slot), together)
            for run in together:
                self.listener.started(run.trial, slot, self._what(run))

    def _what(self, run: Run) -> str:
        """How it comes to run."""
        begun = (run.folder / "checkpoints" / "last.pt").exists()
        seed = f"seed {run.seed + 1} of {self.settings.seeds}" if self.settings.seeds > 1 else ""
        return ", ".join(filter(None, (seed, "goes on" if begun else ""))) or "started"

    def _next(self) -> list[Run]:
        """The runs that a free slot is for: one, or several that are alike enough to be trained together."""
        while len(self.waiting) < self.settings.vectorize and not self.exhausted:
            self._ask()
        if not self.waiting:
            return []
        first = self.waiting.popleft()
        together = [first, *(run for run in self.waiting if run.alike == first.alike)][: self.settings.vectorize]
        for run in together[1:]:
            self.waiting.remove(run)
        return together

    def _ask(self) -> None:
        number = len(self.study.trials)
        params = self.asker.ask(number) if number < self.limit else None
        if params is None:
            self.exhausted = True
            return
        trial = self.study.asked(params)
        try:
            self.waiting.append(self._run(trial, 0))
        except InputError as e:
            self.codes[number] = 2
            self._end(trial, FAILED, None, str(e).replace("\n", "; "))

    def _look(self, place: Place) -> bool:
        """Takes in what the runs of a slot have said since; whether anything was."""
        code = place.job.ended()
        for run in place.runs:
            if not run.over:
                self._read(run)
                if (result := read_json(run.folder / RESULT)) is not None:
                    self._over(run, result["state"], result["reason"], result["code"])
        if code is None:
            return False
        del self.places[place.slot]
        self.listener.freed(place.slot)
        for run in place.runs:
            if not run.over:
                self._lost(run, code)
        return True

    def _read(self, run: Run) -> None:
        if self.goal is None or run.seed:
            return
        found, run.read = rows(run.folder / METRICS, run.read)
        trial = run.trial
        for step, value in reports(found, self.goal):
            if step in trial.reports:
                continue
            # What is decided by a report is marked before that counts as read, so that no kill comes between the two.
            if self.asker.reported(trial.number, value) and not (run.folder / STOP).exists():
                (run.folder / STOP).touch()
            self.study.reported(trial.number, step, value)
            self.listener.reported(trial, step, value)

    def _lost(self, run: Run, code: int) -> None:
        """Its process has ended, and it does not say how it went: killed from outside, or crashed."""
        if (now := _saved(run.folder)) != run.saved:
            run.lives, run.saved = 0, now  # it got on: a queue may end it as often as its time is up
        if run.lives < self.settings.retries and (code < 0 or code >= 128):
            run.lives += 1
            self.waiting.appendleft(run)
            return
        number = -code if code < 0 else code - 128
        how = f"was ended by signal {number}" if number > 0 else f"ended with exit code {code}"
        last = _last_words(run.folder / LOG)
        self._over(run, FAILED, f"its process {how}{f'; it said last: {last}' if last else ''}")

    def _over(self, run: Run, state: str, reason: str, code: int = 1) -> None:
        run.over = True
        self.codes[run.trial.number] = code
        trial = run.trial
        trial.seconds += monotonic() - run.began
        if trial.state != RUNNING:
            return  # another seed of it has failed
        if state == COMPLETE and self.goal is not None:
            self._read(run)
            value = objective(run.folder, self.goal)
            if value is None:
                self._end(trial, FAILED, None, f"it never reported {self.goal.metric}", run.seed)
                return
            self.study.measured(trial.number, run.seed, value)
            if self.settings.seeds > 1:
                self._note(trial, run.seed, value=value)
            if run.seed == 0:  # it was not pruned, so the others are worth it
                self.waiting.extendleft(self._run(trial, seed) for seed in range(self.settings.seeds - 1, 0, -1))
            if len(trial.measured) == self.settings.seeds:
                self._end(trial, COMPLETE, fmean(trial.values), "", run.seed)
        else:
            self._end(trial, state, None, reason, run.seed)

    def _end(self, trial: Trial, state: str, value: float | None, reason: str, seed: int = 0) -> None:
        seconds = round(trial.seconds, 3)
        self.study.ended(trial.number, state, value, reason, seconds)
        end = {"state": state, "value": value, "reason": reason, "seconds": seconds}
        if (run_folder(self.folder, trial.number, seed, self.settings.seeds)).is_dir():
            self._note(trial, seed, ended=end, **({"value": trial.measured[seed]} if seed in trial.measured else {}))
        for run in (run for place in self.places.values() for run in place.runs if run.trial is trial):
            if not run.over:
                (run.folder / STOP).touch()
        self.waiting = deque(run for run in self.waiting if run.trial is not trial)
        self.asker.ended(trial.number, state, value)
        self.listener.ended(trial)


def _last_words(path: Path) -> str:
    """The last line that a process has said."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def _saved(folder: Path) -> int:
    """When the checkpoint of a run was written; 0 where there is none."""
    try:
        return (folder / "checkpoints" / "last.pt").stat().st_mtime_ns
    except OSError:
        return 0
