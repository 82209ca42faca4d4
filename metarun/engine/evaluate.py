"""Accuracy over a fixed list of tasks."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from metarun.engine.step import per_task
from metarun.types import Algorithm, Episode, Episodes, Meta, Net


class Score(NamedTuple):
    """A mean over tasks, in [0, 1], and the half-width of its 95 % interval: 1.96 sd / sqrt(tasks)."""

    mean: float
    ci95: float
    tasks: int


def task_accuracies(algorithm: Algorithm, net: Net, meta: Meta, episodes: Episodes, tasks: int, batch: int) -> Tensor:
    """(tasks,) the fraction of queries right in each of the first `tasks` episodes, `batch` at a time."""

    def one(episode: Episode) -> Tensor:
        right = algorithm.predict(net, meta, episode).argmax(-1) == episode.query_y
        return right.float().mean()

    with torch.no_grad():
        firsts = range(0, tasks, batch)
        return torch.cat([per_task(one, episodes(first, min(batch, tasks - first))) for first in firsts])


def score(accuracies: Tensor) -> Score:
    """(tasks,) -> Score; sd is the sample standard deviation. Waits for the device."""
    values = accuracies.double()
    sd = float(values.std()) if len(values) > 1 else 0.0
    return Score(float(values.mean()), 1.96 * sd / sqrt(len(values)), len(values))
