"""The engine's gradient is the gradient: all tasks under vmap give what one task after another gives.

Whatever algorithm and model is registered takes part. What is to be held fixed is `small.py`'s; there is no list here.
"""

from __future__ import annotations

import pytest
import torch
from contract.small import (
    ALGORITHMS,
    MODELS,
    NORMS,
    STATISTICS,
    Model,
    gap,
    loop_gradient,
    make_algorithm,
    make_episodes,
    make_meta,
    make_net,
    model_id,
    one_by_one,
    vmapped_gradient,
)

from metarun.types import Meta

TOLERANCE = 1e-9


@pytest.mark.parametrize("statistics", STATISTICS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("model", MODELS, ids=model_id)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_vmapped_gradient_is_the_task_loops(name: str, model: Model, norm: str, statistics: str) -> None:
    algorithm, net = make_algorithm(name), make_net(model, norm, statistics)
    meta, episodes = make_meta(algorithm, net), make_episodes()
    ours, metrics, _ = vmapped_gradient(algorithm, net, meta, episodes)
    plain = loop_gradient(lambda task: algorithm.loss(net, meta, task).loss, meta, episodes)
    for w in plain:
        assert plain[w].norm() > 1e-6, f"nothing moves {w}"
        assert gap(ours[w], plain[w]) < TOLERANCE, w
    means = [algorithm.loss(net, meta, task).metrics for task in one_by_one(episodes)]
    for metric, value in metrics.items():
        assert gap(value, torch.stack([m[metric] for m in means]).mean()) < TOLERANCE, metric


@pytest.mark.parametrize("model", MODELS, ids=model_id)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_norm_statistics_are_those_of_the_meta_weights_on_each_whole_task(name: str, model: Model) -> None:
    algorithm, net = make_algorithm(name), make_net(model, "batch", "running")
    meta, episodes = make_meta(algorithm, net), make_episodes()
    _, _, ours = vmapped_gradient(algorithm, net, meta, episodes)
    each = [net.moments(meta, torch.cat([task.support_x, task.query_x])) for task in one_by_one(episodes)]
    assert ours.keys() == net.fresh_running().keys() != set()
    for statistic, value in ours.items():
        assert not value.requires_grad
        assert gap(value, torch.stack([m[statistic] for m in each]).mean(0).detach()) < TOLERANCE, statistic


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
