"""Dropout and DropBlock without a generator's state: a mask is a pure function of (ticket, draw, element).

    keep element i of draw d  <=>  mix(mix(mix(ticket) + d) + i) >= rate        as a fraction of all 64-bit integers

The engine gives every task of every step a ticket of its own, and the net a fresh `Noise` made from it. A run that is
resumed therefore goes on to the same bits, and neither the batching over tasks nor its chunks change what is dropped.

Srivastava et al. 2014 (dropout, with the kept elements scaled up while training) and Ghiasi, Lin & Le 2018 (DropBlock).
"""

from __future__ import annotations

from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.counter import mix


class Noise:
    """The random numbers of one task in one step. Each draw differs from those before it.

    `ticket` is a () int64 tensor, so that under `vmap` every task has its own; the number of the draw is a Python
    integer, for the draws of one task follow one another as the code runs.
    """

    def __init__(self, ticket: Tensor) -> None:
        self._key = mix(ticket)
        self._draws = [0]

    @property
    def position(self) -> tuple[Tensor, int]:
        """What the numbers are drawn from, a () int64 tensor, and how many draws there have been."""
        return self._key, self._draws[0]

    def at(self, key: Tensor, draws: int) -> Noise:
        """The numbers from another position on. Both go on counting from there: they are one and the same task's."""
        other = copy(self)
        other._key, self._draws[0] = key, draws
        return other

    def keep(self, shape: tuple[int, ...], rate: float) -> Tensor:
        """A mask of `shape`: False with probability `rate`, in [0, 1), independently for each element."""
        self._draws[0] += 1
        start = mix(self._key + self._draws[0])
        count = torch.Size(shape).numel()
        bits = mix(start + torch.arange(count, device=start.device))
        return (bits >= round(rate * 2**64) - 2**63).reshape(shape)

    def dropout(self, x: Tensor, rate: float) -> Tensor:
        """x with each element 0 with probability `rate`, the others scaled so that the mean stays."""
        return x * (self.keep(x.shape, rate).to(x.dtype) / (1 - rate)) if rate else x

    def dropblock(self, x: Tensor, rate: float, size: int) -> Tensor:
        """x: (n, c, h, w) with squares of `size` x `size` set to 0, about `rate` of all elements.

        Ghiasi et al. 2018, algorithm 1: corners are drawn where a whole square fits, with the probability `gamma` that
        makes up for their number (never more than `rate`), and the rest is scaled so that the mean over the batch
        stays. A square is no larger than the map.
        """
        if not rate:
            return x
        h, w = x.shape[-2:]
        tall, wide = min(size, h), min(size, w)
        places = (*x.shape[:2], h - tall + 1, w - wide + 1)
        gamma = rate / (tall * wide) * (h * w) / (places[2] * places[3])
        corners = (~self.keep(places, gamma)).to(x.dtype)
        # Every element that some corner's square reaches: a maximum over the `size` places before it.
        dropped = F.max_pool2d(F.pad(corners, (wide - 1, wide - 1, tall - 1, tall - 1)), (tall, wide), stride=1)
        kept = 1 - dropped
        return x * kept * (kept.numel() / kept.sum().clamp(min=1))
