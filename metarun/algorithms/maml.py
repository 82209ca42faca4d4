"""MAML: weights from which a few gradient steps on the support set do well on the queries.

    min over w of  sum over tasks of  L_query(w - a * dL_support/dw)      gradient through the inner steps

Finn, Abbeel & Levine 2017, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from metarun.algorithms.inner import Given, GradientBased, descend, support_loss
from metarun.types import Episode, Meta, Net, register, setting


@register("algo", "maml")
@dataclass(frozen=True)
class MAML(GradientBased):
    inner_lr: float = setting(0.4, above=0)
    inner_steps: int = setting(1, least=1)
    eval_steps: int = setting(3, least=0)

    def adapt(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Iterator[Meta]:
        """Finn et al. 2017, eq. 1"""
        return descend(support_loss, Given(net, meta, episode), meta, self.inner_lr, steps, self.recompute)
