"""The examples of one split as one tensor, grouped by task: every task is a regression of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from metarun.counter import MIX, Number, counted, mix, signed
from metarun.data.sampler import LEAST, stream
from metarun.measures import MEASURES, Measure
from metarun.types import EpisodeBatch, InputError


@dataclass(frozen=True)
class TaskBank:
    """Task `t` owns rows `offsets[t]` to `offsets[t + 1]`. They need not be where episodes are made: `offsets` is."""

    dataset: str
    """its name, for messages"""
    items: Tensor
    """(rows, *item) float32"""
    targets: Tensor
    """(rows, *target) float32"""
    offsets: Tensor
    """(tasks + 1,) int64, ascending from 0"""
    tasks: tuple[str, ...]
    """one name per task"""
    measures: tuple[Measure, ...] = (MEASURES["mse"],)
    sieve: str = ""
    """the setting that leaves small tasks out, where there is one"""
    ahead: bool = False
    kind = "regression"
    names = ()

    def __post_init__(self) -> None:
        assert len(self.offsets) == len(self.tasks) + 1
        assert int(self.offsets[-1]) == len(self.items) == len(self.targets)

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def item_shape(self) -> tuple[int, ...]:
        return tuple(self.items.shape[1:])

    @property
    def outputs(self) -> int:
        return self.targets[0].numel()

    @property
    def sizes(self) -> Tensor:
        """(tasks,) rows of each task"""
        return self.offsets.diff()

    @property
    def bytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.items, self.targets))

    @property
    def device(self) -> torch.device:
        """Where episodes are made."""
        return self.offsets.device

    def digest(self) -> str:
        """8 hex digits of the rows and of where tasks begin. Call it before the bank goes to a GPU."""
        value = 0
        for part in (self.offsets, self.items, self.targets):
            value = crc32(part.contiguous().view(torch.uint8).numpy().data, value)
        return f"{value:08x}"

    def to(self, device: Any, budget: int | None = None) -> TaskBank:
        fits = budget is None or self.bytes <= budget
        items, targets = (part.to(device) if fits else part for part in (self.items, self.targets))
        return replace(self, items=items, targets=targets, offsets=self.offsets.to(device), ahead=not fits)

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) -> (n, *item) and (n, *target) on the bank's device"""
        rows = rows.to(self.items.device)
        x, y = (part[rows] for part in (self.items, self.targets))
        if x.device != self.device:
            x, y = (part.pin_memory().to(self.device, non_blocking=True) for part in (x, y))
        return x, y

    def episodes(self, way: int, shot: int, query: int, seed: int, split: str, asked_by: str = "task") -> TaskSampler:
        check_way(way, asked_by)
        return TaskSampler(self, shot, query, seed, split, asked_by)

    def batches(self, seed: int, split: str) -> TaskSampler:
        raise no_classes(self.dataset)


@dataclass(frozen=True)
class TaskSampler:
    """Draws a task, every one equally likely, then `shot + query` distinct rows of it: pure in (seed, split, index).

    `split` and `asked_by` are as in `EpisodeSampler`. Raises `InputError` when a task has too few rows.
    """

    bank: TaskBank
    shot: int
    query: int
    seed: int
    split: str
    asked_by: str = "task"

    def __post_init__(self) -> None:
        bank, where, need = self.bank, self.asked_by, self.shot + self.query
        smallest = int(bank.sizes.argmin())
        size = int(bank.sizes[smallest])
        if need > size:
            raise InputError(
                f"task '{bank.tasks[smallest]}' of '{self.split}' has {size} rows, {where}.shot + {where}.query = "
                f"{self.shot} + {self.query} = {need}: lower {where}.shot or {where}.query"
                + (f", or set {bank.sieve}={need} to leave such tasks out" if bank.sieve else "")
            )

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.bank.item_shape

    @property
    def outputs(self) -> int:
        return self.bank.outputs

    @property
    def steady(self) -> bool:
        return not self.bank.ahead

    @cached_property
    def _stream(self) -> int:
        return stream(self.seed, f"{self.split} tasks")

    @cached_property
    def _largest(self) -> int:
        return int(self.bank.sizes.max())  # read once: reading it per step would wait for the device

    def classes(self, first: Number, count: int) -> None:
        return None

    def tasks(self, first: Number, count: int) -> Tensor:
        """(count,) which task of the bank each episode is of"""
        return mix(self._tickets(first, count)).remainder(len(self.bank))

    def _tickets(self, first: Number, count: int) -> Tensor:
        """(count,) a random number for each episode"""
        return mix(counted(first, count, self.bank.device) + self._stream)

    def __call__(self, first: Number, count: int) -> EpisodeBatch:
        """x of shape (count, shot or query, *item), y of shape (count, shot or query, *target)"""
        bank, task = self.bank, self.tasks(first, count)
        rank = torch.arange(self._largest, device=bank.device)
        key = mix(mix(self._tickets(first, count) ^ signed(MIX[0]))[:, None] + rank)
        there = rank < bank.sizes[task][:, None]
        picked = key.masked_fill(~there, LEAST).topk(self.shot + self.query, dim=1).indices
        rows = bank.offsets[task][:, None] + picked
        x, y = (part.unflatten(0, (count, -1)) for part in bank.rows(rows.flatten()))
        cut = self.shot
        return EpisodeBatch(x[:, :cut], y[:, :cut], x[:, cut:], y[:, cut:])


def check_way(way: int, asked_by: str) -> None:
    if way != 1:
        raise InputError(f"{asked_by}.way={way}: a regression task has no classes; set {asked_by}.way=1")


def no_classes(dataset: str) -> InputError:
    return InputError(f"dataset={dataset} has no classes to train a classifier on; choose a dataset that has")


@dataclass(frozen=True)
class Scale:
    """Columns standardised: (x - mean) / sd of the training rows."""

    mean: Tensor
    """(columns,) float64"""
    sd: Tensor
    """(columns,) float64, infinite for a column that is constant or empty: it is 0 wherever it is met"""

    @classmethod
    def of(cls, rows: Tensor) -> Scale:
        """rows: (rows, columns), NaN where a number is missing"""
        there = ~rows.isnan()
        mean = rows.nanmean(0, dtype=torch.float64)
        sd = (rows - mean).square().nanmean(0).sqrt()
        least, most = (rows.masked_fill(~there, end) for end in (torch.inf, -torch.inf))
        varies = (least.amin(0) < most.amax(0)) & (sd > 0)
        return cls(mean, sd.masked_fill(~varies, torch.inf))

    def __call__(self, rows: Tensor) -> Tensor:
        """(rows, columns) float32; what is missing is taken for the mean. Infinite where it is out of all bounds."""
        scaled = (rows - self.mean) / self.sd
        return scaled.masked_fill(scaled.isnan(), 0).float()

    @property
    def constant(self) -> list[int]:
        """The columns that say nothing."""
        return self.sd.isinf().nonzero().flatten().tolist()


def grouped(
    dataset: str, items: Tensor, targets: Tensor, task: Sequence[int] | Tensor, names: Sequence[str], **more: Any
) -> TaskBank:
    """A bank of rows in any order; `task` says which of `names` each is of. Names without rows are left out."""
    of = torch.as_tensor(task)
    order = of.argsort(stable=True)
    sizes = of.bincount(minlength=len(names))
    offsets = torch.cat([sizes.new_zeros(1), sizes[sizes > 0].cumsum(0)])
    there = tuple(name for name, size in zip(names, sizes.tolist(), strict=True) if size)
    return TaskBank(dataset, items[order], targets[order], offsets, there, **more)
