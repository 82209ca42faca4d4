"""Work spread over processes of their own.

This file imports no torch, here or through others: a process then starts in a fraction of a second, unless the work
itself needs torch.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from threading import Thread
from time import monotonic, sleep
from typing import TypeVar

PATIENCE = 0.3
"""seconds of work after which starting other processes is worth it"""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

T = TypeVar("T")
R = TypeVar("R")


def spread(
    work: Callable[[T], R], items: Sequence[T], workers: int | None = None, patience: float = PATIENCE
) -> Iterator[R]:
    """`work` of each item, in order: in this process and, once that has taken `patience` seconds, beside it in others,
    `workers` in all (None: one for each core), with one thread each. Work and items must pickle then.

    Raises `concurrent.futures.BrokenExecutor` where such a process is ended from outside.
    """
    began, here = monotonic(), 0
    while here < len(items) and (workers == 1 or monotonic() - began < patience):
        yield work(items[here])
        here += 1
    if here < len(items):
        from loky import cpu_count  # knows of affinity and containers' limits

        others, rest = (workers or cpu_count()) - 1, items[here:]
        yield from _beside(work, rest, others) if others else map(work, rest)


def _beside(work: Callable[[T], R], items: Sequence[T], others: int) -> Iterator[R]:
    """`work` of each item, in order. Rather than wait, this process takes the next that no other has begun."""
    from loky import get_reusable_executor

    executor = get_reusable_executor(
        others, env=dict.fromkeys(THREADS, "1"), initializer=end_with, initargs=(os.getpid(),)
    )
    # The processes start with Ctrl-C blocked, for it is this one that ends them.
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        theirs = [executor.submit(work, item) for item in items]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)
    mine: dict[int, R] = {}
    ahead = 0
    try:
        for i, future in enumerate(theirs):
            while not future.done() and ahead < len(items):
                if theirs[ahead].cancel():  # it is not begun, and now done is all it will ever be
                    mine[ahead] = work(items[ahead])
                ahead += 1
            yield mine.pop(i) if i in mine else future.result()
    finally:
        for future in theirs:
            future.cancel()


def end_with(parent: int, last: Callable[[], object] = lambda: None) -> None:
    """Lets this process end soon after `parent`, which may be killed and then tells nobody; `last` is done first."""

    def watch() -> None:
        while os.getppid() == parent:
            sleep(1)
        last()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
