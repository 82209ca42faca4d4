"""The methods that answer from the embeddings of both sets, and what they share: classes, means, distances, cosines."""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.algorithms.inner import detached, outcome
from metarun.types import Algorithm, Episode, Meta, Net, TaskLoss, TaskShape

SHORTEST = 1e-3
"""Vectors below this length are not stretched to length 1: the gradient there would be unbounded."""


class EmbeddingBased(Algorithm):
    """A method that answers in one go, from one pass over support and queries, in training as in tests."""

    @abstractmethod
    def answer(self, net: Net, meta: Meta, episode: Episode, moments: Meta | None) -> Tensor:
        """(query, way) logits, or (query, *target); `moments` is filled with the norm statistics of the pass."""

    def check(self, net: Net, task: TaskShape) -> None:
        needs_classes(task)

    def judged(self, prediction: Tensor, y: Tensor) -> TaskLoss:
        """The loss of the answer."""
        return outcome(prediction, y)

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        moments: Meta = {}
        prediction = self.answer(net, meta, episode, moments)
        return self.judged(prediction, episode.query_y)._replace(moments=detached(moments))

    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        return self.answer(net, meta, episode, None)


def needs_classes(task: TaskShape) -> None:
    """Raises `ValueError` where there are none, or none to tell apart."""
    if task.kind == "regression":
        raise ValueError("needs classes, and these tasks are regression; r2d2, maml, anil, reptile fit")
    if task.way < 2:
        raise ValueError(f"way={task.way}: there is nothing to tell a class from; 2 classes or more fit")


def embedded(net: Net, meta: Meta, episode: Episode, moments: Meta | None = None) -> tuple[Tensor, Tensor]:
    """(support, features), (query, features): embedded together, so that batch statistics are over both."""
    both = torch.cat([episode.support_x, episode.query_x])
    features = net.features(meta, both, support=episode.support_x, moments=moments)
    support, query = features.split([len(episode.support_x), len(episode.query_x)])
    return support, query


def members(y: Tensor, way: int, like: Tensor) -> Tensor:
    """(n,) class ids -> (n, way) one-hot, of the dtype of `like`"""
    return F.one_hot(y, way).to(like.dtype)


def class_means(features: Tensor, y: Tensor, way: int) -> Tensor:
    """(n, d) of classes (n,) -> (way, d)"""
    member = members(y, way, features)
    return (member.T @ features) / member.sum(0)[:, None]


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """a: (n, d), b: (m, d) -> (n, m) squared Euclidean distances, as one matrix product"""
    return a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """a: (n, d), b: (m, d) -> (n, m)"""
    return direction(a) @ direction(b).T


def direction(x: Tensor) -> Tensor:
    """The rows at length 1. The zero row stays, with a gradient that is finite."""
    return x * torch.rsqrt(x.square().sum(1, keepdim=True).clamp_min(SHORTEST**2))
