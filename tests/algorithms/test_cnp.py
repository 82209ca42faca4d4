"""The conditional neural process against torch.nn, in double precision; and that it learns curves and images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from algorithms.plain import TOLERANCE, same_gradient
from contract.small import MLP, WAY, gap, make_algorithm, make_meta, make_net, make_regression, one_by_one
from torch import Tensor, nn

from metarun.algorithms.cnp import CNP
from metarun.data.completion import Completion
from metarun.data.sinusoid import Sinusoid
from metarun.engine.evaluate import over_tasks
from metarun.engine.optim import make_optimizer
from metarun.engine.state import TrainState
from metarun.engine.step import train_step
from metarun.registry import known
from metarun.types import Episode, Episodes, Meta, Place, TaskShape

WIDTHS: dict[str, Any] = {"encoder": [7, 6], "decoder": [5]}


def modules(meta: Meta, prefix: str) -> nn.Sequential:
    """The weights under a name as torch's own layers."""
    layers: list[nn.Module] = []
    for i in range(sum(name.startswith(prefix) and name.endswith("weight") for name in meta)):
        weight, bias = (meta[f"{prefix}{i}.{kind}"] for kind in ("weight", "bias"))
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        layer.weight, layer.bias = weight, bias  # type: ignore[assignment]  (shared, for their gradients)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def shared(meta: Meta) -> Meta:
    return {name: nn.Parameter(w.detach().clone()) for name, w in meta.items()}


def plain(meta: Meta, task: Episode, batch_norm: bool = False) -> torch.distributions.Normal:
    """What the method says of each query, task by task, in torch's own words."""
    x = torch.cat([task.support_x, task.query_x]).flatten(1)
    for i in range(2):
        x = F.linear(x, meta[f"linear{i}.weight"], meta.get(f"linear{i}.bias"))
        if batch_norm:
            x = F.batch_norm(x, None, None, meta[f"norm{i}.weight"], meta[f"norm{i}.bias"], training=True)
        x = x.relu()
    support, query = x[: len(task.support_x)], x[len(task.support_x) :]
    each = modules(meta, "algo.encoder.")(torch.cat([support, task.support_y], 1))
    r = sum(each[i] for i in range(len(each))) / len(each)
    assert isinstance(r, Tensor)
    answers = torch.stack([modules(meta, "algo.decoder.")(torch.cat([r, q])) for q in query])
    mean, s = answers[:, :WAY], answers[:, WAY:]
    return torch.distributions.Normal(mean, 0.1 + 0.9 * nn.Softplus()(s))


def likelihood_loss(said: torch.distributions.Normal, y: Tensor) -> Tensor:
    joint = torch.distributions.Independent(said, 1)
    return -joint.log_prob(y).mean()


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_it_is_the_mean_of_the_encoded_support_set_decoded_for_each_query(norm: str) -> None:
    algorithm, net = make_algorithm("cnp", **WIDTHS), make_net(MLP, norm)
    meta, episodes = shared(make_meta(algorithm, net)), make_regression(query=3)
    for task in one_by_one(episodes):
        with torch.no_grad():
            said, ours = plain(meta, task, norm == "batch"), algorithm.loss(net, meta, task)
            assert gap(algorithm.predict(net, meta, task), said.mean) < TOLERANCE
            assert gap(ours.loss, likelihood_loss(said, task.query_y)) < TOLERANCE
            assert gap(ours.metrics["mse"], (said.mean - task.query_y).square().mean()) < TOLERANCE
    same_gradient(
        algorithm,
        net,
        meta,
        episodes,
        lambda task: likelihood_loss(plain(meta, task, norm == "batch"), task.query_y),
    )


def test_sigma_is_bounded_from_below_whatever_the_weights() -> None:
    algorithm, net = CNP(**WIDTHS), make_net(MLP)
    meta, task = make_meta(algorithm, net), next(one_by_one(make_regression()))
    meta["algo.decoder.1.bias"] = torch.full((2 * WAY,), -50.0, dtype=torch.float64)
    _, sigma = algorithm.answer(net, meta, task)
    assert sigma.shape == task.query_y.shape
    assert bool((sigma >= 0.1).all())
    assert algorithm.loss(net, meta, task).loss.isfinite()


def test_the_support_set_has_no_order_and_any_size() -> None:
    algorithm, net = CNP(**WIDTHS), make_net(MLP, "none")
    meta, task = make_meta(algorithm, net), next(one_by_one(make_regression()))
    before = algorithm.predict(net, meta, task)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert (
        gap(
            algorithm.predict(
                net, meta, task._replace(support_x=task.support_x[order], support_y=task.support_y[order])
            ),
            before,
        )
        < 1e-12
    )
    twice = task._replace(support_x=task.support_x.repeat(2, 1, 1, 1), support_y=task.support_y.repeat(2, 1))
    assert gap(algorithm.predict(net, meta, twice), before) < 1e-12
    one = task._replace(support_x=task.support_x[:1], support_y=task.support_y[:1])
    assert gap(algorithm.predict(net, meta, one), before) > 1e-4


@pytest.mark.parametrize(("item", "outputs", "widths"), [((1,), 1, [9]), ((2,), 3, [12, 5]), ((1, 4, 4), 2, [6])])
def test_its_sizes_follow_the_network(item: tuple[int, ...], outputs: int, widths: list[int]) -> None:
    net = known("model")["mlp"](item_shape=item, outputs=outputs, widths=widths, norm="none")
    meta = CNP(**WIDTHS).init(net, torch.Generator().manual_seed(0))
    features = widths[-1]
    assert meta["algo.encoder.0.weight"].shape == (7, features + outputs)
    assert meta["algo.encoder.1.weight"].shape == (6, 7)
    assert meta["algo.decoder.0.weight"].shape == (5, 6 + features)
    assert meta["algo.decoder.1.weight"].shape == (2 * outputs, 5)
    assert not [name for name in meta if name.startswith("head.")]
    assert {name for name in meta if not name.startswith("algo.")} == net.init(torch.Generator(), head=False).keys()


def test_moving_averages_are_of_support_and_queries_together() -> None:
    algorithm, net = CNP(**WIDTHS), make_net(MLP, "batch", "running")
    meta, task = make_meta(algorithm, net), next(one_by_one(make_regression()))
    found = algorithm.loss(net, meta, task).moments
    expected = net.moments(meta, torch.cat([task.support_x, task.query_x]))
    assert found.keys() == expected.keys() == algorithm.fresh_running(net).keys()
    assert all(gap(found[name], expected[name]) < TOLERANCE for name in found)
    tested = net.at_test(found)
    alone = task._replace(query_x=task.query_x[:1], query_y=task.query_y[:1])
    assert gap(algorithm.predict(tested, meta, alone), algorithm.predict(tested, meta, task)[:1]) < 1e-12


def test_what_it_cannot_serve_is_refused() -> None:
    with pytest.raises(ValueError, match=r"predicts numbers, and these tasks are classification; .*maml fit"):
        CNP().check(make_net(MLP), TaskShape("classification", 5, 1, 1))
    for name, widths in (("encoder", []), ("decoder", [8, 0])):
        with pytest.raises(ValueError, match=rf"^{name}=.*: give 1 or more layer widths of at least 1"):
            CNP(**{name: widths})


# It learns


def trained(train: Episodes, net: Any, steps: int, meta_batch: int) -> tuple[CNP, Meta]:
    algorithm = CNP(encoder=[64, 64], decoder=[64, 64])
    meta = {n: w.requires_grad_() for n, w in algorithm.init(net, torch.Generator().manual_seed(0)).items()}
    state = TrainState(meta, make_optimizer("Adam", meta.values(), 2e-3, {}))
    while state.step < steps:
        train_step(algorithm, net, state, train(state.step * meta_batch, meta_batch))
    return algorithm, meta


def test_it_learns_to_fit_curves() -> None:
    """The mean square of the curves themselves is about 4."""
    net = known("model")["mlp"](item_shape=(1,), outputs=1, widths=[64], norm="none")
    train, test = (Sinusoid().load(s, Path()).episodes(1, 10, 20, 0, s) for s in ("train", "test"))
    algorithm, meta = trained(train, net, 600, 32)
    error = over_tasks(lambda e: F.mse_loss(algorithm.predict(net, meta, e), e.query_y), test, 400, 200).mean()
    assert error < 1.2


def test_it_learns_to_complete_images() -> None:
    """Better than the mean of the pixels that are given, on characters that it has never seen."""
    net = known("model")["mlp"](item_shape=(2,), outputs=1, widths=[64], norm="none")
    place = Place(Path())
    known("dataset")  # so that glyphs are
    train = Completion().load("train", place).episodes(1, 100, 60, 0, "train")
    test = Completion().load("test", place).episodes(1, 100, 784, 0, "test")
    algorithm, meta = trained(train, net, 200, 12)

    def errors(e: Episode) -> Tensor:
        mean = e.support_y.mean(0).expand_as(e.query_y)
        return torch.stack([F.mse_loss(p, e.query_y) for p in (algorithm.predict(net, meta, e), mean)])

    ours, of_the_mean = over_tasks(errors, test, 100, 50).mean(0).tolist()
    assert ours < 0.95 * of_the_mean
