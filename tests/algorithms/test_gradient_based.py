"""MAML's kin against their slow, obvious versions: torch.nn.functional and torch.autograd, one task at a time.

Nothing of the references is metarun's. Every method meets tasks with classes (a Conv4 with batch norm) and regression
(an MLP without norm).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from algorithms.plain import TOLERANCE, classify, fully_connected, leaves, same_gradient, slopes
from contract.small import (
    CONV4,
    gap,
    loop_gradient,
    make_algorithm,
    make_episodes,
    make_meta,
    make_net,
    one_by_one,
    vmapped_gradient,
)
from torch import Generator, Tensor

from metarun.algorithms.imaml import conjugate_gradient
from metarun.config import known
from metarun.engine.state import TrainState
from metarun.engine.step import MOMENTUM, train_step
from metarun.types import Episode, EpisodeBatch, Meta

NAMES = ("boil", "metasgd", "metacurvature", "mamlpp", "imaml")
KINDS = ("classes", "regression")


# The networks and inner loops of the references


@dataclass(frozen=True)
class Problem:
    """Tasks, metarun's network for them and the same as a plain function, and their loss."""

    net: Any
    episodes: EpisodeBatch
    answer: Callable[..., Tensor]
    error: Callable[[Tensor, Tensor], Tensor]

    def support_loss(self, w: Meta, task: Episode) -> Tensor:
        return self.error(self.answer(w, task.support_x), task.support_y)

    def query_loss(self, w: Meta, task: Episode) -> Tensor:
        return self.error(self.answer(w, task.query_x), task.query_y)


def problem(kind: str, statistics: str = "batch") -> Problem:
    if kind == "classes":
        return Problem(make_net(CONV4, statistics=statistics), make_episodes(), classify, F.cross_entropy)
    net = known("model")["mlp"](item_shape=(1,), outputs=1, widths=[6, 5], norm="none")
    generator = Generator().manual_seed(4)
    x = 4 * torch.rand((3, 9, 1), generator=generator, dtype=torch.float64) - 2
    y = torch.sin(2 * x + torch.rand((3, 1, 1), generator=generator, dtype=torch.float64))
    return Problem(net, EpisodeBatch(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:]), fully_connected, F.mse_loss)


def network_weights(meta: Meta) -> Meta:
    return {n: w for n, w in meta.items() if not n.startswith("algo.")}


def adapted_by(name: str, of: Problem, meta: Meta, task: Episode, lr: float, steps: int) -> Meta:
    w = network_weights(meta)
    for _ in range(steps):
        slope = slopes(of.support_loss(w, task), w)
        w = {n: v - moved(name, meta, n, slope[n], lr) for n, v in w.items()}
    return w


def moved(name: str, meta: Meta, n: str, slope: Tensor, lr: float) -> Tensor:
    """What one inner step takes from one of the weights."""
    if name == "boil":
        return 0 * slope if n in ("head.weight", "head.bias") else lr * slope
    if name == "metasgd":
        return meta[f"algo.rate.{n}"] * slope
    out = meta[f"algo.curvature.out.{n}"]
    whole = torch.diag(out) if slope.dim() == 1 else torch.kron(out, meta[f"algo.curvature.in.{n}"])
    if slope.dim() == 4:
        whole = torch.kron(whole, meta[f"algo.curvature.kernel.{n}"])
    return lr * (whole @ slope.flatten()).view(slope.shape)


# BOIL, Meta-SGD, meta-curvature


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["boil", "metasgd", "metacurvature"])
def test_it_is_differentiated_through_its_inner_steps(name: str, steps: int, kind: str) -> None:
    of, algorithm = problem(kind), make_algorithm(name, inner_steps=steps, inner_lr=0.3)
    meta = make_meta(algorithm, of.net)
    same_gradient(
        algorithm,
        of.net,
        meta,
        of.episodes,
        lambda task: of.query_loss(adapted_by(name, of, meta, task, 0.3, steps), task),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("name", ["boil", "metasgd", "metacurvature"])
def test_prediction_takes_the_steps_of_test_time(name: str, steps: int, kind: str) -> None:
    of, algorithm = problem(kind), make_algorithm(name, inner_steps=2, eval_steps=steps, inner_lr=0.3)
    meta = make_meta(algorithm, of.net)
    for task in one_by_one(of.episodes):
        with torch.no_grad():
            ours = algorithm.predict(of.net, meta, task)
        assert gap(ours, of.answer(adapted_by(name, of, meta, task, 0.3, steps), task.query_x)) < TOLERANCE


@pytest.mark.parametrize("name", ["metasgd", "metacurvature"])
def test_it_starts_as_maml(name: str) -> None:
    of = problem("classes")
    algorithm, maml = (make_algorithm(n, inner_lr=0.3) for n in (name, "maml"))
    meta = {n: w.double().requires_grad_() for n, w in algorithm.init(of.net, Generator().manual_seed(0)).items()}
    weights = network_weights(meta)
    assert weights.keys() == maml.init(of.net, Generator()).keys()
    ours, _, _ = vmapped_gradient(algorithm, of.net, meta, of.episodes)
    theirs, _, _ = vmapped_gradient(maml, of.net, weights, of.episodes)
    for n in weights:
        assert gap(ours[n], theirs[n]) < 1e-6, n  # the rate 0.3 was a float32


def test_meta_sgd_has_a_rate_for_every_single_weight() -> None:
    net = problem("classes").net
    meta = make_algorithm("metasgd", inner_lr=0.25).init(net, Generator())
    for n, w in network_weights(meta).items():
        assert torch.equal(meta[f"algo.rate.{n}"], torch.full(w.shape, 0.25))


def test_meta_curvature_has_a_matrix_for_each_dimension() -> None:
    meta = make_algorithm("metacurvature").init(problem("classes").net, Generator())
    sizes = {n: tuple(m.shape) for n, m in meta.items() if "conv1" in n or "head" in n or "norm0.bias" in n}
    assert sizes == {
        "conv1.weight": (8, 8, 3, 3),
        "norm0.bias": (8,),
        "head.weight": (3, 32),
        "head.bias": (3,),
        "algo.curvature.out.conv1.weight": (8, 8),
        "algo.curvature.in.conv1.weight": (8, 8),
        "algo.curvature.kernel.conv1.weight": (9, 9),
        "algo.curvature.out.norm0.bias": (8,),
        "algo.curvature.out.head.weight": (3, 3),
        "algo.curvature.in.head.weight": (32, 32),
        "algo.curvature.out.head.bias": (3,),
    }


# MAML++

OFF = {"learn_rates": False, "multi_step_loss": False, "per_step_norm": False, "first_order_iterations": 0}


def plus_plus(inner_steps: int = 3, lr: float = 0.3, **switches: Any) -> Any:
    settings = OFF | {"inner_steps": inner_steps, "eval_steps": inner_steps, "inner_lr": lr} | switches
    return known("algo")["mamlpp"](**settings)


def plus_plus_losses(of: Problem, algorithm: Any, meta: Meta, task: Episode, first_order: bool) -> list[Tensor]:
    """The queries' loss after each inner update."""
    w, losses = network_weights(meta), []
    for k in range(algorithm.inner_steps):
        norms = {n.removeprefix(f"algo.step{k}."): v for n, v in meta.items() if n.startswith(f"algo.step{k}.")}
        slope = slopes(of.support_loss(w | norms, task), w)
        rate = {n: meta[f"algo.rate.{n}"][k] if algorithm.learn_rates else algorithm.inner_lr for n in w}
        w = {n: v - rate[n] * (slope[n].detach() if first_order else slope[n]) for n, v in w.items()}
        losses.append(of.query_loss(w | norms, task))
    return losses


SWITCHES: dict[str, dict[str, Any]] = {
    "none": {},
    "learn_rates": {"learn_rates": True},
    "multi_step_loss": {"multi_step_loss": True, "multi_step_iterations": 10},
    "per_step_norm": {"per_step_norm": True},
    "all": {"learn_rates": True, "multi_step_loss": True, "multi_step_iterations": 10, "per_step_norm": True},
}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("switches", SWITCHES)
def test_maml_plus_plus_with_each_part_alone_and_all_together(switches: str, kind: str, first_order: bool) -> None:
    """At meta-update 4 of 10 with a multi-step loss: the first two of three steps have 60 % of a third each."""
    of, algorithm = problem(kind), plus_plus(**SWITCHES[switches], first_order_iterations=9 if first_order else 0)
    now, meta = algorithm.at_step(4, 100), make_meta(algorithm, of.net)
    shares = [0.2, 0.2, 0.6] if algorithm.multi_step_loss else [0.0, 0.0, 1.0]

    def reference(task: Episode) -> Tensor:
        losses = plus_plus_losses(of, algorithm, meta, task, first_order)
        return torch.stack([share * loss for share, loss in zip(shares, losses) if share]).sum()

    if first_order and switches == "per_step_norm" and kind == "classes":
        # The norms before the last step's act through the inner gradients alone, which count as constants.
        ours, theirs = now.loss(of.net, meta, first := next(one_by_one(of.episodes))).loss, reference(first)
        for n, w in meta.items():
            (a,) = torch.autograd.grad(ours, w, retain_graph=True, allow_unused=True)
            (b,) = torch.autograd.grad(theirs, w, retain_graph=True, allow_unused=True)
            early = n.startswith(("algo.step0.", "algo.step1."))
            assert (a is None and b is None) if early else gap(a, b) < TOLERANCE, n
    else:
        same_gradient(now, of.net, meta, of.episodes, reference, least=1e-6)


@pytest.mark.parametrize("statistics", ["batch", "support", "running"])
def test_maml_plus_plus_with_every_part_off_is_maml_to_the_bit(statistics: str) -> None:
    of, settings = problem("classes", statistics), {"inner_steps": 2, "eval_steps": 3, "inner_lr": 0.3}
    ours, maml = plus_plus(lr=0.3, inner_steps=2, eval_steps=3), make_algorithm("maml", **settings)
    assert ours.at_step(0, 10) is ours
    meta = make_meta(ours, of.net)
    assert meta.keys() == make_meta(maml, of.net).keys()
    one, other = (vmapped_gradient(a, of.net, meta, of.episodes) for a in (ours, maml))
    for a, b in zip(one, other):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[n], b[n]) for n in a)
    task = next(one_by_one(of.episodes))
    assert torch.equal(ours.predict(of.net, meta, task), maml.predict(of.net, meta, task))
    assert ours.fresh_running(of.net).keys() == of.net.fresh_running().keys()


def test_its_first_order_phase_is_first_order_maml() -> None:
    of = problem("classes")
    ours = plus_plus(2, first_order_iterations=5)
    theirs = make_algorithm("fomaml", inner_steps=2, inner_lr=0.3)
    meta = make_meta(ours, of.net)
    one, _, _ = vmapped_gradient(ours.at_step(4, 10), of.net, meta, of.episodes)
    other, _, _ = vmapped_gradient(theirs, of.net, meta, of.episodes)
    after, _, _ = vmapped_gradient(ours.at_step(5, 10), of.net, meta, of.episodes)
    second, _, _ = vmapped_gradient(make_algorithm("maml", inner_steps=2, inner_lr=0.3), of.net, meta, of.episodes)
    for n in meta:
        assert gap(one[n], other[n]) < TOLERANCE, n
        assert torch.equal(after[n], second[n]), n
    assert max(gap(one[n], second[n]) for n in meta) > 0.01


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_shares_of_the_steps_are_those_of_the_authors_code(steps: int) -> None:
    """Antoniou's `get_per_step_loss_importance_vector`, with meta-updates for its epochs."""
    algorithm = plus_plus(steps, multi_step_loss=True, multi_step_iterations=40)
    for update in range(40):
        decay, least = 1 / steps / 40, 0.03 / steps
        others = [max(1 / steps - update * decay, least) for _ in range(steps - 1)]
        final = min(1 / steps + update * (steps - 1) * decay, 1 - (steps - 1) * least)
        assert algorithm.at_step(update, 1000).shares == pytest.approx([*others, final], abs=1e-12)
    assert algorithm.at_step(40, 1000) is algorithm  # the last step alone
    assert not algorithm.shares


def per_step(meta: Meta, running: Meta, k: int) -> tuple[Meta, Meta]:
    start = f"algo.step{k}."
    return tuple({n.removeprefix(start): v for n, v in d.items() if n.startswith(start)} for d in (meta, running))  # type: ignore[return-value]


def make_per_step_running(steps: int) -> Meta:
    generator = Generator().manual_seed(5)

    def value(name: str) -> Tensor:
        drawn = torch.rand(8, generator=generator, dtype=torch.float64)
        return 0.5 + drawn if name == "var" else drawn - 0.5

    names = [(k, i, name) for k in range(steps) for i in range(2) for name in ("mean", "var")]
    return {f"algo.step{k}.norm{i}.{name}": value(name) for k, i, name in names}


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_each_step_predicts_with_its_own_norm_and_moving_averages(steps: int) -> None:
    """Trained with two steps; the second one's go on being used after it."""
    of = problem("classes", "running")
    algorithm = plus_plus(2, learn_rates=True, per_step_norm=True, eval_steps=steps)
    meta, running = make_meta(algorithm, of.net), make_per_step_running(2)
    assert running.keys() == algorithm.fresh_running(of.net).keys()
    for task in one_by_one(of.episodes):
        w = network_weights(meta)
        norms, kept = per_step(meta, running, 0)
        for update in range(steps):
            norms, kept = per_step(meta, running, min(update, 1))
            loss = F.cross_entropy(classify(w | norms, task.support_x, kept), task.support_y)
            slope = slopes(loss, w)
            w = {n: v - meta[f"algo.rate.{n}"][min(update, 1)] * slope[n] for n, v in w.items()}
        with torch.no_grad():
            ours = algorithm.predict(of.net.at_test(running), meta, task)
        assert gap(ours, classify(w | norms, task.query_x, kept)) < TOLERANCE


def batch_moments(w: Meta, x: Tensor) -> Meta:
    """The mean and the variance that each norm of `classify` sees."""
    seen: Meta = {}
    for i in range(2):
        x = F.conv2d(x, w[f"conv{i}.weight"], None, stride=2, padding=1)
        by_channel = x.transpose(0, 1).flatten(1)
        seen |= {f"norm{i}.mean": by_channel.mean(1), f"norm{i}.var": by_channel.var(1, correction=0)}
        x = F.relu(F.batch_norm(x, None, None, w[f"norm{i}.weight"], w[f"norm{i}.bias"], training=True))
    return seen


@pytest.mark.parametrize("every_step", [False, True])
def test_moving_averages_are_of_the_passes_of_their_own_step(every_step: bool) -> None:
    """The support pass of each, and the queries after it where they are looked at: the last step's, or all."""
    of = problem("classes", "running")
    algorithm = plus_plus(3, per_step_norm=True, multi_step_loss=every_step).at_step(0, 10)
    meta = make_meta(algorithm, of.net)
    each: dict[str, list[Tensor]] = {}
    for task in one_by_one(of.episodes):
        w = network_weights(meta)
        for k in range(3):
            norms, _ = per_step(meta, {}, k)
            passes = [batch_moments(w | norms, task.support_x)]
            slope = slopes(of.support_loss(w | norms, task), w)
            w = {n: v - 0.3 * slope[n] for n, v in w.items()}
            if every_step or k == 2:
                passes.append(batch_moments(w | norms, task.query_x))
            for n in passes[0]:
                mean = torch.stack([seen[n] for seen in passes]).mean(0)
                each.setdefault(f"algo.step{k}.{n}", []).append(mean)
    _, _, ours = vmapped_gradient(algorithm, of.net, meta, of.episodes)
    assert ours.keys() == each.keys() == algorithm.fresh_running(of.net).keys()
    for n, values in each.items():
        assert gap(ours[n], torch.stack(values).mean(0)) < TOLERANCE, n

    running = {n: v.double() for n, v in algorithm.fresh_running(of.net).items()}
    state = TrainState(meta, torch.optim.SGD(meta.values(), lr=0.1), running=running)
    train_step(algorithm, of.net, state, of.episodes)
    for n, values in each.items():
        start = 0 if n.endswith("mean") else 1
        assert gap(state.running[n], (1 - MOMENTUM) * start + MOMENTUM * torch.stack(values).mean(0)) < 1e-7, n


@pytest.mark.parametrize(
    ("norm", "statistics", "said"),
    [("batch", "running", "per_step"), ("batch", "batch", "batch"), ("group", "running", "per example")],
)
def test_maml_plus_plus_says_whose_statistics_it_uses(norm: str, statistics: str, said: str) -> None:
    net = make_net(norm=norm, statistics=statistics)
    assert plus_plus(per_step_norm=True).statistics_used(net) == said
    assert plus_plus().statistics_used(net) == net.statistics_used


def test_norms_of_the_steps_are_learned_apart_and_not_adapted() -> None:
    algorithm, net = plus_plus(2, learn_rates=True, per_step_norm=True), problem("classes").net
    meta = algorithm.init(net, Generator())
    own = {n for n in meta if n.startswith("algo.")}
    norms = {f"norm{i}.{part}" for i in range(2) for part in ("weight", "bias")}
    weights = {"conv0.weight", "conv1.weight", "head.weight", "head.bias"}
    assert meta.keys() - own == weights
    assert own == {f"algo.rate.{n}" for n in weights} | {f"algo.step{k}.{n}" for k in range(2) for n in norms}
    assert all(meta[f"algo.rate.{n}"].tolist() == pytest.approx([0.3, 0.3]) for n in weights)
    assert len({w.data_ptr() for w in meta.values()}) == len(meta)
    averages = algorithm.fresh_running(problem("classes", "running").net).values()
    assert len({v.data_ptr() for v in averages}) == len(averages) == 8  # the engine moves each in place


# Implicit MAML


def settled(of: Problem, meta: Meta, task: Episode, lr: float, steps: int, pull: float) -> Meta:
    """Descent on the support loss plus pull/2 of the squared distance from the start; with a graph."""
    w = dict(meta)
    for _ in range(steps):
        slope = slopes(of.support_loss(w, task), w)
        w = {n: v - lr * (slope[n] + pull * (v - meta[n])) for n, v in w.items()}
    return w


def linear_system(of: Problem, task: Episode, w: Meta, pull: float) -> Tensor:
    """I + H / pull, entry by entry."""
    hessian = torch.autograd.functional.hessian(lambda v: of.support_loss(split(v, w), task), joined(w).detach())
    system = torch.eye(len(hessian), dtype=torch.float64) + hessian / pull
    assert torch.linalg.eigvalsh(system).min() > 0.1
    return system


def split(flat: Tensor, like: Meta) -> Meta:
    parts = flat.split([w.numel() for w in like.values()])
    return {n: part.view(w.shape) for (n, w), part in zip(like.items(), parts)}


def joined(w: Meta) -> Tensor:
    return torch.cat([v.flatten() for v in w.values()])


def small_problem(kind: str) -> Problem:
    """With few enough weights to write the Hessian down."""
    of = problem(kind)
    if kind == "regression":
        return of
    net = known("model")["mlp"](item_shape=(1, 8, 8), outputs=3, widths=[4, 3], norm="none")
    return replace(of, net=net, answer=fully_connected)


@pytest.mark.parametrize("kind", KINDS)
def test_implicit_gradient_solves_the_system_that_the_hessian_makes(kind: str) -> None:
    of, pull = small_problem(kind), 2.0
    algorithm = make_algorithm("imaml", inner_lr=0.1, inner_steps=4, regularisation=pull, cg_steps=60)
    meta = make_meta(algorithm, of.net)
    ours, metrics, _ = vmapped_gradient(algorithm, of.net, meta, of.episodes)
    expected, losses, bent = [], [], []
    for task in one_by_one(of.episodes):
        w = leaves(settled(of, meta, task, 0.1, 4, pull))
        system = linear_system(of, task, w, pull)
        query = of.query_loss(w, task)
        slope = joined(slopes(query, w)).detach()
        expected.append(torch.linalg.solve(system, slope))
        losses.append(query.detach())
        bent.append(gap(slope, expected[-1]))
    assert gap(joined(ours), torch.stack(expected).mean(0)) < 1e-8
    assert gap(metrics["loss"], torch.stack(losses).mean()) < TOLERANCE
    assert min(bent) > 0.1  # so that the first-order gradient is another


def test_implicit_gradient_is_that_through_all_steps_once_these_have_settled() -> None:
    of, lr, pull, steps = problem("regression"), 0.2, 3.0, 60
    algorithm = make_algorithm("imaml", inner_lr=lr, inner_steps=steps, regularisation=pull, cg_steps=60)
    meta = make_meta(algorithm, of.net)
    ours, _, _ = vmapped_gradient(algorithm, of.net, meta, of.episodes)
    through = loop_gradient(
        lambda task: of.query_loss(settled(of, meta, task, lr, steps, pull), task), meta, of.episodes
    )
    for n in meta:
        assert gap(ours[n], through[n]) < 1e-7, n


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_conjugate_gradient_takes_as_many_steps_as_it_is_told(steps: int) -> None:
    """Against the definition: of all x in the span of g, A g, ..., A^(steps-1) g, the one with least x'Ax/2 - x'g."""
    of, pull = problem("regression"), 2.0
    algorithm = make_algorithm("imaml", inner_lr=0.1, inner_steps=2, regularisation=pull, cg_steps=steps)
    meta = make_meta(algorithm, of.net)
    one = EpisodeBatch(*(field[:1] for field in of.episodes))
    ours, _, _ = vmapped_gradient(algorithm, of.net, meta, one)
    (task,) = one_by_one(one)
    w = leaves(settled(of, meta, task, 0.1, 2, pull))
    system = linear_system(of, task, w, pull)
    g = joined(slopes(of.query_loss(w, task), w)).detach()
    basis = torch.linalg.qr(torch.stack([torch.linalg.matrix_power(system, i) @ g for i in range(steps)], 1)).Q
    best = basis @ torch.linalg.solve(basis.T @ system @ basis, basis.T @ g)
    assert gap(joined(ours), best) < 1e-8


@pytest.mark.parametrize("weight", [-3.0, 0.0])
def test_conjugate_gradient_stays_finite(weight: float) -> None:
    """Where the first direction solves the system and where it bends the wrong way."""
    b = {"a": torch.tensor([1.0, 2.0])}
    found = conjugate_gradient(lambda v: {"a": (1 + weight) * v["a"]}, b, 5)["a"]
    assert found.tolist() == ([1.0, 2.0] if weight == 0 else [0.0, 0.0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 3])
def test_implicit_maml_predicts_with_weights_that_are_pulled_back(steps: int, kind: str) -> None:
    of = problem(kind)
    algorithm = make_algorithm("imaml", eval_steps=steps, inner_lr=0.1, regularisation=3.0)
    meta = make_meta(algorithm, of.net)
    for task in one_by_one(of.episodes):
        with torch.no_grad():
            ours = algorithm.predict(of.net, meta, task)
        assert gap(ours, of.answer(settled(of, meta, task, 0.1, steps, 3.0), task.query_x)) < TOLERANCE


# Trajectories


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_trajectory_is_the_predictions_after_each_number_of_steps(name: str, kind: str) -> None:
    of, algorithm = problem(kind), make_algorithm(name, inner_steps=2, eval_steps=4)
    meta = make_meta(algorithm, of.net)
    task = next(one_by_one(of.episodes))
    with torch.no_grad():
        all_of_them = algorithm.trajectory(of.net, meta, task)
        each = [make_algorithm(name, inner_steps=2, eval_steps=n).predict(of.net, meta, task) for n in range(5)]
    assert len(all_of_them) == 5
    assert all(torch.equal(a, b) for a, b in zip(all_of_them, each))
    assert len({float(p.sum()) for p in all_of_them}) == 5
