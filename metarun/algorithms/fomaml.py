"""First-order MAML: MAML whose meta-gradient treats the inner updates as constants.

    gradient = dL_query/dw at the adapted weights

Finn, Abbeel & Levine 2017, section 5.2 ("first-order approximation").
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from metarun.algorithms.inner import adapt, classification, detached
from metarun.types import Episode, Meta, Net, TaskLoss, register, setting


@register("algo", "fomaml")
@dataclass(frozen=True)
class FOMAML:
    inner_lr: float = setting(0.4, above=0)
    inner_steps: int = setting(1, least=1)
    eval_steps: int = setting(3, least=0)

    def init(self, net: Net, generator: Generator) -> Meta:
        return net.init(generator)

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        start = detached(meta)
        end = adapt(net, start, episode, self.inner_lr, self.inner_steps)
        # The move is a constant, so the gradient at the adapted weights lands on `meta` unchanged.
        fast = {name: w + (end[name] - start[name]).detach() for name, w in meta.items()}
        return classification(net(fast, episode.query_x, support=episode.support_x), episode.query_y)

    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        fast = adapt(net, meta, episode, self.inner_lr, self.eval_steps)
        return net(fast, episode.query_x, support=episode.support_x)
