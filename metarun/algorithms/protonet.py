"""Prototypical network: a class is the mean of its embedded support examples, a query goes to the nearest one.

    logit of class c = -|f(query) - mean of f(support of c)|^2

Snell, Swersky & Zemel 2017, algorithm 1. Support and queries are embedded in one pass, as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metarun.algorithms.inner import detached, outcome
from metarun.types import Algorithm, Episode, Meta, Net, TaskLoss, register


@register("algo", "protonet")
@dataclass(frozen=True)
class ProtoNet(Algorithm):
    def init(self, net: Net, generator: Generator) -> Meta:
        return net.init(generator, head=False)

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        moments: Meta = {}
        logits = self._logits(net, meta, episode, moments)
        return outcome(logits, episode.query_y)._replace(moments=detached(moments))

    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        return self._logits(net, meta, episode, None)

    def _logits(self, net: Net, meta: Meta, episode: Episode, moments: Meta | None) -> Tensor:
        both = torch.cat([episode.support_x, episode.query_x])
        features = net.features(meta, both, support=episode.support_x, moments=moments)
        support, query = features.split([len(episode.support_x), len(episode.query_x)])
        member = F.one_hot(episode.support_y, net.outputs).to(support.dtype)  # (support, way)
        prototypes = (member.T @ support) / member.sum(0)[:, None]
        return -squared_distance(query, prototypes)


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """a: (n, d), b: (m, d) -> (n, m) squared Euclidean distances, as one matrix product"""
    return a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)
