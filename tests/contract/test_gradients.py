"""The engine's gradient is the gradient: all tasks under vmap give what one task after another gives.

Whatever algorithm and model is registered takes part. What is to be held fixed is `small.py`'s; there is no list here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from contract.small import (
    CONV4,
    MLP,
    MODELS,
    NORMS,
    PAIRS,
    REGRESSORS,
    STATISTICS,
    TRAINED,
    Model,
    fits,
    gap,
    loop_gradient,
    make_algorithm,
    make_episodes,
    make_meta,
    make_net,
    make_regression,
    model_id,
    one_by_one,
    pair_id,
    vmapped_gradient,
)

from metarun.types import Algorithm, EpisodeBatch, Meta, Net

TOLERANCE = 1e-9


FEW = [("batch", "batch"), ("group", "batch")]


def combinations() -> Iterator[Any]:
    """Every algorithm with the conv4 in all its settings, and in a few with every other model that fits."""
    for pair in PAIRS:
        name, model = pair
        for norm, statistics in product(NORMS, STATISTICS) if model == CONV4 else FEW:
            if fits(make_algorithm(name), make_net(model, norm, statistics)):
                yield pytest.param(name, model, norm, statistics, id=f"{pair_id(pair)}-{norm}-{statistics}")


def test_every_algorithm_and_every_model_takes_part() -> None:
    assert {name for name, _ in PAIRS} | set(REGRESSORS) == set(TRAINED)
    assert all(any(model == other for _, other in PAIRS) for model in MODELS)


@pytest.mark.parametrize(("name", "model", "norm", "statistics"), [*combinations()])
def test_vmapped_gradient_is_the_task_loops(
    name: str, model: Model, norm: str, statistics: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("combination", [name, model_id(model)])
    algorithm, net = make_algorithm(name), make_net(model, norm, statistics)
    agree(algorithm, net, make_episodes())


@pytest.mark.parametrize(("norm", "statistics"), FEW)
@pytest.mark.parametrize("name", REGRESSORS)
def test_vmapped_gradient_is_the_task_loops_in_regression(
    name: str, norm: str, statistics: str, record_property: Callable[[str, object], None]
) -> None:
    record_property("combination", [name, model_id(MLP)])
    agree(make_algorithm(name), make_net(MLP, norm, statistics), make_regression())


def agree(algorithm: Algorithm, net: Net, episodes: EpisodeBatch) -> None:
    """The engine's gradient and metrics are the task loop's, and everything has a gradient."""
    meta = make_meta(algorithm, net)
    ours, metrics, _ = vmapped_gradient(algorithm, net, meta, episodes)
    plain = loop_gradient(lambda task: algorithm.loss(net, meta, task).loss, meta, episodes)
    for w in plain:
        least = 1e-8 if w.startswith("algo.") else 1e-6  # rates' gradients are of second order
        assert plain[w].norm() > least, f"nothing moves {w}"
        assert gap(ours[w], plain[w]) < TOLERANCE, w
    means = [algorithm.loss(net, meta, task).metrics for task in one_by_one(episodes)]
    for metric, value in metrics.items():
        assert gap(value, torch.stack([m[metric] for m in means]).mean()) < TOLERANCE, metric


@pytest.mark.parametrize(("name", "model"), PAIRS, ids=[pair_id(pair) for pair in PAIRS])
def test_norm_statistics_are_those_of_the_meta_weights_on_each_whole_task(name: str, model: Model) -> None:
    algorithm, net = make_algorithm(name), make_net(model, "batch", "running")
    meta, episodes = make_meta(algorithm, net), make_episodes()
    _, _, ours = vmapped_gradient(algorithm, net, meta, episodes)
    assert ours.keys() == algorithm.fresh_running(net).keys() != set()
    assert not any(value.requires_grad for value in ours.values())
    for statistic in ours.keys() & net.fresh_running().keys():  # a method's own norms are its own tests' to hold
        each = [net.moments(meta, torch.cat([t.support_x, t.query_x]))[statistic] for t in one_by_one(episodes)]
        assert gap(ours[statistic], torch.stack(each).mean(0).detach()) < TOLERANCE, statistic


def directional(meta: Meta, seed: int) -> Meta:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in meta.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("statistics", ["batch", "support"])
def test_maml_gradient_is_the_slope_of_the_mean_task_loss(statistics: str, seed: int) -> None:
    algorithm, net = make_algorithm("maml"), make_net(statistics=statistics)
    meta, episodes = make_meta(algorithm, net), make_episodes()
    ours, _, _ = vmapped_gradient(algorithm, net, meta, episodes)
    direction, step = directional(meta, seed), 1e-6

    def loss_at(t: float) -> torch.Tensor:
        moved = {n: (w + t * direction[n]).detach() for n, w in meta.items()}
        return torch.stack([algorithm.loss(net, moved, task).loss for task in one_by_one(episodes)]).mean()

    slope = (loss_at(step) - loss_at(-step)) / (2 * step)
    along = torch.stack([(ours[n] * direction[n]).sum() for n in meta]).sum()
    assert gap(along, slope) < 1e-5
