"""The `sweep` node of a config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from metarun.types import setting

SAMPLERS = ("random", "grid", "tpe", "cmaes", "qmc", "nsga2", "gp")
PRUNERS = ("none", "asha", "hyperband", "median")


@dataclass(frozen=True)
class SweepSettings:
    """What is searched for, and how.

    `trials` settings are tried in all (None: a grid's), over `seeds` seeds each, the best mean of `metric` wins; None:
    what its validation tasks are judged by. `workers` runs go on at a time, `per_gpu` of them on each GPU. A trial may
    be pruned after `warmup` validations (None: a tenth of them), and of what has come as far, one in `reduction` goes
    on. `startup` settings are random before a model of them is believed. `enqueue`: settings to try first. After
    `timeout` minutes, or `max_failures` trials that failed, the sweep stops; a run that was killed from outside is
    taken up again `retries` times. `vectorize` runs that differ in real numbers alone share a process.
    """

    sampler: str = setting("tpe", choices=SAMPLERS)
    trials: int | None = setting(None, least=1)
    workers: int | Literal["auto"] = setting("auto", least=1)
    per_gpu: int = setting(1, least=1)
    pruner: str = setting("none", choices=PRUNERS)
    warmup: int | None = setting(None, least=1)
    reduction: int = setting(3, least=2)
    startup: int = setting(10, least=0)
    metric: str | None = setting(None)
    direction: str | None = setting(None, choices=("maximize", "minimize"))
    seeds: int = setting(1, least=1)
    seed: int = setting(0, least=0, most=2**31)
    enqueue: list[Any] = setting([])
    timeout: float | None = setting(None, above=0)
    max_failures: int | None = setting(10, least=0)
    retries: int = setting(1, least=0)
    vectorize: int = setting(1, least=1)
    name: str | None = setting(None)
