"""What methods share: gradient descent on a task, and the classification loss of its queries."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from metarun.types import Episode, Meta, Net, TaskLoss


def descend(loss: Callable[[Meta], Tensor], weights: Meta, lr: float | Tensor, steps: int) -> Meta:
    """`steps` plain gradient steps of rate `lr` from `weights`; differentiable through all of them."""
    for _ in range(steps):
        slope = grad(loss)(weights)
        weights = {name: w - lr * slope[name] for name, w in weights.items()}
    return weights


def adapt(net: Net, meta: Meta, episode: Episode, lr: float | Tensor, steps: int) -> Meta:
    """All weights, adapted to the episode's support set (Finn et al. 2017, eq. 1)."""
    return descend(lambda fast: F.cross_entropy(net(fast, episode.support_x), episode.support_y), meta, lr, steps)


def detached(meta: Meta) -> Meta:
    return {name: w.detach() for name, w in meta.items()}


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """() fraction right, in [0, 1]"""
    return (logits.argmax(-1) == y).to(logits.dtype).mean()


def classification(logits: Tensor, y: Tensor) -> TaskLoss:
    """Cross-entropy of the queries, with the loss and accuracy to report."""
    loss = F.cross_entropy(logits, y)
    return TaskLoss(loss, {"loss": loss.detach(), "accuracy": accuracy(logits.detach(), y)})
