"""ANIL ("almost no inner loop"): MAML that adapts the head alone; the trunk is learned by the outer loop only.

Raghu, Raghu, Bengio & Vinyals 2020, section 4. The trunk's features do not move in the inner loop, so they are computed
once per task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from metarun.algorithms.inner import Given, GradientBased, descend, is_head, objective
from metarun.types import Episode, Meta, Net, register, setting


@register("algo", "anil")
@dataclass(frozen=True)
class ANIL(GradientBased):
    inner_lr: float = setting(0.1, above=0)
    inner_steps: int = setting(5, least=1)
    eval_steps: int = setting(5, least=0)

    def adapt(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Iterator[Meta]:
        features = net.features(meta, episode.support_x)
        head = {name: w for name, w in meta.items() if is_head(name)}
        given = Given(net, {}, episode._replace(support_x=features))
        heads = descend(of_features, given, head, self.inner_lr, steps, self.recompute)
        return (meta | head for head in heads)


def of_features(given: Given, head: Meta) -> Tensor:
    """The loss of the support set, of which `given` holds the features."""
    return objective(given.net.head(head, given.episode.support_x), given.episode.support_y)
