"""ANIL ("almost no inner loop"): MAML that adapts the head alone; the trunk is learned by the outer loop only.

Raghu, Raghu, Bengio & Vinyals 2020, section 4. The trunk's features do not move in the inner loop, so they are computed
once per task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from metarun.algorithms.inner import GradientBased, descend, is_head, objective
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
        heads = descend(lambda h: objective(net.head(h, features), episode.support_y), head, self.inner_lr, steps)
        return (meta | head for head in heads)
