"""CAVIA, Proto-MAML, Meta-LSTM and the two baselines against slow, obvious versions in double precision.

Nothing of the references is metarun's: not the network, not the norm, not the inner loop, not the LSTM or the SGD.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log

import pytest
import torch
import torch.nn.functional as F
from algorithms.plain import TOLERANCE, classify, embed, fully_connected, parts, same_predictions
from contract.small import (
    SHOT,
    TASKS,
    WAY,
    gap,
    make_algorithm,
    make_episodes,
    make_net,
    one_by_one,
    vmapped_gradient,
)
from torch import Tensor
from torch.nn.utils.parametrizations import weight_norm

from metarun.config import known
from metarun.types import Episode, EpisodeBatch, Meta, Net, TaskShape

REGRESSION = TaskShape("regression", 1, 10, 10)
CLASSES = TaskShape("classification", WAY, SHOT, 2)


def small_mlp(item: tuple[int, ...] = (1,), outputs: int = 1, widths: tuple[int, ...] = (5, 4)) -> Net:
    return known("model")["mlp"](item_shape=item, outputs=outputs, widths=list(widths), norm="none")


def curves(seed: int = 0) -> EpisodeBatch:
    """Points on a line of its own in every task."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.randn(TASKS, 1, 1, generator=generator, dtype=torch.float64)
    a, b = torch.randn(2, TASKS, 6, 1, generator=generator, dtype=torch.float64)
    return EpisodeBatch(a, slope * a, b, slope * b)


# CAVIA


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("layer", [None, "norm0", "norm1"])
def test_cavia_adapts_a_context_that_scales_and_shifts_one_norms_output(layer: str | None, steps: int) -> None:
    ours, net, meta = parts("cavia", layer=layer, context=4, inner_steps=steps, eval_steps=steps, inner_lr=2.0)
    at = int((layer or "norm0")[-1])

    def with_context(p: Tensor, x: Tensor) -> Tensor:
        factor = 1 + F.linear(p, meta[f"algo.context.norm{at}.scale"])
        shift = F.linear(p, meta[f"algo.context.norm{at}.shift"])
        return F.linear(embed(meta, x, (at, factor, shift)), meta["head.weight"], meta["head.bias"])

    def reference(task: Episode) -> Tensor:
        p = torch.zeros(4, dtype=torch.float64, requires_grad=True)
        for _ in range(steps):
            loss = F.cross_entropy(with_context(p, task.support_x), task.support_y)
            p = p - 2.0 * torch.autograd.grad(loss, p, create_graph=True)[0]
        return with_context(p, task.query_x)

    same_predictions(ours, net, meta, make_episodes(), reference)


def test_cavia_without_norms_is_the_context_beside_the_first_layers_input() -> None:
    ours, net, meta = parts("cavia", small_mlp(), context=3, inner_steps=2, eval_steps=2, inner_lr=0.1)

    def with_context(p: Tensor, x: Tensor) -> Tensor:
        wide = torch.cat([meta["linear0.weight"], meta["algo.context.linear0.shift"]], 1)
        x = F.relu(F.linear(torch.cat([x, p.expand(len(x), -1)], 1), wide, meta["linear0.bias"]))
        x = F.relu(F.linear(x, meta["linear1.weight"], meta["linear1.bias"]))
        return F.linear(x, meta["head.weight"], meta["head.bias"])

    def reference(task: Episode) -> Tensor:
        p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            loss = F.mse_loss(with_context(p, task.support_x), task.support_y)
            p = p - 0.1 * torch.autograd.grad(loss, p, create_graph=True)[0]
        return with_context(p, task.query_x)

    same_predictions(ours, net, meta, curves(), reference)


@pytest.mark.parametrize(("blocks", "layer"), [(1, "norm0"), (2, "norm0"), (3, "norm1"), (4, "norm2"), (8, "norm4")])
def test_cavias_context_enters_two_thirds_of_the_way_in(blocks: int, layer: str) -> None:
    net = known("model")["conv4"](item_shape=(1, 28, 28), outputs=5, filters=4, blocks=blocks)
    names = make_algorithm("cavia").init(net, torch.Generator()).keys()
    assert {n for n in names if n.startswith("algo.")} == {f"algo.context.{layer}.scale", f"algo.context.{layer}.shift"}


def test_cavia_starts_as_the_network_without_a_context() -> None:
    ours, net, meta = parts("cavia", eval_steps=3)
    (task,) = one_by_one(make_episodes(tasks=1))
    each = ours.trajectory(net, meta, task)
    assert len(each) == 4
    assert gap(each[0], classify(meta, task.query_x)) < TOLERANCE
    assert gap(each[1], each[0]) > 1e-4


def test_cavia_refuses_a_layer_that_there_is_not_and_names_those_there_are() -> None:
    net = make_net()
    with pytest.raises(ValueError, match=r"layer=norm9: .*norm0, norm1, head"):
        make_algorithm("cavia", layer="norm9").check(net, CLASSES)
    make_algorithm("cavia", layer="linear1").check(small_mlp(), REGRESSION)
    for layer in (None, "norm0", "norm1", "head"):
        ours = make_algorithm("cavia", layer=layer)
        ours.check(net, CLASSES)
        assert any(n.startswith(f"algo.context.{layer or 'norm0'}.") for n in ours.init(net, torch.Generator()))


# Proto-MAML


def means_head(w: Meta, task: Episode) -> Meta:
    features = embed(w, task.support_x)
    means = torch.stack([features[task.support_y == c].mean(0) for c in range(WAY)])
    return w | {"head.weight": 2 * means, "head.bias": -torch.stack([m @ m for m in means])}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_protomaml_is_maml_from_a_head_of_class_means(steps: int, first_order: bool) -> None:
    ours, net, meta = parts("protomaml", inner_steps=steps, eval_steps=steps, inner_lr=0.01, first_order=first_order)

    def reference(task: Episode) -> Tensor:
        w = {n: v.clone() for n, v in means_head(meta, task).items()}  # the head no longer follows the trunk
        for _ in range(steps):
            loss = F.cross_entropy(classify(w, task.support_x), task.support_y)
            slope = torch.autograd.grad(loss, [*w.values()], create_graph=not first_order, retain_graph=True)
            w = {n: v - 0.01 * g for (n, v), g in zip(w.items(), slope)}
        return classify(w, task.query_x)

    assert not [n for n in meta if n.startswith("head.")]
    same_predictions(ours, net, meta, make_episodes(), reference)


def test_protomaml_answers_like_a_prototypical_network_before_its_first_step() -> None:
    net = make_net(norm="group")
    ours, _, meta = parts("protomaml", net, eval_steps=2)
    for task in one_by_one(make_episodes()):
        each = ours.trajectory(net, meta, task)
        assert len(each) == 3
        distances = make_algorithm("protonet").predict(net, meta, task)
        assert gap(each[0].softmax(1), distances.softmax(1)) < TOLERANCE
        assert gap(each[1].softmax(1), distances.softmax(1)) > 1e-3


# Meta-LSTM


def squashed(x: float) -> list[float]:
    """Ravi & Larochelle 2017, section 3.2, p = 10, as it stands there"""
    if abs(x) >= exp(-10):
        return [log(abs(x)) / 10, 1.0 if x > 0 else -1.0]
    return [-1.0, exp(10) * x]


def weight_by_weight(meta: Meta, answer: Callable[[Meta, Tensor], Tensor], task: Episode, steps: int) -> Tensor:
    """Every single weight in a Python loop of its own, with torch's LSTM cell."""
    names = [n for n in meta if not n.startswith("algo.")]
    weight, hidden = meta["algo.lstm.weight"], meta["algo.lstm.weight"].shape[1] - 4
    cell = torch.nn.LSTMCell(4, hidden).double()
    given = {"weight_hh": weight[:, :hidden], "weight_ih": weight[:, hidden:], "bias_ih": meta["algo.lstm.bias"]}
    given["bias_hh"] = torch.zeros(4 * hidden, dtype=torch.float64)
    zero, nothing = torch.zeros(1, hidden, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    w = {n: [v[None] for v in meta[n].flatten()] for n in names}
    states = {n: [((zero, zero), nothing, nothing) for _ in w[n]] for n in names}

    def gate(name: str, h: Tensor, w: Tensor, before: Tensor) -> Tensor:
        level = meta[f"algo.{name}.weight"] @ torch.cat([h, w, before]) + meta[f"algo.{name}.bias"]
        return 1 / (1 + torch.exp(-level))

    def whole() -> Meta:
        return {n: torch.cat(w[n]).view(meta[n].shape) for n in names}

    for _ in range(steps):
        now = {n: v.detach().requires_grad_() for n, v in whole().items()}
        f = F.mse_loss if task.support_y.is_floating_point() else F.cross_entropy
        loss = f(answer(now, task.support_x), task.support_y)
        slopes = dict(zip(names, torch.autograd.grad(loss, [*now.values()])))
        for n in names:
            for j, slope in enumerate(slopes[n].flatten().tolist()):
                lstm, forget, rate = states[n][j]
                seen = torch.tensor([squashed(slope) + squashed(loss.item())], dtype=torch.float64)
                lstm = torch.func.functional_call(cell, given, (seen, lstm))
                forget = gate("forget", lstm[0][0], w[n][j], forget)
                rate = gate("input", lstm[0][0], w[n][j], rate)
                w[n][j] = forget * w[n][j] - rate * slope
                states[n][j] = lstm, forget, rate
    return answer(whole(), task.query_x)


def tiny_images(seed: int = 3) -> EpisodeBatch:
    episodes = make_episodes(seed=seed)
    return episodes._replace(support_x=episodes.support_x[..., :2, :3], query_x=episodes.query_x[..., :2, :3])


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_metalstm_updates_each_weight_by_one_lstm(kind: str, steps: int) -> None:
    classes = kind == "classification"
    net = small_mlp((1, 2, 3), WAY, (3,)) if classes else small_mlp(widths=(3,))
    ours, _, meta = parts("metalstm", net, hidden=5, input_gate=0.3, inner_steps=steps, eval_steps=steps)
    episodes = tiny_images() if classes else curves()

    def reference(task: Episode) -> Tensor:
        return weight_by_weight(meta, fully_connected, task, steps)

    same_predictions(ours, net, meta, episodes, reference)


def test_metalstm_squashes_small_and_large_numbers_as_the_paper_does() -> None:
    from metarun.algorithms.metalstm import squash

    numbers = [0.0, 1e-12, -1e-7, 4.5e-5, -4.6e-5, 0.3, -2.0, 50.0]
    assert torch.allclose(
        squash(torch.tensor(numbers, dtype=torch.float64)).T,
        torch.tensor([squashed(x) for x in numbers], dtype=torch.float64),
        rtol=1e-12,
        atol=0,
    )


def test_metalstm_starts_near_gradient_descent_with_its_two_gates() -> None:
    ours, net = make_algorithm("metalstm", forget_gate=0.97, input_gate=0.02, eval_steps=2), make_net()
    meta = {n: w.double().requires_grad_() for n, w in ours.init(net, torch.Generator().manual_seed(0)).items()}
    w = {n: v for n, v in meta.items() if not n.startswith("algo.")}
    (task,) = one_by_one(make_episodes(tasks=1))
    slopes = torch.autograd.grad(F.cross_entropy(classify(w, task.support_x), task.support_y), [*w.values()])
    before, after, _ = ours.adapt(net, meta, task, 2)
    for (n, v), g in zip(w.items(), slopes):
        assert torch.equal(before[n], v)
        assert gap(after[n], 0.97 * v - 0.02 * g) < 2e-3, n
        assert gap(after[n], v) > 1e-2
    assert len(ours.trajectory(net, meta, task)) == 3


# Baseline and Baseline++


def supervised_batch(classes: int = 7, seed: int = 4) -> Episode:
    """An empty support set, and queries of all training classes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(12, 1, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (12,), generator=generator)
    return Episode(x[:0], y[:0], x, y)


def cosine_logits(v: Tensor, size: Tensor, scale: float, features: Tensor) -> Tensor:
    """One cosine at a time."""
    rows = [[scale * size[c] * F.cosine_similarity(f, v[c], dim=0) for c in range(len(v))] for f in features]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("name", ["baseline", "baselinepp"])
def test_baselines_train_a_classifier_of_all_training_classes(name: str) -> None:
    net = known("model")["conv4"](item_shape=(1, 8, 8), outputs=7, filters=8, blocks=2)
    ours, _, meta = parts(name, net)
    assert ours.supervised
    tolerance = 1e-4 if name == "baselinepp" else TOLERANCE  # for what keeps it from dividing by 0

    def logits(x: Tensor) -> Tensor:
        if name == "baseline":
            return classify(meta, x)
        return cosine_logits(meta["head.weight"], meta["algo.size.head.weight"], 2.0, embed(meta, x))

    batch = supervised_batch()
    whole = batch._replace(support_x=batch.query_x[:4], support_y=batch.query_y[:4])  # an episode with both
    for task in (batch, whole._replace(query_x=batch.query_x[4:], query_y=batch.query_y[4:])):
        ours_gradient, metrics, _ = vmapped_gradient(ours, net, meta, EpisodeBatch(*(part[None] for part in task)))
        loss = F.cross_entropy(logits(batch.query_x), batch.query_y)
        plain = dict(zip(meta, torch.autograd.grad(loss, [*meta.values()])))
        for n in meta:
            assert gap(ours_gradient[n], plain[n]) < tolerance, n
        assert gap(metrics["loss"], loss) < tolerance
        right = (logits(batch.query_x).argmax(1) == batch.query_y).double().mean()
        assert metrics["accuracy"] == pytest.approx(float(right))


def by_sgd(head: torch.nn.Module, support: Tensor, y: Tensor, epochs: int, batch: int, lr: float) -> torch.nn.Module:
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9, dampening=0.9, weight_decay=0.001)
    batch = min(batch, len(y))
    updates = epochs * (len(y) // batch + (len(y) % batch > 0))
    in_turn = list(range(len(y))) * updates
    for update in range(updates):
        rows = in_turn[update * batch : (update + 1) * batch]
        optimizer.zero_grad()
        F.cross_entropy(head(support[rows]), y[rows]).backward()
        optimizer.step()
    return head


SGDS = [(1, 4, 0.01), (3, 4, 0.05), (10, 5, 0.3), (4, 100, 0.3)]


@pytest.mark.parametrize(("epochs", "batch", "lr"), SGDS)
def test_baselines_new_head_is_torchs_sgd_on_the_support_examples_in_turn(epochs: int, batch: int, lr: float) -> None:
    ours, net, meta = parts("baseline", eval_epochs=epochs, eval_batch=batch, eval_lr=lr)
    for task in one_by_one(make_episodes()):
        head = torch.nn.Linear(embed(meta, task.support_x).shape[1], WAY).double()
        for w in head.parameters():
            torch.nn.init.zeros_(w)
        by_sgd(head, embed(meta, task.support_x).detach(), task.support_y, epochs, batch, lr)
        plain = head(embed(meta, task.query_x))
        assert gap(ours.predict(net, meta, task), plain) < TOLERANCE
        backwards = task._replace(support_x=task.support_x.flip(0), support_y=task.support_y.flip(0))
        if batch < len(task.support_y):
            assert gap(ours.predict(net, meta, backwards), plain) > 1e-4


@pytest.mark.parametrize("scale", [None, 7.0])
@pytest.mark.parametrize(("epochs", "batch", "lr"), SGDS)
def test_baselinepps_new_head_is_torchs_sgd_under_weight_norm(
    epochs: int, batch: int, lr: float, scale: float | None
) -> None:
    ours, net, meta = parts("baselinepp", eval_epochs=epochs, eval_batch=batch, eval_lr=lr, scale=scale)

    def directions(x: Tensor) -> Tensor:
        f = embed(meta, x).detach()
        return f / (f.norm(dim=1, keepdim=True) + 1e-5)

    for task in one_by_one(make_episodes()):
        support = directions(task.support_x)
        linear = torch.nn.Linear(support.shape[1], WAY, bias=False).double()
        mean = support.mean(0)
        linear.weight.data = (mean / mean.norm() / 3**0.5).repeat(WAY, 1)
        weight_norm(linear, dim=0)
        head = torch.nn.Sequential(linear, Times(scale or 2.0))
        by_sgd(head, support, task.support_y, epochs, batch, lr)
        assert gap(ours.predict(net, meta, task), head(directions(task.query_x))) < TOLERANCE


class Times(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


@pytest.mark.parametrize("name", ["baseline", "baselinepp"])
def test_baselines_head_of_the_training_classes_is_left_behind(name: str) -> None:
    ours = make_algorithm(name)
    shapes = {"item_shape": (1, 8, 8), "filters": 8, "blocks": 2}
    nets = [known("model")["conv4"](outputs=n, **shapes) for n in (300, 5)]
    trained, wanted = (ours.at_test(ours.init(net, torch.Generator())) for net in nets)
    assert {n: w.shape for n, w in trained.items()} == {n: w.shape for n, w in wanted.items()}
    assert trained.keys() == nets[0].init(torch.Generator(), head=False).keys()
    meta = {n: w.double() for n, w in trained.items()}
    net = known("model")["conv4"](outputs=WAY, **shapes)
    for task in one_by_one(make_episodes()):
        assert ours.predict(net, meta, task).shape == (len(task.query_y), WAY)


@pytest.mark.parametrize(("classes", "asked", "scale"), [(200, None, 2), (201, None, 10), (201, 3.0, 3)])
def test_baselinepps_scale_is_larger_for_many_classes(classes: int, asked: float | None, scale: float) -> None:
    net = known("model")["mlp"](item_shape=(1, 8, 8), outputs=classes, widths=[6])
    ours, _, meta = parts("baselinepp", net, scale=asked)
    features = torch.rand(4, 6, dtype=torch.float64)
    plain = cosine_logits(meta["head.weight"], meta["algo.size.head.weight"], scale, features)
    assert gap(ours.logits(net, meta, features), plain) < 1e-4


def test_baselinepp_bears_features_that_are_all_zero() -> None:
    ours, net, meta = parts("baselinepp")
    meta = {n: w - 100 if n == "norm1.bias" else w for n, w in meta.items()}  # no ReLU lets anything through
    (task,) = one_by_one(make_episodes(tasks=1))
    loss = ours.loss(net, meta, task).loss
    assert all(
        g.isfinite().all() for g in torch.autograd.grad(loss, [*meta.values()], allow_unused=True) if g is not None
    )
    assert ours.predict(net, meta, task).isfinite().all()


@pytest.mark.parametrize("name", ["protomaml", "baseline", "baselinepp"])
def test_methods_of_classes_refuse_regression_and_say_what_fits(name: str) -> None:
    ours = make_algorithm(name)
    ours.check(make_net(), CLASSES)
    with pytest.raises(ValueError, match="regression; r2d2, maml"):
        ours.check(small_mlp(), REGRESSION)
