"""What a process other than a run's first is called for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metarun import config, evaluation, run
from metarun.company import Job
from metarun.engine.distributed import Ranks


def _with_plugins(job: Job) -> Job:
    def begin(ranks: Ranks, plugins: list[str], **what: Any) -> Callable[[], None]:
        config.load_plugins(plugins)
        return job(ranks, **what)

    return begin


JOBS = {"train": _with_plugins(run.assist), "examine": _with_plugins(evaluation.assist)}
