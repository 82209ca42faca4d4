"""The items of one split as one tensor, grouped by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

from torch import Tensor

from metarun.data.sampler import BatchSampler, EpisodeSampler


@dataclass(frozen=True)
class ClassBank:
    """Class `c` owns rows `offsets[c]` to `offsets[c + 1]`."""

    items: Tensor
    """(items, *item) uint8"""
    offsets: Tensor
    """(classes + 1,) int64, ascending from 0"""
    names: tuple[str, ...]
    """one name per class"""
    kind = "classification"

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

    def digest(self) -> str:
        """8 hex digits of the bytes. Call it before the bank goes to a GPU."""
        return f"{crc32(self.items.numpy().data, crc32(self.offsets.numpy().data)):08x}"

    def to(self, device: Any) -> ClassBank:
        return ClassBank(self.items.to(device), self.offsets.to(device), self.names)

    def episodes(
        self, way: int, shot: int, query: int, seed: int, split: str, asked_by: str = "task"
    ) -> EpisodeSampler:
        return EpisodeSampler(self, way, shot, query, seed, split, asked_by)

    def batches(self, seed: int, split: str) -> BatchSampler:
        return BatchSampler(self, seed, split)
