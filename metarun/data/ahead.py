"""Episodes gathered by a thread while the step before them is computed."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from metarun.counter import Number
from metarun.types import EpisodeBatch, Sampler


class Ahead:
    """The same episodes as `sampler`'s. Whoever has asked for some is taken to ask for as many next, as far behind them
    as they are behind those before: where several processes share the episodes, others' lie between."""

    steady = False

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._next: tuple[tuple[int, int], Future[EpisodeBatch]] | None = None
        self._last: int | None = None
        self._stride: int | None = None

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self._sampler.item_shape

    @property
    def outputs(self) -> int:
        return self._sampler.outputs

    def classes(self, first: Number, count: int) -> Tensor | None:
        return self._sampler.classes(first, count)

    def __call__(self, first: Number, count: int) -> EpisodeBatch:
        first = int(first)
        ready = self._next[1] if self._next is not None and self._next[0] == (first, count) else None
        episodes = self._sampler(first, count) if ready is None else ready.result()
        if self._last is not None and first > self._last:  # else it is the first time, or a list's start again
            self._stride = first - self._last
        self._last, after = first, (first + (self._stride or count), count)
        self._next = after, self._thread.submit(self._sampler, *after)
        return episodes
