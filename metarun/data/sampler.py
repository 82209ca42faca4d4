"""Episodes as a pure function of (seed, split, index): nothing to save, nothing to shuffle, the same on every device.

Drawing without replacement is sorting by random keys, and the keys come from a counter-based generator in integer
arithmetic (SplitMix64, Steele, Lea & Flood 2014). Episode `i` is therefore the same whatever the batch, the chunk or
the process that asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from zlib import crc32

import torch
from torch import Tensor

from metarun.counter import GAMMA, MIX, mix, signed
from metarun.types import EpisodeBatch, InputError

if TYPE_CHECKING:
    from metarun.data.bank import ClassBank


def stream(seed: int, split: str) -> int:
    """Where the tickets of a split's episodes start."""
    return int(mix(torch.tensor(signed(seed * GAMMA + crc32(split.encode())))))


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
        if self.way < 2:
            raise InputError(f"{where}.way={self.way}: telling classes apart takes 2 or more")
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
        return stream(self.seed, self.split)

    @cached_property
    def _largest(self) -> int:
        return int(self.bank.sizes.max())  # read once: reading it per step would wait for the device

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.bank.item_shape

    @property
    def outputs(self) -> int:
        return self.way

    def _tickets(self, first: int, count: int) -> Tensor:
        """(count,) a random number for each episode"""
        return mix(torch.arange(first, first + count, device=self.bank.items.device) + self._stream)

    def classes(self, first: int, count: int) -> Tensor:
        """(count, way) the class of the bank that each label of each episode stands for"""
        task = self._tickets(first, count)
        class_key = mix(task[:, None] + torch.arange(len(self.bank), device=task.device))
        return class_key.topk(self.way, dim=1).indices  # in random order

    def __call__(self, first: int, count: int) -> EpisodeBatch:
        """Episodes `first` to `first + count - 1`, with a leading task axis; images as float in [0, 1]."""
        bank, device = self.bank, self.bank.items.device
        task, classes = self._tickets(first, count), self.classes(first, count)

        sizes = bank.sizes
        rank = torch.arange(self._largest, device=device)
        item_key = mix(mix(task[:, None] ^ signed(MIX[0])) + classes)[..., None] + rank
        item_key = mix(item_key).masked_fill(rank >= sizes[classes][..., None], -(2**63))
        items = item_key.topk(self.shot + self.query, dim=2).indices  # (T, way, shot + query)

        rows = (bank.offsets[classes][..., None] + items).transpose(1, 2)  # shot by shot: (T, shot + query, way)
        x = bank.items[rows.flatten(1)].float() / 255
        y = torch.arange(self.way, device=device).repeat(self.shot + self.query).expand(count, -1)
        cut = self.shot * self.way
        return EpisodeBatch(x[:, :cut], y[:, :cut], x[:, cut:], y[:, cut:])


@dataclass(frozen=True)
class BatchSampler:
    """Supervised batches over all classes of a bank, every image equally likely, drawn with replacement.

    `sampler(first, count)` is ONE episode: an empty support set, and examples `first` to `first + count - 1` of an
    endless list as its queries, labelled with their class in the bank.
    """

    bank: ClassBank
    seed: int
    split: str

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.bank.item_shape

    @property
    def outputs(self) -> int:
        return len(self.bank)

    @cached_property
    def _stream(self) -> int:
        return stream(self.seed, f"{self.split} batches")

    def classes(self, first: int, count: int) -> Tensor:
        """(1, classes): a label is its class."""
        return torch.arange(len(self.bank), device=self.bank.items.device)[None]

    def __call__(self, first: int, count: int) -> EpisodeBatch:
        items, offsets = self.bank.items, self.bank.offsets
        tickets = mix(torch.arange(first, first + count, device=items.device) + self._stream)
        rows = tickets.remainder(len(items))
        x = items[rows].float()[None] / 255
        y = (torch.searchsorted(offsets, rows, right=True) - 1)[None]
        return EpisodeBatch(x[:, :0], y[:, :0], x, y)
