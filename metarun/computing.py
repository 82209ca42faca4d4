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
from metarun.engine import portions, stacked
from metarun.engine.distributed import Ranks
from metarun.engine.graph import Recorded, RecordedTogether, recordable
from metarun.engine.loop import Computed, computed
from metarun.engine.state import TrainState
from metarun.engine.step import Portion
from metarun.types import EpisodeBatch, Meta, Sampler

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
    if not _lists(plan, device):
        return None
    from metarun.engine.compiled import WARM, Compiled

    warm = 0 if plan.device.compile is True or _one_kind(plan, episodes) else WARM
    return Compiled(say, warm, compiler(device), few_at_once(plan, device, episodes))


def few_at_once(plan: Plan, device: torch.device, episodes: Sampler) -> Callable[[EpisodeBatch, Meta], int] | None:
    """What tells how many tasks are done at a time because more are hardly faster; None: nothing does.

    Which steps come from a list depends on those before, where they differ. A run that goes on has had others, and must
    sum the same tasks up together.
    """
    able = _lists(plan, device) and device.type == "cpu" and _one_kind(plan, episodes)
    return portions.few_at_once if able and plan.device.chunk == "auto" else None


def _lists(plan: Plan, device: torch.device) -> bool:
    return plan.device.compile is True or (plan.device.compile == "auto" and device.type == "cpu")


def _one_kind(plan: Plan, episodes: Sampler) -> bool:
    """Whether all steps are the same but for what their tensors hold."""
    steps, at_step = plan.train.iterations, plan.algorithm.at_step
    return episodes.steady and at_step(0, steps) == at_step(steps - 1, steps)


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
