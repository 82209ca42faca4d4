"""Dropout that is a pure function of its ticket: the right numbers of elements, never by accident the same ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import sqrt
from typing import Any

import pytest
import torch
from contract.small import (
    ALGORITHMS,
    gap,
    make_algorithm,
    make_episodes,
    make_meta,
    make_net,
    model_id,
    one_by_one,
)
from torch import Tensor
from torch.func import grad, vmap

from metarun.engine.step import meta_gradient
from metarun.noise import Noise
from metarun.types import Meta

TICKET = torch.tensor(2**40 + 5)
RANDOM = [
    ("conv4", {"filters": 8, "blocks": 2, "dropout": 0.3}),
    ("mlp", {"widths": [12, 8], "dropout": 0.3}),
    ("conv_r2d2", {"filters": [8, 8, 8], "dropout": 0.3}),
    ("resnet12", {"widths": [8, 8, 8], "dropout": 0.3, "dropblock": 0.2, "dropblock_size": 2}),
    ("resnet18", {"widths": [8, 8], "blocks": [1, 1], "stem": "small", "dropout": 0.3}),
    ("wrn28_10", {"depth": 10, "widen": 1, "base": 8, "dropout": 0.3}),
]
every_random = pytest.mark.parametrize("model", RANDOM, ids=model_id)


def masks(ticket: Tensor, count: int, size: int = 4096, rate: float = 0.5) -> list[Tensor]:
    noise = Noise(ticket)
    return [noise.keep((size,), rate) for _ in range(count)]


def agreement(a: Tensor, b: Tensor) -> float:
    return float((a == b).double().mean())


# Masks


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_the_fraction_dropped_is_the_rate(rate: float) -> None:
    size = 10**6
    dropped = 1 - float(Noise(TICKET).keep((size,), rate).double().mean())
    assert abs(dropped - rate) < 4 * sqrt(rate * (1 - rate) / size)


def test_rate_0_keeps_everything_and_leaves_x_as_it_is() -> None:
    x = torch.randn(5, 3)
    assert Noise(TICKET).keep((1000,), 0.0).all()
    assert Noise(TICKET).dropout(x, 0.0) is x


def test_elements_are_independent_of_their_neighbours() -> None:
    """At rate 1/2 two neighbours agree half the time: along each axis, and for bits a power of 2 apart."""
    keep = Noise(TICKET).keep((64, 64, 64), 0.5)
    for axis in range(3):
        assert abs(agreement(keep.diff(dim=axis), torch.zeros(1, dtype=torch.bool)) - 0.5) < 0.005
    flat = keep.flatten()
    for lag in (2, 64, 128, 4096):
        assert abs(agreement(flat[lag:], flat[:-lag]) - 0.5) < 0.005


def test_kept_elements_are_scaled_so_that_the_mean_stays() -> None:
    x = torch.ones(1000, 1000, dtype=torch.float64)
    y = Noise(TICKET).dropout(x, 0.2)
    assert set(y.unique().tolist()) == {0.0, 1 / 0.8}
    assert float(y.mean()) == pytest.approx(1, abs=0.002)


def test_draws_steps_and_tasks_each_have_a_mask_of_their_own() -> None:
    """Neighbouring tickets (tasks of a step, and steps) and the draws of one ticket agree by chance only."""
    several = [mask for ticket in range(4) for mask in masks(TICKET + ticket, 4)]
    for i, a in enumerate(several):
        for b in several[:i]:
            assert abs(agreement(a, b) - 0.5) < 5 * 0.5 / sqrt(4096)
            assert abs(agreement(a[1:], b[:-1]) - 0.5) < 5 * 0.5 / sqrt(4096)


def test_the_same_ticket_has_the_same_masks() -> None:
    assert all(torch.equal(a, b) for a, b in zip(masks(TICKET, 5), masks(TICKET.clone(), 5)))


def splitmix(x: int) -> int:
    """Steele, Lea & Flood 2014 in Python's integers"""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_masks_are_splitmix64_of_ticket_draw_and_element() -> None:
    """A run that is resumed with another version goes on to the same bits: the masks are part of the format."""
    for ticket in (7, -(2**62)):
        for draw, mask in enumerate(masks(torch.tensor(ticket), 3, size=200, rate=0.3), start=1):
            start = splitmix(splitmix(ticket % 2**64) + draw)
            bits = [splitmix(start + i) for i in range(200)]
            signed = [b - 2**64 if b >= 2**63 else b for b in bits]
            assert mask.tolist() == [b >= 0.3 * 2**64 - 2**63 for b in signed]


def test_no_global_generator_is_read() -> None:
    state = torch.get_rng_state()
    masks(TICKET, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_task_under_vmap_has_the_mask_of_its_ticket() -> None:
    tickets = torch.arange(5) + TICKET
    x = torch.randn(5, 20, 3, dtype=torch.float64)
    together = vmap(lambda x, ticket: Noise(ticket).dropout(x, 0.4))(x, tickets)
    alone = torch.stack([Noise(ticket).dropout(xi, 0.4) for xi, ticket in zip(x, tickets)])
    assert torch.equal(together, alone)
    assert len({tuple(row.eq(0).flatten().tolist()) for row in together}) == 5


def test_the_second_derivative_through_a_mask_is_the_loops() -> None:
    tickets, x = torch.arange(3) + TICKET, torch.randn(3, 20, dtype=torch.float64)

    def adapted(w: Tensor, x: Tensor, ticket: Tensor) -> Tensor:
        noise = Noise(ticket)
        w = w - 0.3 * grad(lambda v: noise.dropout((x * v).sin(), 0.4).sum())(w)
        return noise.dropout((x * w).cos(), 0.4).sum()

    w = torch.randn(20, dtype=torch.float64)
    together = grad(lambda w: vmap(lambda x, ticket: adapted(w, x, ticket))(x, tickets).sum())(w)
    plain = w.clone().requires_grad_()
    torch.stack([adapted(plain, xi, ticket) for xi, ticket in zip(x, tickets)]).sum().backward()
    torch.testing.assert_close(together, plain.grad)


# DropBlock


def slow_dropblock(x: Tensor, keep: Tensor, size: int) -> Tensor:
    """Ghiasi et al. 2018, algorithm 1, square by square."""
    mask = torch.ones_like(x)
    for n, c, i, j in (~keep).nonzero().tolist():
        mask[n, c, i : i + size, j : j + size] = 0
    return x * mask * mask.numel() / mask.sum()


@pytest.mark.parametrize(("side", "size"), [((10, 10), 5), ((7, 9), 2), ((5, 5), 5), ((6, 6), 1)])
def test_dropblock_is_its_definition(side: tuple[int, int], size: int) -> None:
    x = torch.rand(4, 3, *side, dtype=torch.float64) + 1
    places = (4, 3, side[0] - size + 1, side[1] - size + 1)
    gamma = 0.1 / size**2 * side[0] * side[1] / (places[2] * places[3])
    keep = Noise(TICKET).keep(places, gamma)
    assert 0 < (~keep).sum() < keep.numel()
    ours = Noise(TICKET).dropblock(x, 0.1, size)
    torch.testing.assert_close(ours, slow_dropblock(x, keep, size))
    assert float(ours.eq(0).double().mean()) > 0.01


def test_dropblock_drops_about_its_rate_in_whole_squares() -> None:
    x = torch.ones(64, 32, 10, 10)
    dropped = Noise(TICKET).dropblock(x, 0.1, 5) == 0
    # Squares overlap, and the middle lies in more of them than the border: not quite the rate.
    assert 0.08 < float(dropped.double().mean()) < 0.1
    inside = torch.nn.functional.avg_pool2d(dropped.float(), 5, stride=1).eq(1)  # where a whole square starts
    covered = torch.nn.functional.max_pool2d(torch.nn.functional.pad(inside.float(), (4, 4, 4, 4)), 5, stride=1)
    assert torch.equal(covered.bool(), dropped)


def test_a_square_is_no_larger_than_the_map_and_an_empty_map_is_no_division_by_zero() -> None:
    x = torch.ones(200, 1, 3, 2)
    y = Noise(TICKET).dropblock(x, 0.5, 5)
    assert set(y.eq(0).flatten(1).sum(1).tolist()) == {0, 6}
    for ticket in range(8):
        assert Noise(torch.tensor(ticket)).dropblock(torch.ones(1, 1, 2, 2), 0.9, 2).isfinite().all()


# Networks


def network(model: Any, **kwargs: Any) -> tuple[Any, Meta, Tensor]:
    net = make_net(model, **kwargs)
    meta = {n: w.double() for n, w in net.init(torch.Generator().manual_seed(0)).items()}
    return net, meta, torch.rand((6, *net.item_shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@every_random
def test_a_net_that_trains_drops_and_one_that_tests_does_not(model: Any) -> None:
    net, meta, x = network(model)
    plain = make_net((model[0], model[1] | {name: 0.0 for name in model[1] if name in ("dropout", "dropblock")}))
    training = net.at_train({}, TICKET)
    assert gap(training(meta, x), plain(meta, x)) > 0.01
    assert torch.equal(net(meta, x), plain(meta, x))
    assert torch.equal(net.at_test({})(meta, x), plain(meta, x))
    assert plain.at_train({}, TICKET) is plain


@every_random
def test_a_net_draws_afresh_in_every_pass_layer_step_and_task_and_the_same_again_from_the_same_ticket(
    model: Any,
) -> None:
    net, meta, x = network(model)
    one = net.at_train({}, TICKET)
    passes = [one(meta, x) for _ in range(3)]
    again = net.at_train({}, TICKET.clone())
    assert all(torch.equal(a, again(meta, x)) for a in passes)
    other = net.at_train({}, TICKET + 1)(meta, x)
    for a, b in pairwise([*passes, other]):
        assert gap(a, b) > 1e-3


def test_the_layers_of_one_pass_drop_different_elements() -> None:
    seen = []

    class Spy(Noise):
        def keep(self, shape: tuple[int, ...], rate: float) -> Tensor:
            seen.append(super().keep((500,), rate))
            return super().keep(shape, rate)

    net, meta, x = network(RANDOM[0])
    replace(net, noise=Spy(TICKET))(meta, x)
    assert len(seen) == 2
    assert agreement(*seen) < 0.8


@pytest.mark.parametrize("name", [n for n in ("maml", "protonet", "reptile") if n in ALGORITHMS])
@every_random
def test_the_engines_gradient_with_dropout_is_the_task_loops(model: Any, name: str) -> None:
    steps: dict[str, Any] = {} if name == "protonet" else {"inner_steps": 1}
    algorithm, net = make_algorithm(name, **steps), make_net(model, statistics="running")
    meta, episodes = make_meta(algorithm, net), make_episodes()
    first = 1234

    def through_engine(chunk: int | None) -> tuple[Meta, Any, Meta]:
        for w in meta.values():
            w.grad = None
        metrics, moments = meta_gradient(algorithm, net, meta, episodes, chunk, first_ticket=first)
        return {n: w.grad.clone() for n, w in meta.items() if w.grad is not None}, metrics, moments

    ours, metrics, moments = through_engine(None)
    losses = []
    for i, task in enumerate(one_by_one(episodes)):
        training = net.at_train({}, torch.tensor(first + i))
        losses.append(algorithm.loss(training, meta, task).loss)
    plain = dict(zip(meta, torch.autograd.grad(torch.stack(losses).mean(), list(meta.values()))))
    for w in plain:
        assert gap(ours[w], plain[w]) < 1e-9, w
    in_chunks = through_engine(2)
    for w in plain:
        assert gap(in_chunks[0][w], ours[w]) < 1e-11, w
    assert gap(in_chunks[1]["loss"], metrics["loss"]) < 1e-11
    assert all(gap(in_chunks[2][n], moments[n]) < 1e-11 for n in moments)

    def of_first_task(ticket: int) -> tuple[Tensor, ...]:
        loss = algorithm.loss(net.at_train({}, torch.tensor(ticket)), meta, next(one_by_one(episodes))).loss
        return torch.autograd.grad(loss, list(meta.values()))

    assert max(gap(a, b) for a, b in zip(of_first_task(first + 3), of_first_task(first))) > 1e-3
