"""MAML: weights from which a few gradient steps on the support set do well on the queries.

    min over w of  sum over tasks of  L_query(w - a * dL_support/dw)      gradient through the inner steps

Finn, Abbeel & Levine 2017, algorithm 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from metarun.algorithms.inner import adapt, classification
from metarun.types import Episode, Meta, Net, TaskLoss, register, setting


@register("algo", "maml")
@dataclass(frozen=True)
class MAML:
    inner_lr: float = setting(0.4, above=0)
    inner_steps: int = setting(1, least=1)
    eval_steps: int = setting(3, least=0)

    def init(self, net: Net, generator: Generator) -> Meta:
        return net.init(generator)

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        fast = adapt(net, meta, episode, self.inner_lr, self.inner_steps)
        return classification(net(fast, episode.query_x, support=episode.support_x), episode.query_y)

    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        fast = adapt(net, meta, episode, self.inner_lr, self.eval_steps)
        return net(fast, episode.query_x, support=episode.support_x)
