"""The processes that share a run, its ranks: each computes its part of the tasks, and all go on with the same sums.

What passes between them is tensors and plain data; nothing that one receives is ever run. A run of one process has
`ALONE`, which does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from io import BytesIO
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(seconds=1)
"""that others are waited for before it is asked whether they are all there"""


def _nobody() -> None:
    pass


@dataclass(frozen=True)
class Ranks:
    """This process is `rank`, from 0, of `count`. All ranks must ask for the same things in the same order.

    missed()    raises where another rank is known to be gone. It is asked now and then while others are waited for:
                gloo can wait for ever for those that were killed.
    """

    rank: int = 0
    count: int = 1
    missed: Callable[[], None] = field(default=_nobody, compare=False, repr=False)

    @property
    def first(self) -> bool:
        """Whether this one talks and writes."""
        return self.rank == 0

    def part(self, tasks: int) -> range:
        """Which of a meta-batch's tasks are this rank's. Every task is one rank's, and parts differ by one at most."""
        return range(self.rank * tasks // self.count, (self.rank + 1) * tasks // self.count)

    def mean_(self, means: Sequence[Tensor], share: float, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Makes means over this rank's tasks, in place, those over all tasks, of which it has the part `share`.

        They go together, in one all-reduce; every rank ends with the same bits. While they are on their way
        `meanwhile` is done, which needs none of them.
        """
        if self.count == 1:
            return
        import torch.distributed as dist

        with torch.no_grad():
            flat = torch.cat([mean.flatten() for mean in means]).mul_(share)
            sums = dist.all_reduce(flat, async_op=True)
            meanwhile()
            self.arrived(sums, flat)
            for mean, total in zip(means, flat.split([mean.numel() for mean in means]), strict=True):
                mean.copy_(total.view_as(mean))

    def dealt(self, items: Sequence[T]) -> Sequence[T]:
        """Which of the items are this rank's: every `count`-th."""
        return items[self.rank :: self.count]

    def collected(self, mine: list[Any]) -> list[Any]:
        """What has come of `dealt` items on all ranks, in the items' order (see `gathered`)."""
        hands = self.gathered(mine)
        return [hands[i % self.count][i // self.count] for i in range(sum(map(len, hands)))]

    def gathered(self, mine: Any) -> list[Any]:
        """What each rank has brought: tensors, which come to the CPU, in plain tuples, lists and mappings."""
        if self.count == 1:
            return [mine]
        import torch.distributed as dist

        data = _packed(mine)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        self.arrived(dist.all_gather(sizes, own := torch.tensor([len(data)]), async_op=True), own)
        most = max(int(size) for size in sizes)
        rows = [torch.zeros(most, dtype=torch.uint8) for _ in sizes]
        data = torch.cat([data, data.new_zeros(most - len(data))])
        self.arrived(dist.all_gather(rows, data, async_op=True), data)
        return [_unpacked(row[: int(size)]) for row, size in zip(rows, sizes, strict=True)]

    def shared(self, own: Any) -> Any:
        """What the first rank has brought; the others' `own` is nobody's."""
        if self.count == 1:
            return own
        import torch.distributed as dist

        data = _packed(own if self.first else None)
        size = torch.tensor([len(data)])
        self.arrived(dist.broadcast(size, 0, async_op=True), size)
        if not self.first:
            data = torch.zeros(int(size), dtype=torch.uint8)
        self.arrived(dist.broadcast(data, 0, async_op=True), data)
        return own if self.first else _unpacked(data)

    def arrived(self, work: Any, content: Tensor) -> None:
        """Waits until `content` has been everywhere. On a GPU it is the device that waits."""
        if content.is_cuda:
            work.wait()
            return
        while not work.is_completed():
            try:
                work.wait(PATIENCE)
            except RuntimeError:
                if not work.is_completed():
                    self.missed()
        work.wait()


ALONE = Ranks()


class Vote:
    """A number from each rank at each step, of which all learn the largest; nobody waits for it.

    What is learned is of the step before, which all ranks have ended; a run of one process learns its own at once.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._cast: tuple[Any, Tensor] | None = None

    def __call__(self, number: int) -> int:
        if self._ranks.count == 1:
            return number
        import torch.distributed as dist

        before = 0
        if self._cast is not None:
            work, largest = self._cast
            self._ranks.arrived(work, largest)
            before = int(largest)
        ballot = torch.tensor(number)
        self._cast = dist.all_reduce(ballot, dist.ReduceOp.MAX, async_op=True), ballot
        return before


def _packed(content: Any) -> Tensor:
    file = BytesIO()
    torch.save(content, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _unpacked(data: Tensor) -> Any:
    return torch.load(BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)
