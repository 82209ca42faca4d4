"""Baseline: an ordinary classifier of all training classes; for a task, a new linear head on its frozen features.

    training   min over w, head of  cross-entropy over random examples of all training classes
    a task     min over a new head of  cross-entropy of the support set, by SGD with momentum and weight decay

Chen, Liu, Kira, Wang & Huang 2019, section 3. The rate, momentum, dampening, weight decay, batch size and number of
updates of a task's head are the authors' code's. Differences: the new head starts at zero, not at random, and
mini-batches walk round the support examples in turn, not shuffled, so that a task always gets the same answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from metarun.algorithms.embedding import members, needs_classes
from metarun.algorithms.inner import OWN, detached, is_head, outcome
from metarun.types import Algorithm, Episode, Meta, Net, TaskLoss, TaskShape, register, setting

MOMENTUM, DAMPENING, DECAY = 0.9, 0.9, 0.001

Head = tuple[Tensor, ...]


@register("algo", "baseline")
@dataclass(frozen=True)
class Baseline(Algorithm):
    """`eval_lr`, `eval_epochs` and `eval_batch` are of the SGD that trains a task's head."""

    supervised: ClassVar[bool] = True
    eval_lr: float = setting(0.01, above=0)
    eval_epochs: int = setting(100, least=1)
    eval_batch: int = setting(4, least=1)

    def check(self, net: Net, task: TaskShape) -> None:
        needs_classes(task)

    @property
    def in_turn(self) -> bool:
        return True

    def init(self, net: Net, generator: Generator) -> Meta:
        return net.init(generator)

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        x = torch.cat([episode.support_x, episode.query_x])
        y = torch.cat([episode.support_y, episode.query_y])
        moments: Meta = {}
        features = net.features(meta, x, moments=moments)
        return outcome(self.logits(net, meta, features), y)._replace(moments=detached(moments))

    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        support = net.features(meta, episode.support_x)
        query = net.features(meta, episode.query_x, support=episode.support_x)
        return self.answer(support, members(episode.support_y, net.outputs, support), query)

    def at_test(self, meta: Meta) -> Meta:
        """The trunk: the head is of the training classes."""
        return {name: w for name, w in meta.items() if not is_head(name) and not name.startswith(OWN)}

    def logits(self, net: Net, meta: Meta, features: Tensor) -> Tensor:
        """(n, features) -> (n, training classes)"""
        return net.head(meta, features)

    def answer(self, support: Tensor, member: Tensor, query: Tensor) -> Tensor:
        """(query, way) logits of a head trained on the support set. member: (support, way) one-hot

        From zero, SGD stays among the combinations a @ [f, 1] of the support features f, weights and bias alike, and
        updates these as it would a. So only a is kept, and an update costs the same however many features there are.
        """
        alike = support @ support.T + 1

        def slopes(head: Head, rows: Tensor, chosen: Tensor) -> Head:
            (a,) = head
            return (error(alike[rows] @ a.T, member[rows]).T @ chosen,)

        (a,) = self.trained((torch.zeros_like(member.T),), slopes)
        return (query @ support.T + 1) @ a.T

    def trained(self, head: Head, slopes: Callable[[Head, Tensor, Tensor], Head]) -> Head:
        """What `eval_epochs` epochs of SGD make of a head whose first tensor has a column for each support example.

        `slopes` gives the loss's gradient on the examples `rows`; `chosen` is (rows, support) one-hot.
        """
        every = torch.eye(head[0].shape[1], dtype=head[0].dtype, device=head[0].device)
        items = len(every)
        batch = min(self.eval_batch, items)
        velocity: Head = ()
        for update in range(self.eval_epochs * -(-items // batch)):
            rows = torch.arange(update * batch, (update + 1) * batch, device=every.device) % items
            pull = [s + DECAY * w for s, w in zip(slopes(head, rows, every[rows]), head)]
            pairs = zip(velocity, pull)
            velocity = tuple(MOMENTUM * v + (1 - DAMPENING) * p for v, p in pairs) if velocity else tuple(pull)
            head = tuple(w - self.eval_lr * v for w, v in zip(head, velocity))
        return head


def error(logits: Tensor, member: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy for the logits, (n, way)."""
    return (logits.softmax(1) - member) / len(logits)
