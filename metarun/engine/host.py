"""Classifiers of single tasks, fitted outside torch and in processes of their own.

This file imports no torch, here or through others: a process that fits classifiers then starts in a second.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from time import monotonic
from typing import Any

from metarun.processes import spread

Task = tuple[Any, Any, Any, Any]
"""(classifier, support features, support labels, query features)"""
PATIENCE = 1.0
"""seconds of work after which starting other processes is worth it"""


def answer(classifier: Any, support: Any, y: Any, query: Any) -> Any:
    """(query,) the labels that `classifier` gives after it was fitted to the support set"""
    with warnings.catch_warnings(action="ignore"):  # one example of a class has no variance, and the like
        return classifier.fit(support, y).predict(query)


class Pool:
    """Answers tasks, spread over processes once this one has worked `patience` seconds on them (see `spread`). What the
    answers are does not depend on where."""

    def __init__(self, workers: int | None = None, patience: float = PATIENCE) -> None:
        self._workers = workers
        self._left = patience

    def __call__(self, tasks: Sequence[Task]) -> list[Any]:
        from threadpoolctl import threadpool_limits

        began = monotonic()
        with threadpool_limits(1):  # as in the processes: how many threads add up decides how sums are rounded
            done = list(spread(_answered, tasks, self._workers, self._left))
        self._left -= monotonic() - began
        return done


def _answered(task: Task) -> Any:
    return answer(*task)
