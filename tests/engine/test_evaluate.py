"""What a method is worth over a fixed list of tasks: the same list and the same number, however many at a time."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract.small import (
    ALGORITHMS,
    NORMS,
    STATISTICS,
    WAY,
    make_algorithm,
    make_episodes,
    make_meta,
    make_net,
    make_running,
    one_by_one,
)
from contract.test_behaviour import influence_of_other_queries
from torch import Tensor

from metarun.engine.evaluate import joined, outcomes, queries_see_one_another, score, task_values
from metarun.engine.step import per_task
from metarun.measures import MEASURES, Measure, ndcg
from metarun.types import Episode, EpisodeBatch

ALL = make_episodes(tasks=20, query=3)
ACCURACY = MEASURES["accuracy"]


def episodes(first: int, count: int) -> EpisodeBatch:
    return EpisodeBatch(*(field[first : first + count] for field in ALL))


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_batch_size_changes_nothing(name: str, statistics: str) -> None:
    algorithm, net = make_algorithm(name), make_net(statistics=statistics)
    meta = make_meta(algorithm, net)
    tested = net.at_test(make_running(algorithm, net, meta))
    by_hand = [
        (algorithm.predict(tested, meta, task).argmax(1) == task.query_y).double().mean()
        for task in one_by_one(episodes(0, 10))
    ]
    for batch in (1, 3, 10, 50, None):
        found = task_values(algorithm, tested, meta, episodes, 10, batch, ACCURACY)
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
    found = task_values(Oracle(), None, {}, lambda first, count: batch, 2, 2, ACCURACY)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor([1.0, 1 - wrong / 3], dtype=torch.float64))


# Measures


def numbers(tasks: int = 50, query: int = 9, stars: bool = True, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(tasks, query, 1) predictions and targets; predictions tie now and then, as targets do."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 6, (tasks, query, 1), generator=generator).float()
    prediction = torch.randint(0, 6, (tasks, query, 1), generator=generator).float()
    return (prediction if stars else torch.randn(prediction.shape, generator=generator)), y


def judged(measure: Measure, prediction: Tensor, y: Tensor) -> Tensor:
    """(tasks,) as the engine would have it: all tasks at once."""
    return per_task(lambda e: measure.of(e.query_x, e.query_y), EpisodeBatch(y, y, prediction, y))


@pytest.mark.parametrize("stars", [True, False])
def test_errors_are_of_each_task_alone(stars: bool) -> None:
    prediction, y = (part.numpy()[..., 0] for part in numbers(stars=stars))
    expected = {
        "mse": ((prediction - y) ** 2).mean(1),
        "rmse": np.sqrt(((prediction - y) ** 2).mean(1)),
        "mae": np.abs(prediction - y).mean(1),
    }
    for name, values in expected.items():
        found = judged(MEASURES[name], *numbers(stars=stars))
        torch.testing.assert_close(found, torch.from_numpy(values))
    assert float(expected["rmse"].mean()) < np.sqrt(expected["mse"].mean()) - 0.01  # the note is no splitting of hairs
    assert MEASURES["rmse"].note and MEASURES["ndcg"].note


@pytest.mark.parametrize("stars", [True, False], ids=["ties", "no ties"])
def test_ndcg_is_what_others_compute(stars: bool) -> None:
    from sklearn.metrics import ndcg_score

    prediction, y = numbers(stars=stars)
    expected = [ndcg_score(b.T.numpy(), a.T.numpy()) for a, b in zip(prediction, y, strict=True)]
    torch.testing.assert_close(judged(MEASURES["ndcg"], prediction, y), torch.tensor(expected, dtype=torch.float64))


def test_ndcg_by_hand() -> None:
    """Gains 3, 2, 0 in places 2, 1, 3: (2 / log2 2 + 3 / log2 3) / (3 / log2 2 + 2 / log2 3)"""
    y, prediction = torch.tensor([[3.0], [2.0], [0.0]]), torch.tensor([[0.2], [0.9], [0.1]])
    found = float(ndcg(prediction, y))
    assert found == pytest.approx((2 + 3 / np.log2(3)) / (3 + 2 / np.log2(3)))
    assert float(ndcg(prediction, y - 1.5, zero=1.5)) == pytest.approx(found)  # targets need not be the gains


def test_ndcg_knows_no_order_but_that_of_the_predictions() -> None:
    prediction, y = numbers()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    for a, b in ((prediction, y), (torch.zeros_like(y), y)):
        torch.testing.assert_close(judged(MEASURES["ndcg"], a[:, order], b[:, order]), judged(MEASURES["ndcg"], a, b))
    discount = 1 / torch.arange(2, 11).double().log2()
    tied = y[..., 0].double().sum(1) * discount.mean()  # all share all places
    best = (y[..., 0].double().sort(1, descending=True).values * discount).sum(1)
    torch.testing.assert_close(judged(MEASURES["ndcg"], torch.zeros_like(y), y), tied / best)


def test_ndcg_at_its_ends() -> None:
    prediction, y = numbers(stars=False)
    assert bool((judged(MEASURES["ndcg"], y, y) == 1).all())
    assert bool((judged(MEASURES["ndcg"], 7 * y - 3, y) == 1).all())
    assert bool((judged(MEASURES["ndcg"], prediction, 0 * y) == 1).all())  # nothing to gain, and all of it gained
    assert bool((judged(MEASURES["ndcg"], prediction[:, :1], y[:, :1]) == 1).all())
    assert bool(
        judged(MEASURES["ndcg"], prediction.masked_fill(y == 3, torch.nan), y)[(y == 3).any(1)[:, 0]].isnan().all()
    )


def test_which_way_is_better() -> None:
    assert {name: m.better(2.0, 1.0) for name, m in MEASURES.items()} == {
        "accuracy": True, "mse": False, "rmse": False, "mae": False, "ndcg": True
    }  # fmt: skip
    assert MEASURES["rmse"].worst == torch.inf and MEASURES["ndcg"].worst == -torch.inf


def test_score_is_the_mean_and_its_interval_over_tasks() -> None:
    values = np.random.default_rng(0).integers(0, 6, 600) / 5
    found = score(torch.tensor(values, dtype=torch.float32))
    assert found.mean == pytest.approx(values.mean(), rel=1e-6)
    assert found.ci95 == pytest.approx(1.96 * values.std(ddof=1) / sqrt(600), rel=1e-6)
    assert found.tasks == 600


def test_score_of_one_task_has_no_interval() -> None:
    assert score(torch.tensor([0.4])) == pytest.approx((0.4, 0.0, 1))


# All there is to know


class Listed:
    """A sampler of `ALL`, whose labels stand for classes of a bank."""

    item_shape, outputs = (), WAY
    names = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(i))[:WAY] for i in range(20)])

    def __call__(self, first: int, count: int) -> EpisodeBatch:
        return episodes(first, count)

    def classes(self, first: int, count: int) -> Tensor:
        return self.names[first : first + count]


class OfNumbers(Listed):
    """The same for regression."""

    def __call__(self, first: int, count: int) -> EpisodeBatch:
        drawn = episodes(first, count)
        return drawn._replace(support_y=F.one_hot(drawn.support_y).double(), query_y=F.one_hot(drawn.query_y).double())

    def classes(self, first: int, count: int) -> None:
        return None


@pytest.mark.parametrize("name", ALGORITHMS)
def test_outcomes_are_each_tasks_own(name: str) -> None:
    """The curve ends at what the method predicts, and starts where the weights have not moved."""
    algorithm, net = make_algorithm(name), make_net()
    meta = make_meta(algorithm, net)
    with torch.no_grad():
        each = [algorithm.trajectory(net, meta, task) for task in one_by_one(episodes(0, 7))]
        ends = [algorithm.predict(net, meta, task) for task in one_by_one(episodes(0, 7))]
    assert len(each[0]) in (1, algorithm.eval_steps + 1)
    for steps, end in zip(each, ends):
        torch.testing.assert_close(steps[-1], end)
    right = [[(p.argmax(1) == y).double().mean() for p in steps] for steps, y in zip(each, ALL.query_y)]
    names = Listed.names[:7]
    for batch in (1, 3, 50):
        found = outcomes(algorithm, net, meta, Listed(), 7, batch, [ACCURACY])
        assert torch.equal(found.values, torch.tensor(right, dtype=torch.float64))
        assert torch.equal(found.final, task_values(algorithm, net, meta, episodes, 7, batch, ACCURACY))
        assert found.true is not None and found.predicted is not None
        assert torch.equal(found.true, names.gather(1, ALL.query_y[:7]))
        assert torch.equal(found.predicted, names.gather(1, torch.stack(ends).argmax(2)))


def test_the_curve_moves() -> None:
    algorithm, net = make_algorithm("maml", eval_steps=3, inner_lr=2.0), make_net()
    values = outcomes(algorithm, net, make_meta(algorithm, net), Listed(), 20, 50, [ACCURACY]).values
    assert values.shape == (20, 4)
    assert len({tuple(column) for column in values.T.tolist()}) == 4


def test_outcomes_of_regression_are_errors_and_no_classes() -> None:
    algorithm, net = make_algorithm("maml"), make_net()
    meta = make_meta(algorithm, net)
    found = outcomes(algorithm, net, meta, OfNumbers(), 5, 2, [MEASURES["mse"]])
    assert found.true is None and found.predicted is None
    assert found.values.shape == (5, 3)
    last = [
        (algorithm.predict(net, meta, task) - task.query_y).square().mean().detach()
        for task in one_by_one(OfNumbers()(0, 5))
    ]
    torch.testing.assert_close(found.final, torch.stack(last))
    assert found.also.shape == (5, 0)
    twice = joined([found, found])
    assert twice.values.shape == (10, 3) and twice.also.shape == (10, 0) and twice.true is None


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_the_first_measure_is_followed_and_all_are_taken_at_the_end(batch: int) -> None:
    algorithm, net = make_algorithm("maml"), make_net()
    meta = make_meta(algorithm, net)
    measures = [MEASURES[name] for name in ("rmse", "mae", "ndcg")]
    found = outcomes(algorithm, net, meta, OfNumbers(), 5, batch, measures)
    for i, task in enumerate(one_by_one(OfNumbers()(0, 5))):
        steps = [p.detach() for p in algorithm.trajectory(net, meta, task)]
        rmse = torch.stack([measures[0].of(p, task.query_y) for p in steps])
        torch.testing.assert_close(found.values[i], rmse)
        torch.testing.assert_close(found.also[i], torch.stack([m.of(steps[-1], task.query_y) for m in measures[1:]]))
    assert found.values.shape == (5, 3) and found.also.shape == (5, 2)
    assert joined([found, found]).also.shape == (10, 2)
    for measure, values in zip(measures, (found.final, *found.also.T), strict=True):
        torch.testing.assert_close(task_values(algorithm, net, meta, OfNumbers(), 5, batch, measure).double(), values)


# Transductive


@pytest.mark.parametrize(
    ("norm", "statistics"), [*((norm, "batch") for norm in NORMS), *(("batch", s) for s in STATISTICS)]
)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_transductive_is_what_is_called_so(name: str, norm: str, statistics: str) -> None:
    algorithm, net = make_algorithm(name), make_net(norm=norm, statistics=statistics)
    meta = make_meta(algorithm, net)
    tested = net.at_test(make_running(algorithm, net, meta))
    found = queries_see_one_another(algorithm, tested, meta, episodes)
    assert found == (influence_of_other_queries(algorithm, tested, meta) > 1e-6)
    assert found == (norm == "batch" and statistics == "batch")
    # As it is in a run: with single precision.
    moved = net.at_test({n: w.float() for n, w in make_running(algorithm, net, meta).items()})
    single = {n: w.detach().float() for n, w in meta.items()}
    first = EpisodeBatch(*(f[:1].float() if f.is_floating_point() else f[:1] for f in ALL))
    assert queries_see_one_another(algorithm, moved, single, lambda *_: first) == found


def test_one_query_alone_sees_no_other() -> None:
    algorithm, net = make_algorithm("maml"), make_net()
    alone = make_episodes(tasks=1, query=1)
    one = alone._replace(query_x=alone.query_x[:, :1], query_y=alone.query_y[:, :1])
    assert not queries_see_one_another(algorithm, net, make_meta(algorithm, net), lambda first, count: one)


def test_noise_of_the_device_is_not_taken_for_other_queries() -> None:
    """A GPU may add up in another order each time."""
    algorithm, net = make_algorithm("maml"), make_net(norm="none")
    meta, noise = make_meta(algorithm, net), iter([1e-5, -1e-5, 3e-5])

    class Noisy:
        def predict(self, net: Any, meta: Any, episode: Episode) -> Tensor:
            return algorithm.predict(net, meta, episode) * (1 + next(noise))

    assert not queries_see_one_another(Noisy(), net, meta, episodes)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize(("norm", "transductive"), [("batch", True), ("group", False)])
def test_transductive_on_a_gpu(norm: str, transductive: bool) -> None:
    algorithm, net = make_algorithm("maml", eval_steps=20), make_net(norm=norm)
    meta = {n: w.detach().float().cuda() for n, w in make_meta(algorithm, net).items()}
    first = EpisodeBatch(*(f[:1].cuda().float() if f.is_floating_point() else f[:1].cuda() for f in ALL))
    assert queries_see_one_another(algorithm, net, meta, lambda *_: first) == transductive
