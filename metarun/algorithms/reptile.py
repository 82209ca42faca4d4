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

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from metarun.algorithms.inner import GradientBased, detached, objective, outcome
from metarun.types import Algorithm, Episode, Meta, Net, TaskLoss, register, setting

BETA2, EPS = 0.999, 1e-8


@register("algo", "reptile")
@dataclass(frozen=True)
class Reptile(GradientBased):
    inner_lr: float = setting(1e-3, above=0)
    inner_steps: int = setting(5, least=1)
    inner_batch: int = setting(10, least=1)
    eval_steps: int = setting(50, least=0)

    recomputing = Algorithm.recomputing

    @property
    def in_turn(self) -> bool:
        return True

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        x = torch.cat([episode.support_x, episode.query_x])
        y = torch.cat([episode.support_y, episode.query_y])
        *_, before, adapted = self._train(net, detached(meta), x, y, self.inner_steps)
        gap = [0.5 * (w - adapted[name].detach()).square().sum() for name, w in meta.items()]
        rows = self._rows(x, self.inner_steps - 1)
        with torch.no_grad():
            told = outcome(net(before, x[rows]), y[rows]).metrics  # of the last mini-batch, before its update
        return TaskLoss(torch.stack(gap).sum(), told)

    def adapt(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Iterator[Meta]:
        return self._train(net, meta, episode.support_x, episode.support_y, steps)

    def _rows(self, x: Tensor, step: int) -> Tensor:
        """The mini-batch of an inner step: the examples in turn, round and round."""
        batch = min(self.inner_batch, len(x))
        return torch.arange(step * batch, (step + 1) * batch, device=x.device) % len(x)

    def _train(self, net: Net, weights: Meta, x: Tensor, y: Tensor, steps: int) -> Iterator[Meta]:
        """Weights before and after each of `steps` Adam updates."""
        yield weights
        moment = {name: torch.zeros_like(w) for name, w in weights.items()}
        for t in range(steps):
            rows = self._rows(x, t)
            slope = grad(lambda fast, rows=rows: objective(net(fast, x[rows]), y[rows]))(weights)
            moment = {name: BETA2 * m + (1 - BETA2) * slope[name].square() for name, m in moment.items()}
            unbias = 1 - BETA2 ** (t + 1)
            weights = {
                name: w - self.inner_lr * slope[name] / ((moment[name] / unbias).sqrt() + EPS)
                for name, w in weights.items()
            }
            yield weights
