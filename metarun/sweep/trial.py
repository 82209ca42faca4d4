"""The vocabulary of a sweep: what is searched, and what has become of each setting that was tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Value = str | int | float | bool | None
Params = dict[str, Value]
"""by setting, as it is typed: {"algo": "maml", "train.lr": 0.001}; of a list or mapping, Hydra's text for it"""

RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"
STATES = (RUNNING, COMPLETE, PRUNED, FAILED)


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    options: tuple[Value, ...]


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included; whole ones, `step` apart, where it is `whole`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: int = 1


Dimension = Choice | Interval
Space = Mapping[str, Dimension]
"""by setting; those that only some choices of a group have are not in every trial's params"""


@dataclass
class Trial:
    """One setting and what became of it.

    value       the objective: the mean over its seeds; None until it is complete
    measured    the same of each seed that is over, by its number from 0
    reports     step -> the metric of its first seed's validations
    reason      why it failed
    seconds     that its runs took together
    """

    number: int
    params: Params
    state: str = RUNNING
    value: float | None = None
    measured: dict[int, float] = field(default_factory=dict)
    reports: dict[int, float] = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0

    @property
    def values(self) -> list[float]:
        """Of each seed that is over."""
        return [value for _, value in sorted(self.measured.items())]


@dataclass(frozen=True)
class Goal:
    """What trials are judged by: `metric` as its rows have it (`val/accuracy`), the larger the better or not."""

    metric: str
    maximize: bool

    def better(self, a: float, b: float) -> bool:
        return a > b if self.maximize else a < b

    @property
    def name(self) -> str:
        """`accuracy` of `val/accuracy`"""
        return self.metric.rpartition("/")[2]


@dataclass(frozen=True)
class Work:
    """A process to be started: `folder` is where, `log` takes what it says."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path
    log: Path


def run_folder(sweep: Path, number: int, seed: int, seeds: int) -> Path:
    """Where the run of a trial's `seed`-th of `seeds` lies: `SWEEP/7`, or `SWEEP/7-0`, `SWEEP/7-1`."""
    return sweep / (str(number) if seeds == 1 else f"{number}-{seed}")


def ended(trials: list[Trial], state: str) -> list[Trial]:
    return [trial for trial in trials if trial.state == state]


def ranked(trials: list[Trial], goal: Goal) -> list[Trial]:
    """Those that are complete, the best first; of equals, the earlier."""
    done = [trial for trial in trials if trial.state == COMPLETE and trial.value is not None]
    sign = -1 if goal.maximize else 1
    return sorted(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number))
