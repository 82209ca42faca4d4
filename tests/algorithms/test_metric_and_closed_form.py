"""ProtoNet's cosine, matching and relation networks, R2-D2 and MetaOptNet against slow, obvious versions in float64.

Nothing of the references is metarun's: torch.nn.LSTM, plain convolutions over every pair, scikit-learn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from algorithms.plain import TOLERANCE, maps, parts, same_predictions
from contract.small import (
    CONV4,
    MLP,
    POOLED,
    QUERY,
    SHOT,
    TASKS,
    WAY,
    Model,
    gap,
    loop_gradient,
    make_algorithm,
    make_episodes,
    make_net,
    moments_of,
    one_by_one,
    vmapped_gradient,
)
from sklearn.linear_model import Ridge
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.func import vmap

from metarun.algorithms.r2d2 import ridge
from metarun.algorithms.svm import crammer_singer
from metarun.config import known
from metarun.data.sinusoid import Sinusoid
from metarun.engine.evaluate import task_values
from metarun.engine.optim import make_optimizer
from metarun.engine.state import TrainState
from metarun.engine.step import train_step
from metarun.measures import MEASURES
from metarun.types import Episode, EpisodeBatch, Meta, TaskShape

CLASSES = TaskShape("classification", WAY, SHOT, QUERY)
REGRESSION = TaskShape("regression", 1, 5, 10)

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "protonet": ("protonet", {}),
    "protonet-cosine": ("protonet", {"distance": "cosine"}),
    "protonet-learned": ("protonet", {"distance": "cosine", "learn_scale": True, "scale": 3.0}),
    "matchingnet": ("matchingnet", {}),
    "matchingnet-fce": ("matchingnet", {"fce": True, "read_steps": 3}),
    "relationnet": ("relationnet", {"channels": 8}),
    "r2d2": ("r2d2", {}),
    "svm": ("metaoptnet", {}),
    "ridge": ("metaoptnet", {"head": "ridge", "label_smoothing": 0.1}),
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def embedded(w: Meta, task: Episode) -> tuple[Tensor, Tensor]:
    """The maps of support and queries together."""
    both = maps(w, torch.cat([task.support_x, task.query_x]))
    return both[: len(task.support_x)], both[len(task.support_x) :]


def flat(w: Meta, task: Episode) -> tuple[Tensor, Tensor]:
    support, query = embedded(w, task)
    return support.flatten(1), query.flatten(1)


# All of them


@every_variant
@pytest.mark.parametrize("statistics", ["batch", "support", "running"])
def test_every_setting_has_the_task_loops_gradient(variant: str, statistics: str) -> None:
    name, settings = VARIANTS[variant]
    algorithm, net, meta = parts(name, make_net(statistics=statistics), **settings)
    episodes = make_episodes()
    ours, _, moments = vmapped_gradient(algorithm, net, meta, episodes)
    plain = loop_gradient(lambda task: algorithm.loss(net, meta, task).loss, meta, episodes)
    for n in plain:
        assert plain[n].norm() > 1e-8, f"nothing moves {n}"
        assert gap(ours[n], plain[n]) < TOLERANCE, n
    each = [moments_of(algorithm, net, meta, task) for task in one_by_one(episodes)]
    assert moments.keys() == algorithm.fresh_running(net).keys()
    for n in moments:
        assert gap(moments[n], torch.stack([m[n] for m in each]).mean(0)) < TOLERANCE, n


@every_variant
def test_the_gradient_is_the_slope_of_the_loss(variant: str) -> None:
    """So nothing that the loss depends on has been taken for a constant: not the solution, nor how it was found."""
    name, settings = VARIANTS[variant]
    algorithm, net, meta = parts(name, **settings)
    episodes = make_episodes()
    ours, _, _ = vmapped_gradient(algorithm, net, meta, episodes)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        way = {n: torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in meta.items()}

        def loss_at(t: float, way: Meta = way) -> Tensor:
            moved = {n: (w + t * way[n]).detach() for n, w in meta.items()}
            return torch.stack([algorithm.loss(net, moved, task).loss for task in one_by_one(episodes)]).mean()

        slope = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
        assert gap(torch.stack([(ours[n] * way[n]).sum() for n in meta]).sum(), slope) < 1e-4


@every_variant
def test_the_order_of_the_support_set_matters_to_context_embeddings_alone(variant: str) -> None:
    name, settings = VARIANTS[variant]
    algorithm, net, meta = parts(name, **settings)
    task, order = next(one_by_one(make_episodes())), torch.tensor([3, 0, 5, 2, 1, 4])
    with torch.no_grad():
        before = algorithm.predict(net, meta, task)
        after = algorithm.predict(
            net, meta, task._replace(support_x=task.support_x[order], support_y=task.support_y[order])
        )
    assert gap(after, before) > 1e-4 if settings.get("fce") else gap(after, before) < 1e-8


@every_variant
def test_what_was_trained_on_many_classes_serves_few(variant: str) -> None:
    name, settings = VARIANTS[variant]
    algorithm = make_algorithm(name, **settings)
    many = known("model")["conv4"](item_shape=(1, 8, 8), outputs=20, filters=8, blocks=2)
    few = known("model")["conv4"](item_shape=(1, 8, 8), outputs=5, filters=8, blocks=2)
    trained, fresh = (algorithm.init(net, torch.Generator().manual_seed(0)) for net in (many, few))
    assert {n: w.shape for n, w in trained.items()} == {n: w.shape for n, w in fresh.items()}
    for net, way in ((many, 20), (few, 5)):
        task = Episode(torch.rand(way, 1, 8, 8), torch.arange(way), torch.rand(7, 1, 8, 8), torch.arange(7) % way)
        assert algorithm.predict(net, trained, task).shape == (7, way)
        assert algorithm.loss(net, trained, task).loss.isfinite()


@every_variant
def test_what_does_not_fit_is_refused(variant: str) -> None:
    name, settings = VARIANTS[variant]
    algorithm, net = make_algorithm(name, **settings), make_net()
    algorithm.check(net, CLASSES)
    if name == "r2d2":
        algorithm.check(net, REGRESSION)
        return
    with pytest.raises(ValueError, match="regression; r2d2, maml, anil, reptile fit"):
        algorithm.check(net, REGRESSION)
    with pytest.raises(ValueError, match=r"way=1: .* 2 classes or more fit"):
        algorithm.check(net, TaskShape("classification", 1, 1, 1))


# Prototypical network


def cosines(w: Meta, task: Episode) -> Tensor:
    """(query, way) one pair at a time"""
    support, query = flat(w, task)
    means = [support[task.support_y == c].mean(0) for c in range(WAY)]
    return torch.stack([torch.stack([F.cosine_similarity(q, mean, dim=0) for mean in means]) for q in query])


def test_protonets_cosine_is_ten_times_the_cosine_with_the_class_mean() -> None:
    algorithm, net, meta = parts("protonet", distance="cosine")
    same_predictions(algorithm, net, meta, make_episodes(), lambda task: 10 * cosines(meta, task))


def test_protonets_scale_is_learned() -> None:
    algorithm, net, meta = parts("protonet", distance="cosine", scale=3.0, learn_scale=True)
    assert algorithm.init(net, torch.Generator())["algo.scale"] == 3
    same_predictions(algorithm, net, meta, make_episodes(), lambda task: meta["algo.scale"] * cosines(meta, task))


def test_protonets_scale_multiplies_distances_too() -> None:
    algorithm, net, meta = parts("protonet", scale=0.5)
    task = next(one_by_one(make_episodes()))
    plain = make_algorithm("protonet").predict(net, meta, task)
    assert gap(algorithm.predict(net, meta, task), 0.5 * plain) < TOLERANCE


def test_a_cosine_with_nothing_is_nothing_and_its_gradient_is_finite() -> None:
    net = known("model")["mlp"](item_shape=(4,), outputs=2, widths=[3], norm="none")
    algorithm = make_algorithm("protonet", distance="cosine")
    meta = {n: w.requires_grad_() for n, w in algorithm.init(net, torch.Generator().manual_seed(0)).items()}
    task = Episode(torch.zeros(2, 4), torch.arange(2), torch.rand(3, 4), torch.arange(3) % 2)
    out = algorithm.loss(net, meta, task).loss
    out.backward()
    assert out.isfinite()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in meta.values())


# Matching network


def attended(support: Tensor, y: Tensor, query: Tensor, scale: float) -> Tensor:
    """(query, way) log of the labels' sum under attention, one query at a time: Vinyals et al. 2016, eq. 1"""
    rows = []
    for q in query:
        a = torch.stack([(scale * F.cosine_similarity(q, s, dim=0)).exp() for s in support])
        rows.append(torch.stack([(a / a.sum())[y == c].sum() for c in range(WAY)]))
    return torch.stack(rows).log()


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_matching_network_sums_attention_over_labels(scale: float) -> None:
    algorithm, net, meta = parts("matchingnet", scale=scale)

    def logits(task: Episode) -> Tensor:
        support, query = flat(meta, task)
        return attended(support, task.support_y, query, scale)

    same_predictions(algorithm, net, meta, make_episodes(), logits)
    for task in one_by_one(make_episodes()):
        assert gap(algorithm.predict(net, meta, task).exp().sum(1), torch.ones(6).double()) < TOLERANCE


def test_a_class_that_gets_no_attention_still_has_a_logarithm() -> None:
    algorithm, net, meta = parts("matchingnet", scale=1e5)
    task = next(one_by_one(make_episodes()))
    out = algorithm.loss(net, meta, task)
    slopes = torch.autograd.grad(out.loss, list(meta.values()))
    assert out.loss.isfinite()
    assert all(slope.isfinite().all() for slope in slopes)


def torch_lstm(w: Meta, x: Tensor) -> Tensor:
    """torch.nn.LSTM, bidirectional, with our weights: (n, size) -> (n, 2 size)"""
    size = x.shape[1]
    given = {}
    for i, end in enumerate(("l0", "l0_reverse")):
        given[f"weight_ih_{end}"], given[f"weight_hh_{end}"] = w["algo.context.input"][i], w["algo.context.state"][i]
        given[f"bias_ih_{end}"], given[f"bias_hh_{end}"] = w["algo.context.bias"][i], torch.zeros(4 * size).double()
    lstm = torch.nn.LSTM(size, size, bidirectional=True).double()
    return torch.func.functional_call(lstm, given, (x,))[0]


def read(w: Meta, f: Tensor, g: Tensor, steps: int) -> Tensor:
    """One query's attLSTM: Vinyals et al. 2016, appendix A.1, whose cell torch.nn.LSTMCell computes."""
    size = len(f)
    cell = torch.nn.LSTMCell(3 * size, size).double()
    given = {
        "weight_ih": torch.cat([w["algo.read.input"][0], w["algo.read.state"][0]], 1),
        "weight_hh": torch.zeros(4 * size, size).double(),
        "bias_ih": w["algo.read.bias"][0],
        "bias_hh": torch.zeros(4 * size).double(),
    }
    h, c = f, torch.zeros(1, size).double()
    for _ in range(steps):
        a = torch.stack([h @ s for s in g]).exp()
        r = sum((a_i / a.sum()) * s for a_i, s in zip(a, g))
        x = torch.cat([f, h, torch.as_tensor(r)])[None]
        out, c = torch.func.functional_call(cell, given, (x, (torch.zeros_like(c), c)))
        h = out[0] + f
    return h


@pytest.mark.parametrize("steps", [1, 4])
def test_full_context_embeddings_are_torchs_lstms(steps: int) -> None:
    algorithm, net, meta = parts("matchingnet", make_net(MLP), fce=True, read_steps=steps)

    def logits(task: Episode) -> Tensor:
        x = torch.cat([task.support_x, task.query_x]).flatten(1)
        for i in range(2):
            x = F.linear(x, meta[f"linear{i}.weight"])
            x = F.relu(F.batch_norm(x, None, None, meta[f"norm{i}.weight"], meta[f"norm{i}.bias"], training=True))
        f, g = x[len(task.support_x) :], x[: len(task.support_x)]
        g = g + sum(torch_lstm(meta, g).chunk(2, 1))
        return attended(g, task.support_y, torch.stack([read(meta, q, g, steps) for q in f]), 1.0)

    same_predictions(algorithm, net, meta, make_episodes(), logits)


# Relation network


def module(w: Meta, pairs: Tensor, normalise: Callable[[str, Tensor], Tensor]) -> Tensor:
    """(pairs,) relations before the sigmoid: Sung et al. 2018, figure 2, with padding"""
    x = pairs
    for i in range(2):
        x = F.conv2d(x, w[f"algo.block{i}.conv.weight"], w.get(f"algo.block{i}.conv.bias"), padding=1)
        x = F.relu(normalise(f"algo.block{i}.norm", x))
        x = torch.nn.MaxPool2d(2)(x) if min(x.shape[-2:]) >= 2 else x
    x = F.relu(F.linear(x.flatten(1), w["algo.hidden.weight"], w["algo.hidden.bias"]))
    return F.linear(x, w["algo.score.weight"], w["algo.score.bias"]).flatten()


def joined(classes: list[Tensor], items: Tensor) -> Tensor:
    """Every item with every class, the class's channels first"""
    return torch.stack([torch.cat([c, item]) for item in items for c in classes])


def batch_norm(w: Meta) -> Callable[[str, Tensor], Tensor]:
    return lambda n, x: F.batch_norm(x, None, None, w[f"{n}.weight"], w[f"{n}.bias"], training=True)


def sums(support: Tensor, y: Tensor) -> list[Tensor]:
    return [support[y == c].sum(0) for c in range(WAY)]


def test_relation_network_scores_every_pair() -> None:
    algorithm, net, meta = parts("relationnet", channels=6, hidden=5)

    def relations(task: Episode) -> Tensor:
        support, query = embedded(meta, task)
        return module(meta, joined(sums(support, task.support_y), query), batch_norm(meta)).view(-1, WAY)

    episodes = make_episodes()
    for task in one_by_one(episodes):
        assert gap(algorithm.predict(net, meta, task), relations(task)) < TOLERANCE

    def loss(task: Episode) -> Tensor:
        return F.mse_loss(relations(task).sigmoid(), F.one_hot(task.query_y, WAY).double())

    ours, metrics, _ = vmapped_gradient(algorithm, net, meta, episodes)
    for n, slope in loop_gradient(loss, meta, episodes).items():
        assert gap(ours[n], slope) < TOLERANCE, n
    assert gap(metrics["loss"], torch.stack([loss(task) for task in one_by_one(episodes)]).mean()) < TOLERANCE


@torch.no_grad()
def test_a_relation_norm_takes_its_statistics_from_the_support_sets_own_pairs() -> None:
    algorithm, net, meta = parts("relationnet", make_net(statistics="support"), channels=6)
    for task in one_by_one(make_episodes()):
        support = net.features(meta, task.support_x, support=task.support_x).view(-1, 8, 2, 2)
        query = net.features(meta, task.query_x, support=task.support_x).view(-1, 8, 2, 2)
        classes = sums(support, task.support_y)
        met: Meta = {}

        def keep(n: str, x: Tensor, met: Meta = met) -> Tensor:
            met[f"{n}.var"], met[f"{n}.mean"] = torch.var_mean(x, (0, 2, 3), correction=0)
            return batch_norm(meta)(n, x)

        def reuse(n: str, x: Tensor, met: Meta = met) -> Tensor:
            return F.batch_norm(x, met[f"{n}.mean"], met[f"{n}.var"], meta[f"{n}.weight"], meta[f"{n}.bias"])

        module(meta, joined(classes, support), keep)
        wanted = module(meta, joined(classes, query), reuse).view(-1, WAY)
        assert gap(algorithm.predict(net, meta, task), wanted) < TOLERANCE


@torch.no_grad()
def test_a_relation_norm_keeps_moving_averages_over_the_pairs_and_predicts_with_them() -> None:
    algorithm, net, meta = parts("relationnet", make_net(statistics="running"), channels=6)
    task, other = one_by_one(make_episodes(2))
    met: Meta = {}

    def keep(n: str, x: Tensor) -> Tensor:
        met[f"{n}.var"], met[f"{n}.mean"] = torch.var_mean(x, (0, 2, 3), correction=0)
        return batch_norm(meta)(n, x)

    support, query = embedded(meta, task)
    module(meta, joined(sums(support, task.support_y), query), keep)
    ours = algorithm.loss(net, meta, task).moments
    assert ours.keys() == algorithm.fresh_running(net).keys() == met.keys() | net.fresh_running().keys()
    for n, value_met in met.items():
        assert gap(ours[n], value_met) < TOLERANCE, n

    tested = net.at_test(ours)
    support, query = (tested.features(meta, x).view(-1, 8, 2, 2) for x in (other.support_x, other.query_x))
    wanted = module(
        meta,
        joined(sums(support, other.support_y), query),
        lambda n, x: F.batch_norm(x, met[f"{n}.mean"], met[f"{n}.var"], meta[f"{n}.weight"], meta[f"{n}.bias"]),
    )
    assert gap(algorithm.predict(tested, meta, other), wanted.view(-1, WAY)) < TOLERANCE


@pytest.mark.parametrize("norm", ["group", "layer", "none"])
@pytest.mark.parametrize(
    ("item", "blocks"), [((1, 8, 8), 3), ((1, 8, 8), 2), ((1, 14, 6), 1), ((3, 20, 21), 1)], ids=str
)
def test_relation_modules_fit_maps_of_all_sizes(item: tuple[int, ...], blocks: int, norm: str) -> None:
    """1x1, 2x2, 7x3 and 10x11"""
    net = known("model")["conv4"](item_shape=item, outputs=WAY, filters=8, blocks=blocks, norm=norm, groups=4)
    algorithm, net, meta = parts("relationnet", net, channels=8)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand((6, *item), generator=generator, dtype=torch.float64), torch.arange(6) % WAY
    task = Episode(x, y, x.flip(0), y)
    groups = {"group": 4, "layer": 1}

    def normalise(n: str, z: Tensor) -> Tensor:
        return z if norm == "none" else F.group_norm(z, groups[norm], meta[f"{n}.weight"], meta[f"{n}.bias"])

    support, query = (net.features(meta, z).view(-1, *net.feature_shape) for z in (x, x.flip(0)))
    wanted = module(meta, joined(sums(support, y), query), normalise).view(-1, WAY)
    assert gap(algorithm.predict(net, meta, task), wanted) < TOLERANCE


@pytest.mark.parametrize("model", [MLP, POOLED], ids=["mlp", "mean"])
def test_relation_networks_refuse_flat_features_and_say_what_fits(model: Model) -> None:
    with pytest.raises(ValueError, match=r"model=conv4 with model\.readout=flatten fits"):
        make_algorithm("relationnet").check(make_net(model), CLASSES)


def test_relation_networks_refuse_channels_that_the_groups_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"model\.groups does not divide algo.channels=6"):
        make_algorithm("relationnet", channels=6).check(make_net(CONV4, "group"), CLASSES)
    make_algorithm("relationnet", channels=6).check(make_net(CONV4, "layer"), CLASSES)


# R2-D2


def sklearn_ridge(x: Tensor, y: Tensor, weight: float, new: Tensor) -> Tensor:
    model = Ridge(alpha=weight, fit_intercept=False, solver="cholesky").fit(x.detach().numpy(), y.numpy())
    return torch.as_tensor(model.predict(new.detach().numpy()))


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1).double()], 1)


@pytest.mark.parametrize("widths", [[12], [3]], ids=["fewer examples than features", "more"])
def test_r2d2_is_ridge_regression_on_one_hot_labels(widths: list[int]) -> None:
    algorithm, net, meta = parts("r2d2", make_net(("mlp", {"widths": widths}), "none"))
    weight, scale = 6 * float(meta["algo.log_regularisation"].detach().exp()), float(meta["algo.scale"].detach())
    for task in one_by_one(make_episodes()):
        support, query = (with_one(net.features(meta, x)) for x in (task.support_x, task.query_x))
        wanted = scale * sklearn_ridge(support, F.one_hot(task.support_y, WAY).double(), weight, query)
        assert gap(algorithm.predict(net, meta, task), wanted) < TOLERANCE


def test_r2d2_starts_where_it_is_set() -> None:
    net = make_net()
    meta = make_algorithm("r2d2", regularisation=7.0, scale=3.0).init(net, torch.Generator())
    assert meta["algo.log_regularisation"].exp() == pytest.approx(7)
    assert meta["algo.scale"] == 3
    assert "algo.shift" not in meta, "logits do not change by it"


def points(tasks: int, shot: int, seed: int = 0) -> EpisodeBatch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tasks, shot + 4, 1, generator=generator, dtype=torch.float64)
    y = torch.randn(tasks, 1, 1, generator=generator, dtype=torch.float64) * x.sin() + 0.5
    return EpisodeBatch(x[:, :shot], y[:, :shot], x[:, shot:], y[:, shot:])


def test_r2d2_fits_real_targets() -> None:
    net = known("model")["mlp"](item_shape=(1,), outputs=1, widths=[7], norm="none")
    algorithm, net, meta = parts("r2d2", net)
    episodes = points(TASKS, 5)
    weight = 5 * float(meta["algo.log_regularisation"].detach().exp())
    for task in one_by_one(episodes):
        support, query = (with_one(net.features(meta, x)) for x in (task.support_x, task.query_x))
        wanted = float(meta["algo.scale"].detach()) * sklearn_ridge(support, task.support_y, weight, query).view(-1, 1)
        assert gap(algorithm.predict(net, meta, task), wanted + meta["algo.shift"].detach()) < TOLERANCE
    ours, metrics, _ = vmapped_gradient(algorithm, net, meta, episodes)
    plain = loop_gradient(lambda task: F.mse_loss(algorithm.predict(net, meta, task), task.query_y), meta, episodes)
    for n in plain:
        assert plain[n].norm() > 1e-8, n
        assert gap(ours[n], plain[n]) < TOLERANCE, n
    assert metrics.keys() == {"loss", "mse"}


def test_r2d2_learns_to_fit_curves() -> None:
    """The mean square of the curves themselves is about 4; the fitted constant's error is about 3."""
    net = known("model")["mlp"](item_shape=(1,), outputs=1, widths=[40, 40], norm="none")
    algorithm = known("algo")["r2d2"]()
    train, test = (Sinusoid().load(s, Path()).episodes(1, 10, 10, 0, s) for s in ("train", "test"))
    meta = {n: w.requires_grad_() for n, w in algorithm.init(net, torch.Generator().manual_seed(0)).items()}

    def error() -> float:
        return float(task_values(algorithm, net, meta, test, 200, 100, MEASURES["mse"]).mean())

    before = error()
    state = TrainState(meta, make_optimizer("Adam", meta.values(), 3e-3, {}))
    while state.step < 600:
        train_step(algorithm, net, state, train(state.step * 25, 25))
    assert before > 1.5
    assert error() < 0.3


@pytest.mark.parametrize(("n", "d"), [(6, 40), (40, 6), (6, 6)])
def test_ridge_in_single_precision_survives_repeated_examples_and_large_features(n: int, d: int) -> None:
    x = 30 * torch.randn(n, d, generator=torch.Generator().manual_seed(0)).relu()
    x[n // 2 :] = x[: n - n // 2]
    y = torch.randn(n, 3, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    weight = torch.tensor(0.1, requires_grad=True)
    fit = x @ ridge(x, y, weight)
    exact = x.double() @ ridge(x.double(), y.double(), weight.double())
    assert gap(fit.double(), exact) < 1e-5
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(fit.square().sum(), [x, weight]))


# MetaOptNet


def clusters(way: int, shot: int, features: int, size: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Overlapping classes as a ReLU leaves them: support (n, features), its labels (n,), queries (20, features)"""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(way * shot) % way
    centre = torch.randn(way, features, generator=generator)
    support = (0.5 * centre[y] + torch.randn(len(y), features, generator=generator)).relu()
    query = torch.randn(20, features, generator=generator).relu()
    return size * support.double(), y, size * query.double()


def scores(x: Tensor, y: Tensor, query: Tensor, cost: float, steps: int = 15) -> Tensor:
    a = crammer_singer(x @ x.T, F.one_hot(y).double(), cost, steps)
    return query @ (x.T @ a)


def sklearn_svm(x: Tensor, y: Tensor, query: Tensor, cost: float) -> Tensor:
    svm = LinearSVC(multi_class="crammer_singer", fit_intercept=False, C=cost, tol=1e-8, max_iter=20_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the option is old
        svm.fit(x.numpy(), y.numpy())
    return query @ torch.as_tensor(svm.coef_).T


PROBLEMS = [  # way, shot, features, their size, C
    (5, 1, 64, 1.0, 0.1),
    (5, 5, 64, 1.0, 0.1),
    (5, 5, 64, 30.0, 0.1),
    (5, 5, 64, 0.01, 0.1),
    (5, 15, 200, 1.0, 0.1),
    (20, 1, 64, 1.0, 0.1),
    (5, 15, 20, 1.0, 0.1),
    (5, 5, 8, 1.0, 10.0),
    (3, 4, 2, 1.0, 1.0),
]
every_problem = pytest.mark.parametrize(("way", "shot", "features", "size", "cost"), PROBLEMS)


@every_problem
def test_the_svm_is_scikit_learns(way: int, shot: int, features: int, size: float, cost: float) -> None:
    x, y, query = clusters(way, shot, features, size, seed=way + shot)
    assert gap(scores(x, y, query, cost), sklearn_svm(x, y, query, cost)) < 1e-3


def test_two_classes_are_told_apart_as_scikit_learn_does() -> None:
    """Whose one score for two classes is that of the second against the first."""
    x, y, query = clusters(2, 5, 8)
    ours = scores(x, y, query, 1.0)
    assert gap(ours[:, 1] - ours[:, 0], sklearn_svm(x, y, query, 1.0)[:, 0]) < 1e-3


@every_problem
def test_the_svms_gradient_is_the_slope_of_its_scores(
    way: int, shot: int, features: int, size: float, cost: float
) -> None:
    x, y, query = clusters(way, shot, features, size, seed=way + shot)
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn((20, way), generator=generator, dtype=torch.float64)
    direction = size * torch.randn(x.shape, generator=generator, dtype=torch.float64)

    def total(x: Tensor) -> Tensor:
        return (scores(x, y, query, cost) * weight).sum()

    (slopes,) = torch.autograd.grad(total(x.requires_grad_()), x)
    with torch.no_grad():
        slope = (total(x + 1e-7 * direction) - total(x - 1e-7 * direction)) / 2e-7
    assert gap((slopes * direction).sum(), slope) < 1e-4


def test_the_svm_solves_its_dual() -> None:
    x, y, _ = clusters(5, 5, 64)
    member = F.one_hot(y).double()
    a = crammer_singer(x @ x.T, member, 0.1, 15)
    assert (a <= 0.1 * member + 1e-9).all()
    assert a.sum(1).abs().max() < 1e-9
    assert (a[member == 1] > 0.01).any()


def test_svms_are_solved_together_as_alone() -> None:
    problems = [clusters(5, 3, 30, size, seed) for seed, size in enumerate((0.1, 1.0, 1.0, 20.0))]
    x = torch.stack([p[0] for p in problems]).requires_grad_()
    y = problems[0][1]

    def solve(x: Tensor) -> Tensor:
        return x.T @ crammer_singer(x @ x.T, F.one_hot(y, 5).double(), 0.1, 15)

    together, alone = vmap(solve)(x), torch.stack([solve(one) for one in x])
    assert gap(together, alone) < 1e-9
    slopes = [torch.autograd.grad(w.square().sum(), x)[0] for w in (together, alone)]
    assert gap(*slopes) < 1e-9


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(10, 8),
        torch.ones(10, 8),
        torch.rand(5, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1),
        1e4 * torch.rand(10, 2, generator=torch.Generator().manual_seed(0)),
        1e-4 * torch.rand(10, 2, generator=torch.Generator().manual_seed(0)),
    ],
    ids=["nothing", "all the same", "repeated", "large", "small"],
)
def test_the_svm_survives_features_of_all_kinds(x: Tensor) -> None:
    x = x.double().requires_grad_()
    w = x.T @ crammer_singer(x @ x.T, F.one_hot(torch.arange(10) % 5, 5).double(), 0.1, 15)
    (slopes,) = torch.autograd.grad(w.square().sum(), x)
    assert w.isfinite().all()
    assert slopes.isfinite().all()


@pytest.mark.parametrize(("head", "regularisation"), [("svm", None), ("svm", 1.0), ("ridge", None), ("ridge", 2.0)])
def test_metaoptnet_is_scikit_learns_classifier_times_a_learned_scale(head: str, regularisation: float | None) -> None:
    algorithm, net, meta = parts("metaoptnet", head=head, regularisation=regularisation)
    for task in one_by_one(make_episodes()):
        support, query = (x.detach() for x in flat(meta, task))
        if head == "svm":
            wanted = sklearn_svm(support, task.support_y, query, regularisation or 0.1)
        else:
            wanted = sklearn_ridge(support, F.one_hot(task.support_y, WAY).double(), regularisation or 50.0, query)
        with torch.no_grad():
            assert gap(algorithm.predict(net, meta, task), meta["algo.scale"] * wanted) < 1e-4


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_metaoptnets_loss_smooths_labels_as_the_authors_do(smoothing: float) -> None:
    algorithm, net, meta = parts("metaoptnet", label_smoothing=smoothing)
    for task in one_by_one(make_episodes()):
        log_p = algorithm.predict(net, meta, task).log_softmax(1)
        target = torch.full_like(log_p, smoothing / (WAY - 1))
        target[torch.arange(len(log_p)), task.query_y] = 1 - smoothing
        out = algorithm.loss(net, meta, task)
        assert gap(out.loss, -(target * log_p).sum(1).mean()) < TOLERANCE
        assert gap(out.metrics["loss"], out.loss) < TOLERANCE


def test_metaoptnet_in_single_precision_is_as_in_double() -> None:
    """More examples than features, so that the kernel is singular, and indefinite once rounded."""
    net = known("model")["mlp"](item_shape=(8,), outputs=5, widths=[6], norm="none")
    algorithm = make_algorithm("metaoptnet")
    single = {n: w.requires_grad_() for n, w in algorithm.init(net, torch.Generator().manual_seed(0)).items()}
    double = {n: w.detach().double().requires_grad_() for n, w in single.items()}
    x, y, query = clusters(5, 15, 8, 10.0)
    logits, slopes = [], []
    for meta in (single, double):
        dtype = meta["algo.scale"].dtype
        task = Episode(x.to(dtype), y, query.to(dtype), torch.arange(20) % 5)
        logits.append(algorithm.predict(net, meta, task))
        slopes.append(torch.autograd.grad(algorithm.loss(net, meta, task).loss, meta["linear0.weight"])[0])
    assert logits[0].dtype == torch.float32
    assert gap(logits[0].double(), logits[1]) < 1e-3
    assert gap(slopes[0].double(), slopes[1]) < 1e-2
