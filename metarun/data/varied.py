"""Training episodes whose way and shot vary, and whose classes need not have the same shots.

Triantafillou et al. 2020 ("Meta-Dataset", section 3) draw the way, and then unequal shots in proportion to random
weights. As there, way and shot are uniform in a range here, and a class's weight is exp(a) with a uniform in
[log 0.5, log 2]; otherwise than there, all tasks of a meta-batch have one way and one size of support set, so that they
are computed together, and queries are equally many for every class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from metarun.counter import Number, counted, mix, uniform
from metarun.data.sampler import LEAST, EpisodeSampler, stream
from metarun.types import EpisodeBatch

SPREAD = 2.0
"""how many times a class's weight may be 1, or 1 its weight"""


@dataclass(frozen=True)
class Shapes:
    """The way and shot of every meta-batch of `batch` tasks, each uniform in its range, both ends included."""

    way: tuple[int, int]
    shot: tuple[int, int]
    batch: int
    seed: int

    def at(self, first: int) -> tuple[int, int]:
        """Those of the meta-batch that episode `first` is in."""
        keys = mix(mix(torch.tensor(first // self.batch) + stream(self.seed, "shapes")) + torch.arange(2))
        (way, shot) = (
            low + int(key.remainder(high - low + 1)) for key, (low, high) in zip(keys, (self.way, self.shot))
        )
        return way, shot


@dataclass(frozen=True)
class VariedSampler:
    """`largest` is the sampler of episodes of the most way and shot, which the bank must be able to serve.

    Where shots are not `balanced`, a support set has way * shot examples, at least one and at most `cap` of each class.
    """

    largest: EpisodeSampler
    shapes: Shapes
    balanced: bool = True
    steady = False

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.largest.item_shape

    @property
    def outputs(self) -> int:
        return self.largest.outputs

    @cached_property
    def cap(self) -> int:
        return int(self.largest.bank.sizes.min()) - self.largest.query

    def _of_shape(self, first: Number) -> EpisodeSampler:
        way, shot = self.shapes.at(int(first))
        return replace(self.largest, way=way, shot=shot)

    def _weights(self, first: Number, count: int, way: int) -> Tensor:
        """(count, way) a uniform number for each class of each episode"""
        device = self.largest.bank.device
        task = mix(counted(first, count, device) + stream(self.shapes.seed, "unequal shots"))
        return uniform(mix(task[:, None] + torch.arange(way, device=device)))

    def classes(self, first: Number, count: int) -> Tensor:
        return self._of_shape(first).classes(first, count)

    def __call__(self, first: Number, count: int) -> EpisodeBatch:
        """Episodes `first` to `first + count - 1`, which must be of one meta-batch."""
        plain = self._of_shape(first)
        if self.balanced or plain.shot == 1:
            return plain(first, count)
        most = min(self.cap, plain.shot * plain.way - plain.way + 1)
        drawn = replace(plain, shot=most)(first, count)
        keep = unequal(self._weights(first, count, plain.way), plain.shot * plain.way, most)  # (tasks, way)
        there = (torch.arange(most, device=keep.device)[:, None] < keep[:, None]).flatten(1)  # shot by shot
        rows = there.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, : plain.shot * plain.way]
        task = torch.arange(count, device=keep.device)[:, None]
        return drawn._replace(support_x=drawn.support_x[task, rows], support_y=drawn.support_y[task, rows])


def unequal(u: Tensor, total: int, most: int) -> Tensor:
    """(tasks, way) uniform numbers -> (tasks, way) shots that sum to `total`, each from 1 to `most`.

    One for each class, and the rest in proportion to the weights: the next always to the class that is furthest below
    its part and not full.
    """
    weights = SPREAD ** (2 * u - 1)
    share = weights / weights.sum(1, keepdim=True)
    shots = torch.ones_like(share)
    for n in range(u.shape[1], total):
        behind = (share * (n + 1) - shots).masked_fill(shots >= most, LEAST)
        shots = shots.scatter_add(1, behind.argmax(1, keepdim=True), torch.ones_like(shots))
    return shots.long()
