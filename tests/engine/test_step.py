"""One meta-update: what it adds up, in whatever portions, and what it moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract.small import (
    ALGORITHMS,
    MLP,
    gap,
    make_algorithm,
    make_episodes,
    make_meta,
    make_net,
    one_by_one,
    vmapped_gradient,
)
from torch import Tensor

from metarun.engine.state import TrainState
from metarun.engine.step import Ticketed, add_penalty, in_chunks, train_step
from metarun.types import Meta

TASKS = 5


def make_state(name: str, lr: float = 0.1, statistics: str = "batch") -> tuple[Any, Any, TrainState]:
    algorithm, net = make_algorithm(name), make_net(MLP, statistics=statistics)
    meta = make_meta(algorithm, net)
    running = {n: v.double() for n, v in net.fresh_running().items()}
    return algorithm, net, TrainState(meta, torch.optim.SGD(meta.values(), lr=lr), running=running)


def copy(meta: Meta) -> Meta:
    return {n: w.detach().clone() for n, w in meta.items()}


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 7])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_portions_of_the_meta_batch_change_nothing(name: str, chunk: int) -> None:
    algorithm, net = make_algorithm(name), make_net(statistics="running")
    meta, episodes = make_meta(algorithm, net), make_episodes(TASKS)
    whole = vmapped_gradient(algorithm, net, meta, episodes)
    parts = vmapped_gradient(algorithm, net, meta, episodes, chunk)
    for all_at_once, in_parts in zip(whole, parts):
        assert all_at_once.keys() == in_parts.keys()
        for key, value in all_at_once.items():
            assert gap(in_parts[key], value) < 1e-12, key


@pytest.mark.parametrize(("chunk", "sizes"), [(None, [5]), (1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_chunks_are_the_same_tasks_in_the_same_order(chunk: int | None, sizes: list[int]) -> None:
    episodes = make_episodes(TASKS)
    parts = list(in_chunks(Ticketed(episodes, torch.arange(TASKS)), chunk))
    assert [len(part.ticket) for part in parts] == sizes
    assert torch.cat([part.ticket for part in parts]).tolist() == list(range(TASKS))
    for fields, field in zip(zip(*(part.episode for part in parts)), episodes):
        assert torch.equal(torch.cat(fields), field)


def test_each_step_follows_its_own_gradient_only() -> None:
    algorithm, net, state = make_state("maml", lr=0.1)
    for step in range(3):
        episodes = make_episodes(seed=step)
        before = copy(state.meta)
        slope, _, _ = vmapped_gradient(
            algorithm, net, {n: w.requires_grad_() for n, w in copy(before).items()}, episodes
        )
        train_step(algorithm, net, state, episodes, None, None)
        for n, w in state.meta.items():
            assert gap(w, before[n] - 0.1 * slope[n]) < 1e-12, n
    assert state.step == 3


def test_a_large_gradient_is_shortened_to_the_clip_and_keeps_its_direction() -> None:
    free, clipped = [], []
    for moves, clip in ((free, None), (clipped, 0.01)):
        algorithm, net, state = make_state("maml", lr=1.0)
        before = copy(state.meta)
        train_step(algorithm, net, state, make_episodes(), None, clip)
        moves.append(torch.cat([(w.detach() - before[n]).flatten() for n, w in state.meta.items()]))
    assert free[0].norm() > 0.02
    assert abs(clipped[0].norm() - 0.01) < 1e-6
    assert torch.cosine_similarity(free[0], clipped[0], dim=0) > 1 - 1e-9


def test_a_small_gradient_is_not_clipped() -> None:
    ends = []
    for clip in (None, 1e6):
        algorithm, net, state = make_state("maml")
        train_step(algorithm, net, state, make_episodes(), None, clip)
        ends.append(copy(state.meta))
    assert all(torch.equal(ends[0][n], ends[1][n]) for n in ends[0])


def mlp_moments(meta: Meta, x: Tensor) -> Meta:
    """Mean and (population) variance before each norm of a batch-normed MLP, written out."""
    moments: Meta = {}
    x = x.flatten(1)
    for i in range(len(MLP[1]["widths"])):
        x = x @ meta[f"linear{i}.weight"].T
        mean, var = x.mean(0), x.var(0, correction=0)
        moments |= {f"norm{i}.mean": mean, f"norm{i}.var": var}
        x = F.relu((x - mean) / (var + 1e-5).sqrt() * meta[f"norm{i}.weight"] + meta[f"norm{i}.bias"])
    return moments


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_moving_averages_after_many_steps_are_those_of_a_plain_loop(name: str, chunk: int | None) -> None:
    algorithm, net, state = make_state(name, lr=0.5, statistics="running")
    expected = {n: torch.zeros_like(v) if n.endswith("mean") else torch.ones_like(v) for n, v in state.running.items()}
    for step in range(12):
        episodes = make_episodes(seed=step)
        tasks = [torch.cat([task.support_x, task.query_x]) for task in one_by_one(episodes)]
        seen = [mlp_moments(copy(state.meta), x) for x in tasks]
        expected = {n: 0.9 * v + 0.1 * torch.stack([m[n] for m in seen]).mean(0) for n, v in expected.items()}
        train_step(algorithm, net, state, episodes, chunk, None)
    assert state.running.keys() == expected.keys()
    for n, value in state.running.items():
        assert gap(value, expected[n]) < 1e-12, n


def test_penalties_add_their_gradient_over_kernels_and_matrices() -> None:
    """l1 * sum |w| + l2 * sum w^2, by plain autograd; biases, norms and the method's own parameters are left out."""
    plain, penalised = (make_state("maml", lr=0.1) for _ in range(2))
    own = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    episodes = make_episodes()
    before = copy(plain[2].meta)
    train_step(*plain, episodes)
    train_step(*penalised, episodes, penalty=(0.02, 0.3))
    moved = [name for name in before if not torch.equal(plain[2].meta[name], penalised[2].meta[name])]
    assert moved == [name for name, w in before.items() if w.dim() > 1] != []
    for name in moved:
        w = before[name].clone().requires_grad_()
        (slope,) = torch.autograd.grad(0.02 * w.abs().sum() + 0.3 * w.square().sum(), w)
        assert gap(plain[2].meta[name] - penalised[2].meta[name], 0.1 * slope) < 1e-9
    own.grad = torch.zeros_like(own)
    add_penalty({"algo.rate.linear0.weight": own}, 1.0, 1.0)
    assert not own.grad.any()


def test_a_net_without_moving_averages_gets_none() -> None:
    algorithm, net, state = make_state("protonet", statistics="batch")
    train_step(algorithm, net, state, make_episodes(), None, None)
    assert state.running == {}
