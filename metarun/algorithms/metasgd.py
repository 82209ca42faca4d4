"""Meta-SGD: MAML that learns where to start and, for every single weight, how far and which way to go.

    min over w, a of  sum over tasks of  L_query(w - a * dL_support/dw)      a has w's shape; * is element by element

Li, Zhou, Chen & Li 2017, eq. 2 and algorithm 1: one step. The paper draws the first rates at random; here all start at
`inner_lr`, where the method is MAML. They may become negative. More than one step uses the same rates in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator

from metarun.algorithms.inner import OWN, Given, GradientBased, descend, own, support_loss, weights_of
from metarun.types import Episode, Meta, Net, register, setting


@register("algo", "metasgd")
@dataclass(frozen=True)
class MetaSGD(GradientBased):
    """`inner_lr` is the value that all rates start from."""

    inner_lr: float = setting(0.1, above=0)
    inner_steps: int = setting(1, least=1)
    eval_steps: int = setting(1, least=0)

    def init(self, net: Net, generator: Generator) -> Meta:
        weights = net.init(generator)
        return weights | {f"{OWN}rate.{name}": torch.full_like(w, self.inner_lr) for name, w in weights.items()}

    def adapt(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Iterator[Meta]:
        given = Given(net, meta, episode)
        return descend(support_loss, given, weights_of(meta), lambda meta: own(meta, "rate"), steps, self.recompute)
