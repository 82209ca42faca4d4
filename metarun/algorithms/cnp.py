"""Conditional neural process: the support set as one vector, from which every query is answered with its uncertainty.

    r = mean over the support of h([phi(x), y])          (m, s) = g([r, phi(x*)])
    loss = mean over the queries of -log N(y*; m, sigma^2),  sigma = 0.1 + 0.9 softplus(s)

Garnelo, Rosenbaum, Maddison, Ramalho, Saxton, Shanahan, Teh, Rezende & Eslami 2018, section 2; the bound on sigma and
the sizes of h and g are those of the authors' code for curves. The components of a target are independent given the
query, and their log-likelihoods add up. The prediction is m.

Differences: phi is the network without its head, in the paper x itself; support and queries pass it together. The
number of support examples is the one that is set, in the paper it is drawn anew for every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import log, pi, prod

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metarun.algorithms.embedding import embedded
from metarun.algorithms.inner import OWN, detached, own
from metarun.layers import linear, xavier
from metarun.types import Algorithm, Episode, Meta, Net, TaskLoss, TaskShape, register, setting

LEAST_SIGMA = 0.1


@register("algo", "cnp")
@dataclass(frozen=True)
class CNP(Algorithm):
    """`encoder` holds the widths of h's layers, the last of them the size of r; `decoder` those of g's hidden ones."""

    encoder: list[int] = setting([128, 128, 128, 128])
    decoder: list[int] = setting([128, 128])

    def __post_init__(self) -> None:
        for name, widths in (("encoder", self.encoder), ("decoder", self.decoder)):
            if not widths or min(widths) < 1:
                raise ValueError(f"{name}={widths}: give 1 or more layer widths of at least 1")

    def check(self, net: Net, task: TaskShape) -> None:
        if task.kind != "regression":
            raise ValueError(f"predicts numbers, and these tasks are {task.kind}; protonet, maml fit")

    def init(self, net: Net, generator: Generator) -> Meta:
        size = prod(net.feature_shape)
        meta = net.init(generator, head=False)
        meta |= mlp_init(f"{OWN}encoder", [size + net.outputs, *self.encoder], generator)
        return meta | mlp_init(f"{OWN}decoder", [self.encoder[-1] + size, *self.decoder, 2 * net.outputs], generator)

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        moments: Meta = {}
        mean, sigma = self.answer(net, meta, episode, moments)
        loss = surprise(mean, sigma, episode.query_y)
        mse = F.mse_loss(mean, episode.query_y)
        return TaskLoss(loss, {"loss": loss.detach(), "mse": mse.detach()}, detached(moments))

    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        return self.answer(net, meta, episode)[0]

    def answer(self, net: Net, meta: Meta, episode: Episode, moments: Meta | None = None) -> tuple[Tensor, Tensor]:
        """(query, *target) means, and as many standard deviations; `moments` is filled with the norm statistics."""
        support, query = embedded(net, meta, episode, moments)
        r = mlp(own(meta, "encoder"), torch.cat([support, episode.support_y], 1)).mean(0)
        out = mlp(own(meta, "decoder"), torch.cat([r.expand(len(query), -1), query], 1))
        mean, s = out.chunk(2, 1)
        return mean, LEAST_SIGMA + (1 - LEAST_SIGMA) * F.softplus(s)


def surprise(mean: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
    """() minus the log-density of y under independent Gaussians, summed over a target, mean over targets. All (n, d)"""
    each = 0.5 * ((y - mean) / sigma).square() + sigma.log() + 0.5 * log(2 * pi)
    return each.sum(1).mean()


def mlp_init(prefix: str, widths: list[int], generator: Generator) -> Meta:
    """Weights `PREFIX.0.weight`, `PREFIX.0.bias`, ... of layers from each width to the next."""
    meta: Meta = {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        meta |= {
            f"{prefix}.{i}.weight": xavier((outputs, inputs), generator),
            f"{prefix}.{i}.bias": torch.zeros(outputs),
        }
    return meta


def mlp(weights: Meta, x: Tensor) -> Tensor:
    """x: (n, inputs) through layers `0.weight`, `0.bias`, ..., with a ReLU between them."""
    layers = len(weights) // 2
    for i in range(layers):
        x = linear(x, weights[f"{i}.weight"], weights[f"{i}.bias"])
        x = F.relu(x) if i < layers - 1 else x
    return x
