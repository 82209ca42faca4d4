"""Fitting a meta-batch to the memory: how many of its tasks at a time, and going on with fewer when they were too many.

A meta-gradient is a mean over tasks, so the portions that they are taken in change it by rounding alone; and so do
those of an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from textwrap import shorten
from typing import TypeVar

import torch

from metarun.engine.state import TrainState
from metarun.types import Algorithm, TrainingError

Out = TypeVar("Out")
SHARE = 0.8
"""of the memory that is free may be planned with: the rest is for its fragments, and for what others take"""
SIGNS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "storage size calculation",
    "could not create a primitive",  # oneDNN's word for it
)


class NoMemory(TrainingError):
    """One task alone is too much for this process; of those that share a run, others may not meet it."""


def is_about_memory(e: BaseException) -> bool:
    """Whether there was too little memory. torch has a class of its own for a GPU's only."""
    return isinstance(e, MemoryError) or (isinstance(e, RuntimeError) and any(sign in str(e).lower() for sign in SIGNS))


def fitting(tasks: int, one: float, two: float, free: float) -> int:
    """How many of `tasks` tasks at a time `free` bytes hold, where one takes `one` bytes and two `two`; at least 1.

    Of the numbers that need as few portions as the largest does, the smallest: portions are as equal as they can be.
    """
    each = max(two - one, 0.0)
    room = SHARE * free - one
    most = tasks if each * (tasks - 1) <= room else 1 + max(int(room // each), 0)
    return -(-tasks // -(-tasks // most))


def smaller(a: int | None, b: int | None) -> int | None:
    """None is more than any number."""
    return b if a is None else a if b is None else min(a, b)


def in_portions(
    gradient: Callable[[int | None], Out],
    states: Sequence[TrainState],
    algorithm: Algorithm,
    tasks: int,
    asked: int | None,
    say: Callable[[str], None],
) -> Out:
    """`gradient(chunk)` with the largest chunk that was `asked` for and that the memory holds; None: all `tasks`.

    Where it turns out not to hold it, half of that is tried, and kept to from then on (`state.chunk`, of all `states`
    whose gradient it is). `gradient` must start anew each time. Raises `NoMemory` where one task alone is too much.
    """
    step = states[0].step
    while True:
        chunk = reduce(smaller, (state.chunk for state in states), asked)
        try:
            return gradient(chunk)
        except (RuntimeError, MemoryError) as e:
            if not is_about_memory(e):
                raise
            at_once = min(chunk or tasks, tasks)
            if at_once == 1:
                raise NoMemory(_hopeless(algorithm, step, e)) from None
        # Only out here: the exception held on to all that had been computed.
        for state in states:
            state.chunk = (at_once + 1) // 2
        _give_back()
        say(f"step {step}: not enough memory for {at_once} tasks at a time; going on with {(at_once + 1) // 2}")


class Room:
    """How many tasks to evaluate at a time, as it turns out while they are: half as many from there on whenever the
    memory does not hold them, of which `say` is told."""

    def __init__(self, say: Callable[[str], None] = lambda line: None) -> None:
        self._say = say
        self._most: int | None = None

    def parts(self, work: Callable[[int, int], Out], first: int, count: int) -> Iterator[Out]:
        """`work(first, count)`, in one part or in several. Raises `NoMemory` where one task alone is too much."""
        end = first + count
        while first < end:
            part = smaller(end - first, self._most) or 1
            try:
                out = work(first, part)
            except (RuntimeError, MemoryError) as e:
                if not is_about_memory(e):
                    raise
                if part == 1:
                    raise NoMemory(
                        f"not enough memory to evaluate one task alone ({_told(e)}); lower eval.way, eval.shot, "
                        "eval.query or the model's size"
                    ) from None
                self._most = (part + 1) // 2
            else:
                yield out
                first += part
                continue
            _give_back()
            self._say(f"not enough memory to evaluate {part} tasks at a time; going on with {self._most}")


def _give_back() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _told(e: BaseException) -> str:
    return shorten(str(e) or type(e).__name__, 100)


def _hopeless(algorithm: Algorithm, step: int, e: BaseException) -> str:
    told = _told(e)
    if algorithm.supervised:
        return f"step {step}: not enough memory for the batch ({told}); lower train.meta_batch or the model's size"
    try:
        algorithm.recomputing()
        first = "set device.checkpoint_inner=true, or "
    except ValueError:
        first = ""
    return (
        f"step {step}: not enough memory for one task alone ({told}); {first}lower task.way, task.shot, task.query "
        "or the model's size"
    )
