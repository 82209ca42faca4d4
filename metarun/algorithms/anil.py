"""ANIL ("almost no inner loop"): MAML that adapts the head alone; the trunk is learned by the outer loop only.

Raghu, Raghu, Bengio & Vinyals 2020, section 4. The trunk's features do not move in the inner loop, so they are computed
once per task.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Generator, Tensor

from metarun.algorithms.inner import classification, descend
from metarun.types import Episode, Meta, Net, TaskLoss, register, setting


@register("algo", "anil")
@dataclass(frozen=True)
class ANIL:
    inner_lr: float = setting(0.1, above=0)
    inner_steps: int = setting(5, least=1)
    eval_steps: int = setting(5, least=0)

    def init(self, net: Net, generator: Generator) -> Meta:
        return net.init(generator)

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        return classification(self._logits(net, meta, episode, self.inner_steps), episode.query_y)

    def predict(self, net: Net, meta: Meta, episode: Episode) -> Tensor:
        return self._logits(net, meta, episode, self.eval_steps)

    def _logits(self, net: Net, meta: Meta, episode: Episode, steps: int) -> Tensor:
        features = net.features(meta, episode.support_x)
        head = {name: w for name, w in meta.items() if name.startswith("head.")}
        head = descend(lambda h: F.cross_entropy(net.head(h, features), episode.support_y), head, self.inner_lr, steps)
        return net.head(head, net.features(meta, episode.query_x, support=episode.support_x))
