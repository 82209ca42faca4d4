"""Every algorithm against its slow, obvious version: torch.nn.functional and torch.autograd, one task at a time.

Nothing of the references is metarun's: not the network, not the norm, not the inner loop.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from algorithms.plain import TOLERANCE, classify, embed, leaves, parts, same_gradient, slopes
from contract.small import (
    TASKS,
    WAY,
    gap,
    make_episodes,
    one_by_one,
    vmapped_gradient,
)
from torch import Tensor

from metarun.types import Episode, Meta


def descended(w: Meta, task: Episode, lr: float, steps: int) -> Meta:
    for _ in range(steps):
        slope = slopes(F.cross_entropy(classify(w, task.support_x), task.support_y), w)
        w = {n: v - lr * slope[n] for n, v in w.items()}
    return w


# MAML and its kin


@pytest.mark.parametrize("steps", [1, 3])
def test_maml_is_differentiated_through_its_inner_steps(steps: int) -> None:
    algorithm, net, meta = parts("maml", inner_steps=steps, inner_lr=0.3)
    same_gradient(
        algorithm,
        net,
        meta,
        make_episodes(),
        lambda task: F.cross_entropy(classify(descended(meta, task, 0.3, steps), task.query_x), task.query_y),
    )


@pytest.mark.parametrize("steps", [1, 3])
def test_maml_is_what_the_library_higher_makes_of_it(steps: int) -> None:
    higher = pytest.importorskip("higher", reason="higher is not installed: pip install 'metarun[bench]'")
    algorithm, net, meta = parts("maml", inner_steps=steps, inner_lr=0.3)
    episodes = make_episodes()
    module = as_module(meta)
    inner = torch.optim.SGD(module.parameters(), lr=0.3)
    for task in one_by_one(episodes):
        with higher.innerloop_ctx(module, inner, copy_initial_weights=False) as (fast, optimizer):
            for _ in range(steps):
                optimizer.step(F.cross_entropy(fast(task.support_x), task.support_y))
            (F.cross_entropy(fast(task.query_x), task.query_y) / TASKS).backward()
    ours, _, _ = vmapped_gradient(algorithm, net, meta, episodes)
    for n, p in zip(meta, module.parameters(), strict=True):
        assert gap(ours[n], p.grad) < TOLERANCE, n


def as_module(meta: Meta) -> torch.nn.Module:
    """`small.CONV4` as torch has it, with these weights."""
    nn = torch.nn
    blocks: list[nn.Module] = []
    for i in range(2):
        out, inputs = meta[f"conv{i}.weight"].shape[:2]
        conv = nn.Conv2d(inputs, out, 3, stride=2, padding=1, bias=False)
        blocks += [conv, nn.BatchNorm2d(out, track_running_stats=False), nn.ReLU()]
    module = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(meta["head.weight"].shape[1], WAY)).double()
    with torch.no_grad():
        for p, w in zip(module.parameters(), meta.values(), strict=True):
            p.copy_(w)
    return module


@pytest.mark.parametrize("steps", [1, 3])
def test_first_order_maml_is_the_gradient_at_the_adapted_weights(steps: int) -> None:
    algorithm, net, meta = parts("fomaml", inner_steps=steps, inner_lr=0.3)
    episodes = make_episodes()
    ours, _, _ = vmapped_gradient(algorithm, net, meta, episodes)
    each = []
    for task in one_by_one(episodes):
        adapted = leaves(descended(meta, task, 0.3, steps))
        each.append(slopes(F.cross_entropy(classify(adapted, task.query_x), task.query_y), adapted))
    for n in meta:
        assert gap(ours[n], torch.stack([slope[n] for slope in each]).mean(0)) < TOLERANCE, n


def test_first_order_maml_leaves_the_second_order_out() -> None:
    first, second = (
        vmapped_gradient(*parts(name, inner_steps=2, inner_lr=0.3), make_episodes())[0] for name in ("fomaml", "maml")
    )
    assert max(gap(first[n], second[n]) for n in first) > 0.05


def descended_head(w: Meta, task: Episode, lr: float, steps: int) -> Meta:
    head = {n: v for n, v in w.items() if n.startswith("head.")}
    for _ in range(steps):
        slope = slopes(F.cross_entropy(classify(w | head, task.support_x), task.support_y), head)
        head = {n: v - lr * slope[n] for n, v in head.items()}
    return w | head


@pytest.mark.parametrize("steps", [1, 3])
def test_anil_adapts_its_head_and_is_differentiated_through_it(steps: int) -> None:
    algorithm, net, meta = parts("anil", inner_steps=steps, inner_lr=0.3)
    same_gradient(
        algorithm,
        net,
        meta,
        make_episodes(),
        lambda task: F.cross_entropy(classify(descended_head(meta, task, 0.3, steps), task.query_x), task.query_y),
    )


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize(("name", "adapted"), [("maml", descended), ("fomaml", descended), ("anil", descended_head)])
def test_prediction_takes_the_steps_of_test_time(name: str, adapted: Any, steps: int) -> None:
    algorithm, net, meta = parts(name, inner_steps=2, eval_steps=steps, inner_lr=0.3)
    for task in one_by_one(make_episodes()):
        with torch.no_grad():
            ours = algorithm.predict(net, meta, task)
        assert gap(ours, classify(adapted(meta, task, 0.3, steps), task.query_x)) < TOLERANCE


# Reptile


def adam_without_momentum(w: Meta, x: Tensor, y: Tensor, lr: float, steps: int, batch: int) -> Meta:
    w = leaves(w)
    optimizer = torch.optim.Adam(w.values(), lr=lr, betas=(0.0, 0.999), eps=1e-8)
    order = list(range(len(x))) * steps
    for step in range(steps):
        rows = order[step * batch : (step + 1) * batch]
        optimizer.zero_grad()
        F.cross_entropy(classify(w, x[rows]), y[rows]).backward()
        optimizer.step()
    return {n: v.detach() for n, v in w.items()}


@pytest.mark.parametrize(("steps", "batch"), [(1, 12), (3, 5), (4, 100)])
def test_reptiles_gradient_is_the_way_back_from_the_adapted_weights(steps: int, batch: int) -> None:
    """Support and queries together are 12 examples: batches of 5 go round, 100 are all there is."""
    algorithm, net, meta = parts("reptile", inner_steps=steps, inner_batch=batch, inner_lr=0.01)
    episodes = make_episodes()
    ours, _, _ = vmapped_gradient(algorithm, net, meta, episodes)
    ends = []
    for task in one_by_one(episodes):
        x, y = torch.cat([task.support_x, task.query_x]), torch.cat([task.support_y, task.query_y])
        ends.append(adam_without_momentum(meta, x, y, 0.01, steps, min(batch, 12)))
    for n, w in meta.items():
        back = w.detach() - torch.stack([end[n] for end in ends]).mean(0)
        assert back.norm() > 1e-4
        assert gap(ours[n], back) < 1e-6, n  # Adam's own rounding, magnified by its division


def test_reptiles_loss_is_half_the_square_of_its_gradient() -> None:
    algorithm, net, meta = parts("reptile", inner_lr=0.01)
    episodes = make_episodes(tasks=1)
    ours, _, _ = vmapped_gradient(algorithm, net, meta, episodes)
    (task,) = one_by_one(episodes)
    half = 0.5 * torch.stack([slope.square().sum() for slope in ours.values()]).sum()
    assert gap(algorithm.loss(net, meta, task).loss, half) < 1e-12


def test_reptile_predicts_with_weights_trained_on_the_support_set_alone() -> None:
    algorithm, net, meta = parts("reptile", eval_steps=5, inner_batch=4, inner_lr=0.01)
    for task in one_by_one(make_episodes()):
        adapted = adam_without_momentum(meta, task.support_x, task.support_y, 0.01, 5, 4)
        with torch.no_grad():
            ours = algorithm.predict(net, meta, task)
        assert gap(ours, classify(adapted, task.query_x)) < 1e-6


# Prototypical network


def distances(w: Meta, task: Episode) -> Tensor:
    """(query, way) minus the squared distance of each query to each class mean, one at a time."""
    features = embed(w, torch.cat([task.support_x, task.query_x]))
    support, query = features[: len(task.support_x)], features[len(task.support_x) :]
    means = [support[task.support_y == c].mean(0) for c in range(WAY)]
    return torch.stack([torch.stack([-((q - mean) ** 2).sum() for mean in means]) for q in query])


def test_protonets_logits_are_distances_to_the_class_means() -> None:
    algorithm, net, meta = parts("protonet")
    for task in one_by_one(make_episodes()):
        assert gap(algorithm.predict(net, meta, task), distances(meta, task)) < TOLERANCE
    same_gradient(
        algorithm, net, meta, make_episodes(), lambda task: F.cross_entropy(distances(meta, task), task.query_y)
    )


def test_protonet_has_no_head_and_takes_no_steps() -> None:
    algorithm, _, meta = parts("protonet")
    assert not [n for n in meta if n.startswith("head")]
    assert algorithm.eval_steps == 0


# What is reported


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "protonet"])
def test_reported_accuracy_is_of_the_queries_after_adaptation(name: str) -> None:
    algorithm, net, meta = parts(name)
    episodes = make_episodes(tasks=12, query=4)
    _, metrics, _ = vmapped_gradient(algorithm, net, meta, episodes)
    right = [algorithm.predict(net, meta, task).argmax(1) == task.query_y for task in one_by_one(episodes)]
    assert metrics["accuracy"] == pytest.approx(float(torch.cat(right).double().mean()), abs=1e-12)
