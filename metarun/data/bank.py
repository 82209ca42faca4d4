"""The items of one split as one tensor, grouped by class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from metarun.counter import mix
from metarun.data.sampler import BatchSampler, EpisodeSampler
from metarun.measures import MEASURES


@dataclass(frozen=True)
class ClassBank:
    """Class `c` owns rows `offsets[c]` to `offsets[c + 1]`.

    Items may be mapped from a file, and larger than the memory. They need not be where episodes are made: `offsets` is.
    """

    items: Tensor
    """(items, *item) uint8 for images, float for features"""
    offsets: Tensor
    """(classes + 1,) int64, ascending from 0"""
    names: tuple[str, ...]
    """one name per class"""
    checksum: str = ""
    """of the items, where it is known; otherwise `digest` reads them all"""
    groups: Tensor | None = None
    """(items,) int64: support and queries of an episode never share a group; None: nor an item, which is all"""
    ahead: bool = False
    sources: Tensor | None = None
    """(classes,) int64: the classes of an episode are all of one source, each source as likely. The names then begin
    with their source's and a slash. None: of any classes"""
    kind = "classification"
    measures = (MEASURES["accuracy"],)

    def __post_init__(self) -> None:
        assert len(self.offsets) == len(self.names) + 1
        assert int(self.offsets[-1]) == len(self.items)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def item_shape(self) -> tuple[int, ...]:
        return tuple(self.items.shape[1:])

    @property
    def sizes(self) -> Tensor:
        """(classes,) items in each class"""
        return self.offsets.diff()

    @property
    def bytes(self) -> int:
        return self.items.numel() * self.items.element_size()

    @property
    def device(self) -> torch.device:
        """Where episodes are made."""
        return self.offsets.device

    def digest(self) -> str:
        """8 hex digits of the bytes and of where classes begin. Call it before the bank goes to a GPU."""
        start = crc32(self.offsets.numpy().data)
        if self.sources is not None:
            start = crc32(self.sources.numpy().data, start)
        if self.checksum:
            return f"{crc32(self.checksum.encode(), start):08x}"
        return f"{crc32(self.items.contiguous().view(torch.uint8).numpy().data, start):08x}"

    def to(self, device: Any, budget: int | None = None) -> ClassBank:
        fits = budget is None or self.bytes <= budget
        groups = None if self.groups is None else self.groups.to(device)
        sources = None if self.sources is None else self.sources.to(device)
        items = self.items.to(device) if fits else self.items
        return replace(
            self, items=items, offsets=self.offsets.to(device), groups=groups, sources=sources, ahead=not fits
        )

    def rows(self, rows: Tensor) -> Tensor:
        """(n,) -> (n, *item) float on the bank's device; images in [0, 1]"""
        x = self.items[rows.to(self.items.device)]
        if x.device != self.device:
            x = x.pin_memory().to(self.device, non_blocking=True)  # as bytes: a quarter of what floats would take
        return x.float() / 255 if x.dtype == torch.uint8 else x.float()

    def episodes(
        self, way: int, shot: int, query: int, seed: int, split: str, asked_by: str = "task"
    ) -> EpisodeSampler:
        return EpisodeSampler(self, way, shot, query, seed, split, asked_by)

    def batches(self, seed: int, split: str) -> BatchSampler:
        return BatchSampler(self, seed, split)


def subset(bank: ClassBank, classes: int | None, images: int | None, seed: int) -> ClassBank:
    """`classes` of a bank's classes and `images` of each one's items, chosen by `seed`; None: all.

    The more is asked for, the more is added to the same ones. Raises `ValueError` for more than there is.
    """
    if classes is not None and classes > len(bank):
        raise ValueError(f"data.classes={classes}: the training split has {len(bank)}")
    smallest = int(bank.sizes.argmin())
    if images is not None and images > int(bank.sizes[smallest]):
        raise ValueError(f"data.images={images}: class '{bank.names[smallest]}' has {int(bank.sizes[smallest])}")
    key = mix(torch.tensor(seed))
    order = mix(key + torch.arange(len(bank))).argsort()
    chosen = order[: len(bank) if classes is None else classes].sort().values
    rows = []
    for c in chosen.tolist():
        own = torch.arange(int(bank.offsets[c]), int(bank.offsets[c + 1]))
        rows.append(own if images is None else own[mix(mix(key + c) + torch.arange(len(own))).argsort()[:images]])
    sizes = torch.tensor([0, *map(len, rows)])
    picked = torch.cat(rows)
    return ClassBank(
        bank.items[picked],
        sizes.cumsum(0),
        tuple(bank.names[c] for c in chosen),
        groups=None if bank.groups is None else bank.groups[picked],
        sources=None if bank.sources is None else bank.sources[chosen],
    )


def with_turns(bank: ClassBank) -> ClassBank:
    """Each class four times: as it is, then turned by 90, 180 and 270 degrees to the left (Santoro et al. 2016).

    Raises `ValueError` for items that are no square images.
    """
    shape = bank.item_shape
    if len(shape) != 3 or shape[1] != shape[2]:
        raise ValueError(f"augment.turn_classes: items are {shape}, and only square images can be turned")
    return replace(
        bank,
        items=torch.cat([torch.rot90(bank.items, quarter, (-2, -1)) for quarter in range(4)]),
        offsets=torch.cat([bank.offsets, *(bank.offsets[1:] + quarter * len(bank.items) for quarter in (1, 2, 3))]),
        names=bank.names + tuple(f"{name}/rot{degrees}" for degrees in (90, 180, 270) for name in bank.names),
        groups=None if bank.groups is None else bank.groups.repeat(4),
        sources=None if bank.sources is None else bank.sources.repeat(4),
        checksum="",
    )
