"""Classifiers of single tasks, fitted outside torch and in processes of their own.

This file imports no torch, here or through others: a process that fits classifiers then starts in a second.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cache
from threading import Thread
from time import monotonic, sleep
from typing import Any

Task = tuple[Any, Any, Any, Any]
"""(classifier, support features, support labels, query features)"""
PATIENCE = 1.0
"""seconds of work after which starting other processes is worth it"""


def answer(classifier: Any, support: Any, y: Any, query: Any) -> Any:
    """(query,) the labels that `classifier` gives after it was fitted to the support set"""
    with warnings.catch_warnings(action="ignore"):  # one example of a class has no variance, and the like
        return classifier.fit(support, y).predict(query)


def _away(parent: int, *task: Any) -> Any:
    _end_with(parent)
    return answer(*task)


@cache
def _end_with(parent: int) -> None:
    """Lets this process end soon after `parent`, which may be killed and then tells nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


class Pool:
    """Answers tasks: the first in this process, and once that has taken a while the others in `workers` processes
    (None: one for each core). What the answers are does not depend on where."""

    def __init__(self, workers: int | None = None, patience: float = PATIENCE) -> None:
        self._workers = workers or -1
        self._left = patience

    def __call__(self, tasks: Sequence[Task]) -> list[Any]:
        from joblib import Parallel, delayed, parallel_config
        from threadpoolctl import threadpool_limits

        done = []
        began = monotonic()
        with threadpool_limits(1):  # as in the processes: how many threads add up decides how sums are rounded
            for task in tasks:
                if self._workers != 1 and monotonic() - began >= self._left:
                    break
                done.append(answer(*task))
        self._left -= monotonic() - began
        if len(done) < len(tasks):
            with parallel_config("loky", n_jobs=self._workers, inner_max_num_threads=1):
                done += Parallel(max_nbytes=None)(delayed(_away)(os.getpid(), *task) for task in tasks[len(done) :])
        return done
