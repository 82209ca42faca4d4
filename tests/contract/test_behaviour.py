"""What every algorithm promises beyond its gradient: no task, label, query or earlier call leaks into another."""

from __future__ import annotations

import pytest
import torch
from contract.small import (
    ALGORITHMS,
    CONV4,
    MLP,
    PAIRS,
    REGRESSORS,
    WAY,
    Model,
    gap,
    make_algorithm,
    make_episodes,
    make_meta,
    make_net,
    make_regression,
    make_running,
    one_by_one,
    pair_id,
    vmapped_gradient,
)
from torch import Tensor

from metarun.engine.step import per_task
from metarun.types import Algorithm, Episode, Meta, Net

EXACT = 1e-11
every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
every_regressor = pytest.mark.parametrize("name", REGRESSORS)
every_pair = pytest.mark.parametrize(("name", "model"), PAIRS, ids=[pair_id(pair) for pair in PAIRS])


def parts(
    name: str, model: Model = CONV4, norm: str = "batch", statistics: str = "batch"
) -> tuple[Algorithm, Net, Meta]:
    algorithm, net = make_algorithm(name), make_net(model, norm, statistics)
    return algorithm, net, make_meta(algorithm, net)


def first_task(query: int = 2) -> Episode:
    return next(one_by_one(make_episodes(query=query)))


# Tasks


@every_algorithm
def test_the_order_of_tasks_in_a_batch_does_not_matter(name: str) -> None:
    algorithm, net, meta = parts(name)
    episodes, order = make_episodes(tasks=4), torch.tensor([2, 0, 3, 1])
    shuffled = Episode(*(field[order] for field in episodes))

    def loss(task: Episode) -> Tensor:
        return algorithm.loss(net, meta, task).loss.detach()

    straight = per_task(loss, episodes)
    assert gap(per_task(loss, shuffled), straight[order]) < EXACT
    assert straight.unique().numel() == 4  # so that a permutation can be told from none
    before, metrics_before, _ = vmapped_gradient(algorithm, net, meta, episodes)
    after, metrics_after, _ = vmapped_gradient(algorithm, net, meta, shuffled)
    for w in before:
        assert gap(after[w], before[w]) < EXACT, w
    for metric in metrics_before:
        assert gap(metrics_after[metric], metrics_before[metric]) < EXACT, metric


@every_pair
def test_predictions_for_many_tasks_are_those_for_each(name: str, model: Model) -> None:
    algorithm, net, meta = parts(name, model)
    episodes = make_episodes()
    with torch.no_grad():
        together = per_task(lambda task: algorithm.predict(net, meta, task), episodes)
        alone = torch.stack([algorithm.predict(net, meta, task) for task in one_by_one(episodes)])
    assert gap(together, alone) < EXACT


# Labels


def renumbered_head(w: Tensor, rows: Tensor) -> Tensor:
    """The head, or what a method has for each of its rows (or pairs of rows), with its classes in another order."""
    for dim in [d for d, size in enumerate(w.shape) if size == WAY]:
        w = w.index_select(dim, rows)
    return w


@every_pair
def test_other_numbers_for_the_classes_only_renumber_the_predictions(name: str, model: Model) -> None:
    algorithm, net, meta = parts(name, model)
    task, new = first_task(), torch.tensor([1, 2, 0])  # class c becomes class new[c]
    renumbered = task._replace(support_y=new[task.support_y], query_y=new[task.query_y])
    head = {n: renumbered_head(w, new.argsort()) if "head." in n else w for n, w in meta.items()}
    with torch.no_grad():
        before, after = algorithm.predict(net, meta, task), algorithm.predict(net, head, renumbered)
    assert gap(after[:, new], before) < EXACT
    assert gap(after, before) > 1e-3
    assert gap(algorithm.loss(net, head, renumbered).loss, algorithm.loss(net, meta, task).loss) < EXACT


@every_algorithm
def test_the_labels_of_the_queries_do_not_reach_the_prediction(name: str) -> None:
    algorithm, net, meta = parts(name)
    task = first_task()
    with torch.no_grad():
        told = algorithm.predict(net, meta, task)
        other = algorithm.predict(net, meta, task._replace(query_y=(task.query_y + 1) % WAY))
    assert torch.equal(told, other)


@every_algorithm
def test_the_labels_of_the_support_set_do(name: str) -> None:
    algorithm, net, meta = parts(name)
    task = first_task()
    with torch.no_grad():
        told = algorithm.predict(net, meta, task)
        other = algorithm.predict(net, meta, task._replace(support_y=(task.support_y + 1) % WAY))
    assert gap(other, told) > 1e-4


# Support


@every_pair
def test_the_order_of_the_support_set_matters_only_where_it_is_said_to(name: str, model: Model) -> None:
    algorithm, net, meta = parts(name, model)
    task = first_task()
    order = torch.arange(len(task.support_y)).roll(1)
    shuffled = task._replace(support_x=task.support_x[order], support_y=task.support_y[order])
    with torch.no_grad():
        before, after = algorithm.predict(net, meta, task), algorithm.predict(net, meta, shuffled)
    if algorithm.in_turn:
        assert gap(after, before) > 1e-4
        return
    assert gap(after, before) < EXACT
    assert gap(algorithm.loss(net, meta, shuffled).loss, algorithm.loss(net, meta, task).loss) < EXACT


# Queries


def influence_of_other_queries(algorithm: Algorithm, net: Net, meta: Meta) -> float:
    """How far the first query's prediction moves when the others are replaced, and when it is left alone."""
    task = first_task()
    others = torch.cat([task.query_x[:1], torch.rand_like(task.query_x[1:])])
    with torch.no_grad():
        first = algorithm.predict(net, meta, task)[0]
        among_others = algorithm.predict(net, meta, task._replace(query_x=others))[0]
        alone = algorithm.predict(net, meta, task._replace(query_x=task.query_x[:1]))[0]
    return max(gap(among_others, first), gap(alone, first))


@pytest.mark.parametrize(
    ("norm", "statistics"), [("batch", "support"), ("group", "batch"), ("layer", "batch"), ("none", "batch")]
)
@every_pair
def test_queries_do_not_see_one_another(name: str, model: Model, norm: str, statistics: str) -> None:
    algorithm, net, meta = parts(name, model, norm, statistics)
    assert influence_of_other_queries(algorithm, net, meta) < EXACT


@every_pair
def test_queries_do_not_see_one_another_through_moving_averages(name: str, model: Model) -> None:
    algorithm, net, meta = parts(name, model, "batch", "running")
    assert influence_of_other_queries(algorithm, net.at_test(make_running(algorithm, net, meta)), meta) < EXACT


@every_pair
def test_queries_see_one_another_through_batch_statistics(name: str, model: Model) -> None:
    algorithm, net, meta = parts(name, model, "batch", "batch")
    assert influence_of_other_queries(algorithm, net, meta) > 1e-4


@every_algorithm
def test_moving_averages_are_what_predicts(name: str) -> None:
    algorithm, net, meta = parts(name, statistics="running")
    task = first_task()
    with torch.no_grad():
        one, other = (
            algorithm.predict(net.at_test(make_running(algorithm, net, meta, seed)), meta, task) for seed in (1, 2)
        )
    assert gap(other, one) > 1e-4


# Calls


@pytest.mark.parametrize("statistics", ["batch", "support", "running"])
@every_algorithm
def test_loss_and_predict_leave_their_arguments_alone(name: str, statistics: str) -> None:
    algorithm, net, meta = parts(name, statistics=statistics)
    running = make_running(algorithm, net, meta)
    tested, task = net.at_test(running), first_task()
    before = [t.detach().clone() for t in [*meta.values(), *running.values(), *task]]
    first = algorithm.loss(net, meta, task), algorithm.predict(tested, meta, task)
    again = algorithm.loss(net, meta, task), algorithm.predict(tested, meta, task)
    assert torch.equal(first[0].loss, again[0].loss)
    assert torch.equal(first[1], again[1])
    assert all(torch.equal(a, b) for a, b in zip([*meta.values(), *running.values(), *task], before))
    assert all(w.grad is None for w in meta.values())


@every_algorithm
def test_predict_runs_without_a_graph_and_says_the_same(name: str) -> None:
    algorithm, net, meta = parts(name)
    task = first_task()
    with torch.no_grad():
        bare = algorithm.predict(net, meta, task)
    assert not bare.requires_grad
    assert bare.shape == (len(task.query_y), WAY)
    assert gap(bare, algorithm.predict(net, meta, task)) < EXACT


@every_algorithm
def test_loss_and_metrics_are_scalars_and_metrics_carry_no_graph(name: str) -> None:
    algorithm, net, meta = parts(name)
    out = algorithm.loss(net, meta, first_task())
    assert out.loss.shape == ()
    assert {"loss", "accuracy"} <= out.metrics.keys()
    assert all(value.shape == () and not value.requires_grad for value in out.metrics.values())
    assert 0 <= out.metrics["accuracy"] <= 1


@every_pair
def test_init_is_decided_by_its_generator_alone(name: str, model: Model) -> None:
    algorithm, net = make_algorithm(name), make_net(model)
    state = torch.get_rng_state()
    one, same, other = (algorithm.init(net, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.keys() == same.keys() == other.keys()
    assert all(torch.equal(one[n], same[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)
    assert all(w.dtype == torch.float32 and w.device.type == "cpu" for w in one.values())


# Numbers in place of classes


def fitted(name: str, norm: str = "batch", statistics: str = "batch") -> tuple[Algorithm, Net, Meta, Episode]:
    """The method with the MLP, and a regression task."""
    return *parts(name, MLP, norm, statistics), next(one_by_one(make_regression()))


@every_regressor
def test_predictions_in_regression_are_of_the_task_alone(name: str) -> None:
    algorithm, net, meta, task = fitted(name)
    episodes = make_regression()
    with torch.no_grad():
        together = per_task(lambda task: algorithm.predict(net, meta, task), episodes)
        alone = torch.stack([algorithm.predict(net, meta, task) for task in one_by_one(episodes)])
        untold = algorithm.predict(net, meta, task._replace(query_y=task.query_y + 1))
        other = algorithm.predict(net, meta, task._replace(support_y=task.support_y.flip(0)))
    assert alone.shape == episodes.query_y.shape
    assert gap(together, alone) < EXACT
    assert torch.equal(untold, alone[0])
    assert gap(other, alone[0]) > 1e-4


@every_regressor
def test_the_order_of_the_support_set_matters_in_regression_only_where_it_is_said_to(name: str) -> None:
    algorithm, net, meta, task = fitted(name)
    shuffled = task._replace(support_x=task.support_x.roll(1, 0), support_y=task.support_y.roll(1, 0))
    with torch.no_grad():
        before, after = algorithm.predict(net, meta, task), algorithm.predict(net, meta, shuffled)
    assert gap(after, before) > 1e-4 if algorithm.in_turn else gap(after, before) < EXACT


@pytest.mark.parametrize(("norm", "statistics"), [("batch", "support"), ("group", "batch"), ("none", "batch")])
@every_regressor
def test_queries_do_not_see_one_another_in_regression(name: str, norm: str, statistics: str) -> None:
    algorithm, net, meta, task = fitted(name, norm, statistics)
    with torch.no_grad():
        among_others = algorithm.predict(net, meta, task)
        alone = algorithm.predict(net, meta, task._replace(query_x=task.query_x[:1], query_y=task.query_y[:1]))
    assert gap(among_others[:1], alone) < EXACT


@every_regressor
def test_a_loss_in_regression_is_scalar_and_told_with_its_error(name: str) -> None:
    algorithm, net, meta, task = fitted(name)
    before = [t.detach().clone() for t in [*meta.values(), *task]]
    out, again = (algorithm.loss(net, meta, task) for _ in range(2))
    assert torch.equal(out.loss, again.loss)
    assert all(torch.equal(a, b) for a, b in zip([*meta.values(), *task], before))
    assert out.loss.shape == ()
    assert {"loss", "mse"} <= out.metrics.keys()
    assert all(value.shape == () and not value.requires_grad for value in out.metrics.values())
