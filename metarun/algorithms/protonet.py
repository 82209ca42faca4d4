"""Prototypical network: a class is the mean of its embedded support examples, a query goes to the nearest one.

    logit of class c = -s * |f(query) - m_c|^2,  m_c = mean of f(support of c)
                   or   s * cos(f(query), m_c)

Snell, Swersky & Zemel 2017, algorithm 1, with s = 1. Support and queries are embedded in one pass, as in the authors'
code. The paper's cosine has s = 1 too, and its logits stay within [-1, 1]; here s is then 10 unless it is set, which is
where Gidaris & Komodakis 2018 start learning theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metarun.algorithms.embedding import EmbeddingBased, class_means, cosine, embedded, squared_distance
from metarun.types import Episode, Meta, Net, register, setting

SCALE = "algo.scale"


@register("algo", "protonet")
@dataclass(frozen=True)
class ProtoNet(EmbeddingBased):
    """`scale` is s, and where it starts if it is learned; None: 1 for euclidean, 10 for cosine."""

    distance: str = setting("euclidean", choices=("euclidean", "cosine"))
    scale: float | None = setting(None, above=0)
    learn_scale: bool = setting(False)

    def init(self, net: Net, generator: Generator) -> Meta:
        meta = net.init(generator, head=False)
        return meta | {SCALE: torch.tensor(self._scale)} if self.learn_scale else meta

    def answer(self, net: Net, meta: Meta, episode: Episode, moments: Meta | None) -> Tensor:
        support, query = embedded(net, meta, episode, moments)
        prototypes = class_means(support, episode.support_y, net.outputs)
        near = cosine(query, prototypes) if self.distance == "cosine" else -squared_distance(query, prototypes)
        return meta.get(SCALE, self._scale) * near

    @property
    def _scale(self) -> float:
        return self.scale if self.scale is not None else 10.0 if self.distance == "cosine" else 1.0
