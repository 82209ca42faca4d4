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

from metarun.counter import GAMMA, MIX, Number, counted, mix, signed
from metarun.types import EpisodeBatch, InputError

if TYPE_CHECKING:
    from metarun.data.bank import ClassBank


LEAST = -(2**63)
"""the key of what cannot be drawn"""


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
        if self.bank.sources is not None:
            self._check_sources(self.bank.sources.cpu())
        need = self.shot + self.query
        smallest = int(self.bank.sizes.argmin())
        size = int(self.bank.sizes[smallest])
        if need > size:
            raise InputError(
                f"class '{self.bank.names[smallest]}' of '{self.split}' has {size} examples, "
                f"{where}.shot + {where}.query = {self.shot} + {self.query} = {need}: "
                f"lower {where}.shot or {where}.query"
            )
        if self.bank.groups is not None:
            self._check_groups(self.bank.groups.cpu(), self.bank.offsets.tolist())

    def _check_sources(self, sources: Tensor) -> None:
        """Each source must have classes enough for an episode of its own."""
        there, sizes = sources.unique(return_counts=True)
        smallest = there[sizes.argmin()]
        if self.way > (size := int(sizes.min())):
            name = self.bank.names[int((sources == smallest).nonzero()[0])].partition("/")[0]
            raise InputError(
                f"{self.asked_by}.way={self.way}: source '{name}' of split '{self.split}' has {size} classes, and an "
                f"episode draws from one source; lower {self.asked_by}.way, give the source more, or draw from all "
                "together with dataset.mix=pool"
            )

    def _check_groups(self, groups: Tensor, offsets: list[int]) -> None:
        """There must be a way to part the groups of every class, in whatever order they are drawn."""
        where, need = self.asked_by, self.shot + self.query
        for name, start, end in zip(self.bank.names, offsets, offsets[1:]):
            largest = int(groups[start:end].unique(return_counts=True)[1].max())
            if end - start < need + largest - 1:
                raise InputError(
                    f"class '{name}' of '{self.split}' has {end - start} examples, up to {largest} of them in one "
                    f"group: too few for {where}.shot + {where}.query = {need} of groups apart; lower {where}.shot or "
                    f"{where}.query"
                )

    @property
    def steady(self) -> bool:
        return not self.bank.ahead

    @cached_property
    def _stream(self) -> int:
        return stream(self.seed, self.split)

    @cached_property
    def _largest(self) -> int:
        return int(self.bank.sizes.max())  # read once: reading it per step would wait for the device

    @cached_property
    def _sources(self) -> Tensor:
        """(sources,) those that there are: a part of a bank's classes may leave some out"""
        assert self.bank.sources is not None
        return self.bank.sources.unique()

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.bank.item_shape

    @property
    def outputs(self) -> int:
        return self.way

    def _tickets(self, first: Number, count: int) -> Tensor:
        """(count,) a random number for each episode"""
        return mix(counted(first, count, self.bank.device) + self._stream)

    def classes(self, first: Number, count: int) -> Tensor:
        """(count, way) the class of the bank that each label of each episode stands for"""
        task = self._tickets(first, count)
        class_key = mix(task[:, None] + torch.arange(len(self.bank), device=task.device))
        if self.bank.sources is not None:
            drawn = self._sources[mix(task ^ signed(MIX[1])).remainder(len(self._sources))]
            class_key = class_key.masked_fill(self.bank.sources != drawn[:, None], LEAST)
        return class_key.topk(self.way, dim=1).indices  # in random order

    def __call__(self, first: Number, count: int) -> EpisodeBatch:
        """Episodes `first` to `first + count - 1`, with a leading task axis; images as float in [0, 1]."""
        bank, device = self.bank, self.bank.device
        task, classes = self._tickets(first, count), self.classes(first, count)

        items = self._items(mix(task[:, None] ^ signed(MIX[0])) + classes, classes)
        rows = (bank.offsets[classes][..., None] + items).transpose(1, 2)  # shot by shot: (T, shot + query, way)
        x = bank.rows(rows.flatten()).unflatten(0, (count, -1))
        y = torch.arange(self.way, device=device).repeat(self.shot + self.query).expand(count, -1)
        cut = self.shot * self.way
        return EpisodeBatch(x[:, :cut], y[:, :cut], x[:, cut:], y[:, cut:])

    def _items(self, key: Tensor, classes: Tensor) -> Tensor:
        """(T, way) random numbers and classes -> (T, way, shot + query) which items of its class"""
        bank = self.bank
        rank = torch.arange(self._largest, device=bank.device)
        there = rank < bank.sizes[classes][..., None]
        item_key = mix(mix(key)[..., None] + rank)
        if bank.groups is None:
            return item_key.masked_fill(~there, LEAST).topk(self.shot + self.query, dim=2).indices
        rows = (bank.offsets[classes][..., None] + rank).clamp(max=len(bank.items) - 1)
        support = there & self._of_support(mix(mix(key ^ signed(MIX[1]))[..., None] + bank.groups[rows]), there)
        sides = ((support, self.shot), (there & ~support, self.query))
        return torch.cat([item_key.masked_fill(~side, LEAST).topk(n, dim=2).indices for side, n in sides], 2)

    def _of_support(self, group_key: Tensor, there: Tensor) -> Tensor:
        """(T, way, items) whether an item's group is on the side that support examples are drawn from.

        Groups are put in random order and cut where the sides are nearest to the ratio of shot and query, with enough
        items on both: `_check_groups` has seen to it that there is such a cut.
        """
        size = there.sum(2, keepdim=True)
        order = group_key.masked_fill(~there, 2**63 - 1).sort(dim=2)
        place = torch.arange(group_key.shape[2], device=group_key.device)
        begins = torch.ones_like(there)
        begins[..., 1:] = order.values[..., 1:] != order.values[..., :-1]
        able = begins & (place >= self.shot) & (place <= size - self.query)
        off = (place - size * (self.shot / (self.shot + self.query))).abs()
        cut = off.masked_fill(~able, torch.inf).argmin(2, keepdim=True)
        return torch.zeros_like(there).scatter(2, order.indices, place < cut)


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

    @property
    def steady(self) -> bool:
        return not self.bank.ahead

    @cached_property
    def _stream(self) -> int:
        return stream(self.seed, f"{self.split} batches")

    def classes(self, first: Number, count: int) -> Tensor:
        """(1, classes): a label is its class."""
        return torch.arange(len(self.bank), device=self.bank.device)[None]

    def __call__(self, first: Number, count: int) -> EpisodeBatch:
        bank = self.bank
        rows = mix(counted(first, count, bank.device) + self._stream).remainder(len(bank.items))
        x = bank.rows(rows)[None]
        y = (torch.searchsorted(bank.offsets, rows, right=True) - 1)[None]
        return EpisodeBatch(x[:, :0], y[:, :0], x, y)
