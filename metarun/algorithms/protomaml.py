"""Proto-MAML: MAML whose head starts, in every task, as the nearest-class-mean classifier of the task's own features.

    head of class c:  weight 2 m_c, bias -|m_c|^2,  m_c = mean of f(support of c)

whose logits are -|f(x) - m_c|^2 but for a term that all classes share. Then gradient steps on all weights and the head,
and the meta-gradient goes through both the steps and the means.

Triantafillou et al. 2020 ("Proto-MAML"). The paper's numbers are of its first-order version
(`first_order`: the meta-gradient takes the steps as constants, but still goes through the means).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Generator

from metarun.algorithms.embedding import class_means, needs_classes
from metarun.algorithms.inner import Given, GradientBased, descend, detached, support_loss
from metarun.types import Algorithm, Episode, Meta, Net, TaskShape, register, setting


@register("algo", "protomaml")
@dataclass(frozen=True)
class ProtoMAML(GradientBased):
    inner_lr: float = setting(0.1, above=0)
    inner_steps: int = setting(5, least=1)
    eval_steps: int = setting(5, least=0)
    first_order: bool = setting(False)

    def recomputing(self) -> Algorithm:
        return Algorithm.recomputing(self) if self.first_order else super().recomputing()

    def check(self, net: Net, task: TaskShape) -> None:
        needs_classes(task)

    def init(self, net: Net, generator: Generator) -> Meta:
        return net.init(generator, head=False)

    def adapt(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Iterator[Meta]:
        start, given = meta | head_of_means(net, meta, episode), Given(net, {}, episode)
        if not self.first_order:
            return descend(support_loss, given, start, self.inner_lr, steps, self.recompute)
        fixed = detached(start)
        moved = descend(support_loss, given, fixed, self.inner_lr, steps)
        return ({name: w + (fast[name] - fixed[name]).detach() for name, w in start.items()} for fast in moved)


def head_of_means(net: Net, meta: Meta, episode: Episode) -> Meta:
    """The nearest-class-mean classifier of the support set as a linear head."""
    features = net.features(meta, episode.support_x)
    means = class_means(features, episode.support_y, net.outputs)
    return {"head.weight": 2 * means, "head.bias": -means.square().sum(1)}
