"""What the slow, obvious versions of the methods share. Nothing in it is metarun's: not the network, not the norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from contract.small import gap, loop_gradient, make_algorithm, make_meta, make_net, one_by_one, vmapped_gradient
from torch import Tensor

from metarun.types import Episode, EpisodeBatch, Meta, Net

TOLERANCE = 1e-9


def maps(w: Meta, x: Tensor, running: Meta | None = None, film: tuple[int, Tensor, Tensor] | None = None) -> Tensor:
    """`small.CONV4` with batch statistics or moving averages; FiLM after norm i for film = (i, factor, shift)."""
    for i in range(2):
        x = F.conv2d(x, w[f"conv{i}.weight"], None, stride=2, padding=1)
        kept = (None, None) if running is None else (running[f"norm{i}.mean"], running[f"norm{i}.var"])
        x = F.batch_norm(x, *kept, w[f"norm{i}.weight"], w[f"norm{i}.bias"], training=running is None)
        if film and film[0] == i:
            x = film[1][:, None, None] * x + film[2][:, None, None]
        x = F.relu(x)
    return x


def embed(w: Meta, x: Tensor, film: tuple[int, Tensor, Tensor] | None = None) -> Tensor:
    return maps(w, x, film=film).flatten(1)


def classify(w: Meta, x: Tensor, running: Meta | None = None) -> Tensor:
    return F.linear(maps(w, x, running).flatten(1), w["head.weight"], w["head.bias"])


def fully_connected(w: Meta, x: Tensor) -> Tensor:
    """An MLP without norms."""
    hidden = sum(n.startswith("linear") and n.endswith(".weight") for n in w)
    for i in range(hidden):
        x = F.relu(F.linear(x.flatten(1), w[f"linear{i}.weight"], w[f"linear{i}.bias"]))
    return F.linear(x, w["head.weight"], w["head.bias"])


def slopes(loss: Tensor, weights: Meta) -> Meta:
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values()), create_graph=True)))


def leaves(w: Meta) -> Meta:
    return {n: v.detach().clone().requires_grad_() for n, v in w.items()}


def parts(name: str, given: Net | None = None, **settings: Any) -> tuple[Any, Net, Meta]:
    """The method, a network (`small.CONV4` unless one is given) and shaken weights of both."""
    algorithm, net = make_algorithm(name, **settings), make_net() if given is None else given
    return algorithm, net, make_meta(algorithm, net)


def same_gradient(
    algorithm: Any,
    net: Net,
    meta: Meta,
    episodes: EpisodeBatch,
    loss: Callable[[Episode], Tensor],
    least: float = 1e-7,
    tolerance: float = TOLERANCE,
) -> None:
    """The engine's meta-gradient and reported loss are those of `loss`, and none of the gradients is below `least`."""
    ours, metrics, _ = vmapped_gradient(algorithm, net, meta, episodes)
    plain = loop_gradient(loss, meta, episodes)
    for n in plain:
        assert plain[n].norm() > least, n
        assert gap(ours[n], plain[n]) < tolerance, n
    mean = torch.stack([loss(task) for task in one_by_one(episodes)]).mean()
    assert gap(metrics["loss"], mean) < tolerance


def same_predictions(
    algorithm: Any,
    net: Net,
    meta: Meta,
    episodes: EpisodeBatch,
    predict: Callable[[Episode], Tensor],
    tolerance: float = TOLERANCE,
) -> None:
    """Every task's prediction is `predict`'s, and the meta-gradient that of its loss."""

    def loss(task: Episode) -> Tensor:
        f = F.mse_loss if task.query_y.is_floating_point() else F.cross_entropy
        return f(predict(task), task.query_y)

    for task in one_by_one(episodes):
        assert gap(algorithm.predict(net, meta, task), predict(task)) < tolerance
    same_gradient(algorithm, net, meta, episodes, loss, tolerance=tolerance)
