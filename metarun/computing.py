"""How a run's device does its part of a training step."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch

from metarun import cache
from metarun.config import Plan
from metarun.device import allow_tf32
from metarun.engine import stacked
from metarun.engine.distributed import Ranks
from metarun.engine.graph import Recorded, RecordedTogether, recordable
from metarun.engine.loop import Computed, computed
from metarun.engine.portions import cached_at_once
from metarun.engine.state import TrainState
from metarun.engine.step import Portion
from metarun.types import Sampler

P = ParamSpec("P")
T = TypeVar("T")


def computing(
    plan: Plan, device: torch.device, state: TrainState, episodes: Sampler, ranks: Ranks, say: Callable[[str], None]
) -> Computed:
    """As the device's settings would have it; `say` tells what was not possible."""
    compute = with_tf32(computed) if plan.device.precision == "tf32" else computed
    if (portion := compiling(plan, device, episodes, say)) is not None:
        compute = partial(compute, portion=portion)
    if device.type != "cuda" or not plan.device.graph or ranks.count > 1 or not episodes.steady:
        return compute
    return Recorded(compute, device, say) if recordable(state.optimizer, state.scheduler is not None) else compute


def compiling(plan: Plan, device: torch.device, episodes: Sampler, say: Callable[[str], None]) -> Portion | None:
    """What computes the gradient of some tasks from a list; None: it is computed as it comes."""
    wanted, last = plan.device.compile, plan.train.iterations - 1
    if wanted is False or (wanted == "auto" and device.type != "cpu"):
        return None
    from metarun.engine.compiled import WARM, Compiled

    # Which steps come from a list depends on those before where they differ. A run that goes on has had others, so the
    # same tasks must be summed up together either way.
    one_kind = episodes.steady and plan.algorithm.at_step(0, last + 1) == plan.algorithm.at_step(last, last + 1)
    few = one_kind and plan.device.chunk == "auto" and device.type == "cpu"
    warm = 0 if wanted is True or one_kind else WARM
    return Compiled(say, warm, compiler(device), cached_at_once if few else None)


def compiler(device: torch.device) -> Callable[..., Any] | None:
    """What makes kernels for the device of a list of operations; None: torch's own are as fast."""
    if device.type == "cpu":
        return None
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.folder() / "kernels"))  # for the runs to come
    return partial(torch.compile, fullgraph=True, dynamic=False)


def computing_together(
    plan: Plan, device: torch.device, states: Sequence[TrainState], steady: bool, say: Callable[[str], None]
) -> stacked.Computed:
    """The same of runs that are trained together, as the device's settings of one, `plan`, would have it; `steady`:
    whether the episodes of all are."""
    compute = with_tf32(stacked.computed) if plan.device.precision == "tf32" else stacked.computed
    if device.type != "cuda" or not plan.device.graph or not steady:
        return compute
    able = all(recordable(state.optimizer, state.scheduler is not None) for state in states)
    return RecordedTogether(compute, device, say) if able else compute


def with_tf32(compute: Callable[P, T]) -> Callable[P, T]:
    """`compute` with it, and what comes after without."""

    def within(*args: P.args, **more: P.kwargs) -> T:
        allow_tf32(True)
        try:
            return compute(*args, **more)
        finally:
            allow_tf32(False)

    return within
