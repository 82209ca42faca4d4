"""BOIL ("body only update in inner loop"): MAML that adapts the trunk and holds the head still.

    min over w, h of  sum over tasks of  L_query(w - a * dL_support(w, h)/dw, h)

Oh, Yoo, Kim & Yun 2021, eq. 2. The mirror image of ANIL: features must move, since the head cannot. The outer loop
learns both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from metarun.algorithms.inner import Given, GradientBased, descend, is_head, support_loss
from metarun.types import Episode, Meta, Net, register, setting


@register("algo", "boil")
@dataclass(frozen=True)
class BOIL(GradientBased):
    inner_lr: float = setting(0.5, above=0)
    inner_steps: int = setting(1, least=1)
    eval_steps: int = setting(1, least=0)

    def adapt(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Iterator[Meta]:
        body = {name: w for name, w in meta.items() if not is_head(name)}
        bodies = descend(of_body, Given(net, meta, episode), body, self.inner_lr, steps, self.recompute)
        return (meta | body for body in bodies)


def of_body(given: Given, body: Meta) -> Tensor:
    """The loss of the support set with the head as it is."""
    return support_loss(given, given.meta | body)
