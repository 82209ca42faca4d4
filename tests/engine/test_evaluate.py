"""Accuracy over a fixed list of tasks: the same list and the same number, however many at a time."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from contract.small import (
    ALGORITHMS,
    WAY,
    make_algorithm,
    make_episodes,
    make_meta,
    make_net,
    make_running,
    one_by_one,
)
from torch import Tensor

from metarun.engine.evaluate import score, task_values
from metarun.types import Episode, EpisodeBatch

ALL = make_episodes(tasks=20, query=3)


def episodes(first: int, count: int) -> EpisodeBatch:
    return EpisodeBatch(*(field[first : first + count] for field in ALL))


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_batch_size_changes_nothing(name: str, statistics: str) -> None:
    algorithm, net = make_algorithm(name), make_net(statistics=statistics)
    meta = make_meta(algorithm, net)
    tested = net.at_test(make_running(net, meta))
    by_hand = [
        (algorithm.predict(tested, meta, task).argmax(1) == task.query_y).double().mean()
        for task in one_by_one(episodes(0, 10))
    ]
    for batch in (1, 3, 10, 50):
        found = task_values(algorithm, tested, meta, episodes, 10, batch)
        torch.testing.assert_close(found.double(), torch.stack(by_hand), atol=1e-6, rtol=0)
    assert len(set(map(float, by_hand))) > 1


class Oracle:
    """Predicts the class that is written in each query's item."""

    eval_steps = 0

    def predict(self, net: Any, meta: Any, episode: Episode) -> Tensor:
        return torch.eye(WAY)[episode.query_x[:, 0]]


@pytest.mark.parametrize("wrong", range(4))
def test_accuracy_is_the_fraction_of_queries_right_in_each_task(wrong: int) -> None:
    y = torch.tensor([[0, 1, 2], [2, 0, 1]])
    told = y.clone()
    told[1, :wrong] = (told[1, :wrong] + 1) % WAY
    batch = EpisodeBatch(y[..., None], y, told[..., None], y)
    found = task_values(Oracle(), None, {}, lambda first, count: batch, 2, 2)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor([1.0, 1 - wrong / 3]))


def test_score_is_the_mean_and_its_interval_over_tasks() -> None:
    values = np.random.default_rng(0).integers(0, 6, 600) / 5
    found = score(torch.tensor(values, dtype=torch.float32))
    assert found.mean == pytest.approx(values.mean(), rel=1e-6)
    assert found.ci95 == pytest.approx(1.96 * values.std(ddof=1) / sqrt(600), rel=1e-6)
    assert found.tasks == 600


def test_score_of_one_task_has_no_interval() -> None:
    assert score(torch.tensor([0.4])) == pytest.approx((0.4, 0.0, 1))
