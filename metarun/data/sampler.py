"""Episodes as a pure function of (seed, split, index): nothing to save, nothing to shuffle, the same on every device.

Drawing without replacement is sorting by random keys, and the keys come from a counter-based generator in integer
arithmetic (SplitMix64, Steele, Lea & Flood 2014). Episode `i` is therefore the same whatever the batch, the chunk or
the process that asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

import torch
from torch import Tensor

from metarun.types import ClassBank, EpisodeBatch, InputError

_GAMMA = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch's is arithmetic on int64)."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: int64 -> int64, a bijection whose output looks random."""
    x = x + _signed(_GAMMA)
    x = (x ^ _shift(x, 30)) * _signed(_MIX[0])
    x = (x ^ _shift(x, 27)) * _signed(_MIX[1])
    return x ^ _shift(x, 31)


@dataclass(frozen=True)
class EpisodeSampler:
    """Draws `way` classes, then `shot + query` distinct items of each.

    `split` names the stream as well as the error messages; `asked_by` is the config node that holds way, shot and
    query. Raises `InputError` when the bank cannot serve such an episode.
    """

    bank: ClassBank
    way: int
    shot: int
    query: int
    seed: int
    split: str
    asked_by: str = "task"

    def __post_init__(self) -> None:
        where = self.asked_by
        if self.way > len(self.bank):
            raise InputError(
                f"{where}.way={self.way}: split '{self.split}' has {len(self.bank)} classes; lower {where}.way"
            )
        need = self.shot + self.query
        smallest = int(self.bank.sizes.argmin())
        size = int(self.bank.sizes[smallest])
        if need > size:
            raise InputError(
                f"class '{self.bank.names[smallest]}' of '{self.split}' has {size} images, "
                f"{where}.shot + {where}.query = {self.shot} + {self.query} = {need}: "
                f"lower {where}.shot or {where}.query"
            )

    @cached_property
    def _stream(self) -> int:
        return int(mix(torch.tensor(_signed(self.seed * _GAMMA + crc32(self.split.encode())))))

    @cached_property
    def _largest(self) -> int:
        return int(self.bank.sizes.max())  # read once: reading it per step would wait for the device

    def __call__(self, first: int, count: int) -> EpisodeBatch:
        """Episodes `first` to `first + count - 1`, with a leading task axis; images as float in [0, 1]."""
        bank, device = self.bank, self.bank.items.device
        task = mix(torch.arange(first, first + count, device=device) + self._stream)  # (T,)

        class_key = mix(task[:, None] + torch.arange(len(bank), device=device))
        classes = class_key.topk(self.way, dim=1).indices  # (T, way), in random order

        sizes = bank.sizes
        rank = torch.arange(self._largest, device=device)
        item_key = mix(mix(task[:, None] ^ _signed(_MIX[0])) + classes)[..., None] + rank
        item_key = mix(item_key).masked_fill(rank >= sizes[classes][..., None], -(2**63))
        items = item_key.topk(self.shot + self.query, dim=2).indices  # (T, way, shot + query)

        rows = (bank.offsets[classes][..., None] + items).transpose(1, 2)  # shot by shot: (T, shot + query, way)
        x = bank.items[rows.flatten(1)].float() / 255
        y = torch.arange(self.way, device=device).repeat(self.shot + self.query).expand(count, -1)
        cut = self.shot * self.way
        return EpisodeBatch(x[:, :cut], y[:, :cut], x[:, cut:], y[:, cut:])
