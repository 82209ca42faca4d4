"""What methods share that compare embeddings: one pass over both sets, one-hot classes, distances, cosines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.types import Episode, Meta, Net, TaskShape

SHORTEST = 1e-3
"""Vectors below this length are not stretched to length 1: the gradient there would be unbounded."""


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


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    """a: (n, d), b: (m, d) -> (n, m) squared Euclidean distances, as one matrix product"""
    return a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """a: (n, d), b: (m, d) -> (n, m)"""
    return direction(a) @ direction(b).T


def direction(x: Tensor) -> Tensor:
    """The rows at length 1. The zero row stays, with a gradient that is finite."""
    return x * torch.rsqrt(x.square().sum(1, keepdim=True).clamp_min(SHORTEST**2))
