"""Inner steps that are taken again for their gradient give the gradient of those that are kept.

Whatever method says that it can do so takes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from contract.small import (
    ALGORITHMS,
    CONV4,
    MLP,
    NORMS,
    REGRESSORS,
    fits,
    gap,
    make_algorithm,
    make_episodes,
    make_meta,
    make_net,
    make_regression,
    one_by_one,
    vmapped_gradient,
)
from torch import Tensor

from metarun.algorithms.inner import Given, GradientBased, descend, objective
from metarun.algorithms.recompute import recomputed
from metarun.engine.step import meta_gradient
from metarun.types import Algorithm, Episode, EpisodeBatch, Meta, Net

TOLERANCE = 1e-9


def can(name: str) -> bool:
    try:
        make_algorithm(name).recomputing()
    except ValueError:
        return False
    return True


UNROLLED = [name for name in ALGORITHMS if can(name)]


def test_the_methods_whose_gradient_goes_through_inner_steps_can() -> None:
    """Of the others a reptile's or a first-order gradient keeps nothing of the steps, and there is nothing to gain."""
    assert set(UNROLLED) == {
        "anil", "boil", "cavia", "maml", "mamlpp", "metacurvature", "metalstm", "metasgd", "protomaml"
    }  # fmt: skip
    for name, settings in (("fomaml", {}), ("reptile", {}), ("imaml", {}), ("r2d2", {}), ("protonet", {}), ("protomaml", {"first_order": True})):  # fmt: skip # noqa: E501
        with pytest.raises(ValueError, match="goes through no inner steps"):
            make_algorithm(name, **settings).recomputing()


def steps_taken_again(algorithm: Algorithm, net: Net, meta: Meta, task: Episode) -> int:
    """Parts of one task's graph that are to be computed again."""
    ahead: list[Any] = [algorithm.loss(net, meta, task).loss.grad_fn]
    seen = set(ahead)
    while ahead:
        new = {after for after, _ in ahead.pop().next_functions if after is not None} - seen
        seen |= new
        ahead += new
    return sum("_Again" in type(node).__name__ for node in seen)


def agree(algorithm: Algorithm, net: Net, episodes: EpisodeBatch) -> None:
    """Gradient, metrics and norm statistics, all tasks at once and in portions; and the steps really are not kept."""
    meta = make_meta(algorithm, net)
    again = algorithm.recomputing()
    task = next(one_by_one(episodes))
    assert steps_taken_again(algorithm, net, meta, task) == 0
    assert steps_taken_again(again, net, meta, task) == algorithm.inner_steps  # type: ignore[attr-defined]
    kept = vmapped_gradient(algorithm, net, meta, episodes)
    for chunk in (None, 2):
        for ours, theirs in zip(vmapped_gradient(again, net, meta, episodes, chunk), kept, strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                assert gap(ours[name], value) < TOLERANCE, name


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", UNROLLED)
def test_the_gradient_is_the_same(name: str, norm: str) -> None:
    algorithm, net = make_algorithm(name, inner_steps=3), make_net(CONV4, norm, "running")
    assert fits(algorithm, net)
    agree(algorithm, net, make_episodes())


@pytest.mark.parametrize("name", [name for name in UNROLLED if name in REGRESSORS])
def test_the_gradient_is_the_same_in_regression(name: str) -> None:
    agree(make_algorithm(name, inner_steps=2), make_net(MLP), make_regression())


@pytest.mark.parametrize("settings", [{"first_order_iterations": 9}, {"learn_rates": False}, {"per_step_norm": False}])
def test_the_gradient_is_the_same_with_every_part_of_mamlpp(settings: dict[str, Any]) -> None:
    algorithm = make_algorithm("mamlpp", inner_steps=3, **settings).at_step(3, 100)
    net, episodes = make_net(CONV4, "batch", "running"), make_episodes()
    meta = make_meta(algorithm, net)
    kept, again = (vmapped_gradient(each, net, meta, episodes) for each in (algorithm, algorithm.recomputing()))
    for ours, theirs in zip(again, kept, strict=True):
        assert all(gap(ours[name], value) < TOLERANCE for name, value in theirs.items() if value.norm() > 0)


def test_one_step_alone_is_kept() -> None:
    """It is what the gradient needs first: computing it again would save nothing."""
    again = make_algorithm("maml", inner_steps=1).recomputing()
    net = make_net(MLP)
    assert steps_taken_again(again, net, make_meta(again, net), next(one_by_one(make_episodes()))) == 0


def test_an_annealed_method_goes_on_recomputing() -> None:
    again = make_algorithm("mamlpp").recomputing()
    net, task = make_net(MLP), next(one_by_one(make_episodes()))
    assert steps_taken_again(again.at_step(0, 10_000), net, make_meta(again, net), task) == 2


@pytest.mark.parametrize("name", ["maml", "mamlpp"])
def test_dropout_drops_the_same_when_a_step_is_taken_again(name: str) -> None:
    algorithm, net = make_algorithm(name, inner_steps=3), replace(make_net(CONV4), dropout=0.3)
    meta, episodes = make_meta(algorithm, net), make_episodes()

    def gradient(algorithm: Algorithm, ticket: int = 7) -> tuple[Meta, Tensor]:
        for w in meta.values():
            w.grad = None
        metrics, _ = meta_gradient(algorithm, net, meta, episodes, first_ticket=ticket)
        return {n: w.grad.clone() for n, w in meta.items() if w.grad is not None}, metrics["loss"]

    (kept, loss), (again, same) = gradient(algorithm), gradient(algorithm.recomputing())
    assert gap(same, loss) < 1e-12, "the queries' own dropout, which comes after the steps', is the same as well"
    assert all(gap(again[n], kept[n]) < TOLERANCE for n in kept)
    assert gap(gradient(algorithm, 8)[1], loss) > 1e-3


def test_what_a_step_was_not_given_is_no_silent_zero() -> None:
    class Careless(GradientBased):
        def adapt(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Iterator[Meta]:
            def loss(given: Given, fast: Meta) -> Tensor:  # reads `meta`, which is not `given.meta` here
                decay = torch.stack([(fast[n] - w).square().sum() for n, w in meta.items()]).sum()
                return objective(net(fast, episode.support_x), episode.support_y) + decay

            return descend(loss, Given(net, {}, episode), meta, 0.1, steps, self.recompute)

    net = make_net(MLP)
    careless = Careless(inner_steps=2)
    meta = make_meta(careless, net)
    vmapped_gradient(careless, net, meta, make_episodes())
    with pytest.raises(RuntimeError, match="was not given"):
        vmapped_gradient(careless.recomputing(), net, meta, make_episodes())


def test_second_derivatives_are_refused() -> None:
    w = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(recomputed(lambda net, w: w**3, make_net(MLP), w), w)
    assert float(slope) == 12
    with pytest.raises(RuntimeError, match="first order only"):
        torch.autograd.grad(recomputed(lambda net, w: w**3, make_net(MLP), w), w, create_graph=True)
