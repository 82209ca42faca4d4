"""Baseline++: Baseline whose heads, in training and in every task, compare directions.

    logit of class c = s * g_c * cos(f(x), v_c)

Chen, Liu, Kira, Wang & Huang 2019, section 3, with the learned size g_c that weight normalisation gives each class
in the authors' code (the paper's equation has none). The scale s is 2, and 10 where there are more than 200 classes, as
in the code. Differences beside Baseline's: the vectors v_c of a new head start at the mean direction of the support
features, with the length that they have in the code on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Generator, Tensor

from metarun.algorithms.baseline import Baseline, Head, error
from metarun.types import Meta, Net, register, setting

EPS = 1e-5
LENGTH = 3**-0.5  # of n uniform numbers in [-n^-0.5, n^-0.5], torch.nn.Linear's initial weights
MANY = 200
SIZE = "algo.size.head.weight"


@register("algo", "baselinepp")
@dataclass(frozen=True)
class BaselinePP(Baseline):
    scale: float | None = setting(None, above=0)

    def init(self, net: Net, generator: Generator) -> Meta:
        meta = net.init(generator, head=False)
        inputs = prod(net.feature_shape)
        vectors = torch.empty(net.outputs, inputs).uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
        return meta | {"head.weight": vectors, SIZE: vectors.norm(dim=1)}

    def logits(self, net: Net, meta: Meta, features: Tensor) -> Tensor:
        vectors = meta["head.weight"]
        return self._scale(net.outputs) * meta[SIZE] / vectors.norm(dim=1) * (direction(features) @ vectors.T)

    def answer(self, support: Tensor, member: Tensor, query: Tensor) -> Tensor:
        """As in `Baseline`, the vectors are kept as combinations a @ f of the support features' directions f."""
        support, query, scale = direction(support), direction(query), self._scale(member.shape[1])
        alike = support @ support.T

        def lengths(a: Tensor) -> Tensor:
            return ((a @ alike) * a).sum(1).clamp_min(EPS**2).sqrt()

        def slopes(head: Head, rows: Tensor, chosen: Tensor) -> Head:
            a, size = head
            length = lengths(a)
            cosines = alike[rows] @ a.T / length
            wrong = scale * error(scale * size * cosines, member[rows])
            to_size = (wrong * cosines).sum(0)
            to_vector = wrong.T @ chosen - (to_size / length)[:, None] * a  # across the vector, never along it
            return (size / length)[:, None] * to_vector, to_size

        mean = torch.ones_like(member.T)
        start = mean * (LENGTH / lengths(mean))[:, None], torch.full_like(mean[:, 0], LENGTH)
        a, size = self.trained(start, slopes)
        return scale * size / lengths(a) * (query @ support.T @ a.T)

    def _scale(self, classes: int) -> float:
        return self.scale if self.scale is not None else 10.0 if classes > MANY else 2.0


def direction(features: Tensor) -> Tensor:
    """The rows at length 1; the zero row stays."""
    return features / (features.norm(dim=1, keepdim=True) + EPS)
