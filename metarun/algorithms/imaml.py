"""Implicit MAML: adapt until a pull back to the start balances the support loss; no gradient through the way there.

    w* = argmin over v of  L_support(v) + r/2 |v - w|^2        by `inner_steps` gradient steps from w
    gradient = (I + H/r)^-1 dL_query/dv at w*,                 H = d2 L_support/dv2 at w*

Rajeswaran, Finn, Kakade & Levine 2019, eq. 3 and 6, algorithm 2: the system is solved by `cg_steps` of conjugate
gradient, with products of H and a vector. The loss <stopgrad(gradient), w> has exactly that gradient; what is reported
is the loss of the queries. Memory does not grow with the inner steps.

The authors' released code does otherwise: it pulls back once, after the last step, and solves with 2I + H/(r + 10).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import grad, vjp

from metarun.algorithms.inner import Given, GradientBased, descend, detached, last, outcome, support_loss
from metarun.types import Algorithm, Episode, Meta, Net, TaskLoss, register, setting


@register("algo", "imaml")
@dataclass(frozen=True)
class IMAML(GradientBased):
    inner_lr: float = setting(0.1, above=0)
    inner_steps: int = setting(16, least=1)
    regularisation: float = setting(2.0, above=0)
    cg_steps: int = setting(5, least=1)
    eval_steps: int = setting(16, least=0)

    recomputing = Algorithm.recomputing

    def adapt(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Iterator[Meta]:
        def pulled(given: Given, fast: Meta) -> Tensor:
            away = {name: w - given.meta[name] for name, w in fast.items()}
            return support_loss(given, fast) + self.regularisation / 2 * dot(away, away)

        return descend(pulled, Given(net, meta, episode), meta, self.inner_lr, steps)

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        fast = last(self.adapt(net, detached(meta), episode, self.inner_steps))

        def of_queries(fast: Meta) -> tuple[Tensor, dict[str, Tensor]]:
            told = outcome(net(fast, episode.query_x, support=episode.support_x), episode.query_y)
            return told.loss, told.metrics

        slope, metrics = grad(of_queries, has_aux=True)(fast)
        times_hessian = vjp(grad(partial(support_loss, Given(net, meta, episode))), fast)[1]  # H is its own transpose

        def system(v: Meta) -> Meta:
            return {name: v[name] + h / self.regularisation for name, h in times_hessian(v)[0].items()}

        return TaskLoss(dot(detached(conjugate_gradient(system, slope, self.cg_steps)), meta), metrics)


def dot(a: Meta, b: Meta) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def conjugate_gradient(system: Callable[[Meta], Meta], b: Meta, steps: int) -> Meta:
    """x with system(x) = b after `steps` steps from 0, for a symmetric positive definite system.

    Stays where it is once b is met, and at a direction in which the system is not positive.
    """
    x = {name: torch.zeros_like(v) for name, v in b.items()}
    residual = direction = b
    left = dot(b, b)
    for _ in range(steps):
        turned = system(direction)
        curvature = dot(direction, turned)
        going = (curvature > 0).to(curvature.dtype)
        length = left / torch.where(curvature > 0, curvature, 1) * going
        x = {name: v + length * direction[name] for name, v in x.items()}
        residual = {name: going * (v - length * turned[name]) for name, v in residual.items()}
        before, left = left, dot(residual, residual)
        again = left / torch.where(before > 0, before, 1)
        direction = {name: v + again * direction[name] for name, v in residual.items()}
    return x
