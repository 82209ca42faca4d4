"""Reptile: train on a task for a few mini-batches, then move the weights towards where that ended.

    w <- w + e * mean over tasks of (adapted(w) - w)

Nichol, Achiam & Schulman 2018, algorithm 2. As a loss, 0.5 * |w - stopgrad(adapted)|^2 has exactly that update as its
gradient, so the outer optimizer is SGD whose rate is the meta step size e.

The inner optimizer is Adam without momentum (beta1 = 0), as in the authors' code. Differences from it: Adam's second
moment starts afresh with every task instead of carrying over, and mini-batches walk through the examples shot by shot
(balanced over classes) instead of shuffled. A training task's examples are its support and query sets together, so
`task.shot + task.query` is the paper's number of training shots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.func import grad_and_value

from metarun.algorithms.inner import accuracy, detached
from metarun.types import Episode, Meta, Net, TaskLoss, register, setting

BETA2, EPS = 0.999, 1e-8


@register("algo", "reptile")
@dataclass(frozen=True)
class Reptile:
    inner_lr: float = setting(1e-3, above=0)
    inner_steps: int = setting(5, least=1)
    inner_batch: int = setting(10, least=1)
    eval_steps: int = setting(50, least=0)

    def init(self, net: Net, generator: Generator) -> Meta:
        return net.init(generator)

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        x = torch.cat([episode.support_x, episode.query_x])
        y = torch.cat([episode.support_y, episode.query_y])
        adapted, metrics = self._train(net, detached(meta), x, y, self.inner_steps)
        gap = [0.5 * (w - adapted[name].detach()).square().sum() for name, w in meta.items()]
        return TaskLoss(torch.stack(gap).sum(), metrics)

    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        adapted, _ = self._train(net, meta, episode.support_x, episode.support_y, self.eval_steps)
        return net(adapted, episode.query_x, support=episode.support_x)

    def _train(self, net: Net, weights: Meta, x: Tensor, y: Tensor, steps: int) -> tuple[Meta, dict[str, Tensor]]:
        """Weights after `steps` Adam updates; loss and accuracy of the last mini-batch before its update."""

        def loss(fast: Meta, rows: Tensor) -> tuple[Tensor, Tensor]:
            logits = net(fast, x[rows])
            return F.cross_entropy(logits, y[rows]), accuracy(logits.detach(), y[rows])

        batch = min(self.inner_batch, len(x))
        moment = {name: torch.zeros_like(w) for name, w in weights.items()}
        metrics: dict[str, Tensor] = {}
        for t in range(steps):
            rows = torch.arange(t * batch, (t + 1) * batch, device=x.device) % len(x)
            slope, (value, right) = grad_and_value(loss, has_aux=True)(weights, rows)
            moment = {name: BETA2 * m + (1 - BETA2) * slope[name].square() for name, m in moment.items()}
            unbias = 1 - BETA2 ** (t + 1)
            weights = {
                name: w - self.inner_lr * slope[name] / ((moment[name] / unbias).sqrt() + EPS)
                for name, w in weights.items()
            }
            metrics = {"loss": value.detach(), "accuracy": right}
        return weights, metrics
