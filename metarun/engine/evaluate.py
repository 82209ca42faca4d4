"""What a method is worth over a fixed list of tasks."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.engine.step import per_task
from metarun.types import Algorithm, Episode, Episodes, Meta, Net


class Score(NamedTuple):
    """A mean over tasks (accuracy in [0, 1], or mse) and the half-width of its 95 % interval: 1.96 sd / sqrt(tasks)."""

    mean: float
    ci95: float
    tasks: int


def value(prediction: Tensor, y: Tensor) -> Tensor:
    """() what one task's predictions are worth: the fraction right of class ids, else the mean squared error"""
    if y.is_floating_point():
        return (prediction - y).square().mean()
    return (prediction.argmax(-1) == y).float().mean()


def over_tasks(f: Callable[[Episode], Tensor], episodes: Episodes, tasks: int, batch: int) -> Tensor:
    """(tasks, ...) f of each of the first `tasks` episodes, `batch` at a time, without a graph."""
    with torch.no_grad():
        firsts = range(0, tasks, batch)
        return torch.cat([per_task(f, episodes(first, min(batch, tasks - first))) for first in firsts])


def task_values(algorithm: Algorithm, net: Net, meta: Meta, episodes: Episodes, tasks: int, batch: int) -> Tensor:
    """(tasks,) the `value` of the method's predictions in each of the first `tasks` episodes."""
    return over_tasks(lambda e: value(algorithm.predict(net, meta, e), e.query_y), episodes, tasks, batch)


def score(values: Tensor) -> Score:
    """(tasks,) -> Score; sd is the sample standard deviation. Waits for the device."""
    values = values.double()
    sd = float(values.std()) if len(values) > 1 else 0.0
    return Score(float(values.mean()), 1.96 * sd / sqrt(len(values)), len(values))
