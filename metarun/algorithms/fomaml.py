"""First-order MAML: MAML whose meta-gradient treats the inner updates as constants.

    gradient = dL_query/dw at the adapted weights

Finn, Abbeel & Levine 2017, section 5.2 ("first-order approximation").
"""

from __future__ import annotations

from dataclasses import dataclass

from metarun.algorithms.inner import detached, last, outcome
from metarun.algorithms.maml import MAML
from metarun.types import Algorithm, Episode, Meta, Net, TaskLoss, register


@register("algo", "fomaml")
@dataclass(frozen=True)
class FOMAML(MAML):
    recomputing = Algorithm.recomputing

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        start = detached(meta)
        end = last(self.adapt(net, start, episode, self.inner_steps))
        # The move is a constant, so the gradient at the adapted weights lands on `meta` unchanged.
        fast = {name: w + (end[name] - start[name]).detach() for name, w in meta.items()}
        return outcome(net(fast, episode.query_x, support=episode.support_x), episode.query_y)
