"""Runs that differ in real numbers or in their seed alone, trained at once: one gradient for a step of all of them.

Each run's meta-parameters are a row of a stack, and the losses of its tasks are vmapped once more, over the rows. No
run's loss depends on another's weights, so the gradient of the sum of their mean losses has in each row the gradient of
that run by itself. What follows the gradient, and all that a run does between its steps, is each run's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from metarun.counter import Number, counted
from metarun.engine import loop
from metarun.engine.eager import vmap
from metarun.engine.loop import EPISODES, Course
from metarun.engine.memory import NoMemory, in_portions
from metarun.engine.state import TrainState
from metarun.engine.step import GRADIENT, LOSSES, Ticketed, add_shares, in_chunks, move, task_loss
from metarun.settings import TrainSettings
from metarun.types import Algorithm, EpisodeBatch, Episodes, Meta, Net, TaskLoss, TrainingError

Numbers = dict[str, Tensor]
"""(runs,) each: the settings of a method that are not the same in all runs"""


@dataclass(frozen=True)
class Member:
    """One of the runs. Those of the same seed have the same `episodes`, one and the same object.

    net_at(step)    the network of a step, from 0
    ticket          where its random numbers start (see `metarun.engine.loop.tickets`)
    """

    course: Course
    algorithm: Algorithm
    net_at: Callable[[int], Net]
    episodes: Episodes
    ticket: int

    @property
    def state(self) -> TrainState:
        return self.course.state

    @property
    def settings(self) -> TrainSettings:
        return self.course.settings

    @property
    def now(self) -> Algorithm:
        """The method as it is for the next step."""
        return self.algorithm.at_step(self.state.step, self.settings.iterations)


def fit_together(
    members: Sequence[Member],
    update: Callable[[Sequence[Member]], list[dict[str, Tensor]]],
    ended: Callable[[Member, Exception | None], None],
) -> None:
    """Trains all runs in place, each to the end of its own course. `update` makes a step of some (see `updated`).

    Those that are behind others take their steps first. `ended` is called as soon as a run is over, with what it failed
    of, if it did; the others go on without it.
    """

    def over(member: Member, failure: Exception | None = None) -> None:
        going.remove(member)
        ended(member, failure)

    going = list(members)
    for member in members:
        member.course.begin()
        if member.course.finished is not None:
            over(member)
    while going:
        behind = min(member.state.step for member in going)
        now = [member for member in going if member.state.step == behind]
        try:
            found = update(now)
        except Exception as e:
            for member in now:
                over(member, e)
            continue
        for member, metrics in zip(now, found, strict=True):
            try:
                member.course.take(metrics)
            except Exception as e:
                over(member, e)
            else:
                if member.course.finished is not None:
                    over(member)


def updated(
    members: Sequence[Member],
    chunk: int | None = None,
    say: Callable[[str], None] = lambda line: None,
    compute: Computed | None = None,
) -> list[dict[str, Tensor]]:
    """Moves all runs one meta-update on, from one and the same step; the mean metrics of each, still on the device."""
    first = members[0].state.step * members[0].settings.meta_batch
    found = (compute or computed)(members, first, chunk, say)
    for member in members:
        member.state.advance()
    return [{name: value[i] for name, value in found.items()} for i in range(len(members))]


def computed(
    members: Sequence[Member], first: Number, chunk: int | None, say: Callable[[str], None]
) -> dict[str, Tensor]:
    """What the device does of a step of all runs; (runs,) mean metrics, still there.

    `first` is the number of the meta-batch's first episode. `chunk` tasks of each run at a time; `say` is told where
    they are more than the memory holds, as in `metarun.engine.step.update`.
    """
    states = [member.state for member in members]
    if len(members) == 1:
        (one,) = members
        net = one.net_at(one.state.step)
        alone = loop.computed(one.now, net, one.state, one.episodes, one.settings, first, one.ticket, chunk, say=say)
        return {name: value[None] for name, value in alone.items()}
    batch = drawn(members, first)

    def gradient(chunk: int | None) -> tuple[dict[str, Tensor], Meta]:
        for state in states:
            state.optimizer.zero_grad(set_to_none=True)
        return gradients(members, batch, chunk)

    try:
        metrics, moments = in_portions(gradient, states, members[0].algorithm, batch.ticket.shape[-1], chunk, say)
    except NoMemory as e:
        raise NoMemory(f"{e}; or train fewer than {len(members)} runs together") from None
    for i, member in enumerate(members):
        settings, own = member.settings, {name: value[i] for name, value in moments.items()}
        move(member.state, own, settings.clip, (settings.l1, settings.l2))
    return metrics


Computed = Callable[[Sequence[Member], Any, int | None, Callable[[str], None]], dict[str, Tensor]]
"""`computed`, or what does the same in another way"""


def drawn(members: Sequence[Member], first: Number) -> Ticketed:
    """The tasks of the runs' step that begins with episode `first`: all have the axes (runs, tasks), or (tasks,) where
    all runs take the same."""
    with record_function(EPISODES):
        sets: dict[int, EpisodeBatch] = {}
        for member in members:
            if id(member.episodes) not in sets:
                sets[id(member.episodes)] = member.episodes(first, member.settings.meta_batch)
        each = [sets[id(member.episodes)] for member in members]
        tasks, device = len(each[0].support_x), each[0].query_x.device
        if len({(id(member.episodes), member.ticket) for member in members}) == 1:
            return Ticketed(each[0], counted(first + members[0].ticket, tasks, device))
        tickets = torch.stack([counted(first + member.ticket, tasks, device) for member in members])
        return Ticketed(EpisodeBatch(*map(torch.stack, zip(*each, strict=True))), tickets)


def gradients(members: Sequence[Member], batch: Ticketed, chunk: int | None = None) -> tuple[dict[str, Tensor], Meta]:
    """`metarun.engine.step.meta_gradient` of each run on its part of `batch` (see `drawn`), all at once; what it
    returns has a leading axis of runs."""
    states = [member.state for member in members]
    net, weight = members[0].net_at(states[0].step), next(iter(states[0].meta.values()))
    algorithm, numbers = blended([member.now for member in members], weight.dtype, weight.device)
    axis, tasks = batch.ticket.dim() - 1, batch.ticket.shape[-1]
    running = stacked([state.running for state in states])
    metrics: dict[str, Tensor] = {}
    moments: Meta = {}

    def of_run(meta: Meta, running: Meta, numbers: Numbers, part: Ticketed) -> TaskLoss:
        return vmap(task_loss(with_numbers(algorithm, numbers), net, meta, running))(part)

    for part in in_chunks(batch, chunk, axis):
        with record_function(LOSSES), _told(numbers):
            metas = stacked([state.meta for state in states])
            out = vmap(of_run, (0, 0, 0, 0 if axis else None))(metas, running, numbers, part)
        with record_function(GRADIENT):
            (out.loss.sum() / tasks).backward()
        add_shares(metrics, out.metrics, tasks, axis=1)
        add_shares(moments, out.moments, tasks, axis=1)
    return metrics, moments


def stacked(metas: Sequence[Meta]) -> Meta:
    """(runs, ...) for each name; differentiable"""
    return {name: torch.stack([meta[name] for meta in metas]) for name in metas[0]}


def blended(algorithms: Sequence[Algorithm], dtype: torch.dtype, device: torch.device) -> tuple[Algorithm, Numbers]:
    """The first of these, and by name the settings in which they differ, as tensors that `with_numbers` puts in.

    Raises `TrainingError` where they differ in anything but real numbers.
    """
    numbers: Numbers = {}
    for name in (f.name for f in fields(algorithms[0])):  # pyright: ignore[reportArgumentType]
        values = tuple(getattr(algorithm, name) for algorithm in algorithms)
        if all(value == values[0] for value in values):
            continue
        if not all(type(value) is float for value in values):
            raise TrainingError(f"{name} is {values[0]} in one run and not in another: they cannot be trained together")
        numbers[name] = _on_device(values, dtype, device)
    return algorithms[0], numbers


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Kept, for sending them there waits for the device."""
    return torch.tensor(values, dtype=dtype, device=device)


def with_numbers(algorithm: Algorithm, numbers: Numbers) -> Algorithm:
    """The method with () tensors in the place of some of its settings: past its own checks, which are for floats."""
    changed = copy(algorithm)
    for name, value in numbers.items():
        object.__setattr__(changed, name, value)
    return changed


@contextmanager
def _told(numbers: Numbers) -> Iterator[None]:
    """Raises `TrainingError` where a method reads one of its settings in Python, as it may when it is a float."""
    try:
        yield
    except (RuntimeError, TypeError) as e:
        if not numbers or (isinstance(e, RuntimeError) and not str(e).startswith("vmap:")):
            raise
        names, why = ", ".join(f"algo.{name}" for name in numbers), " ".join(str(e).split())[:100]
        raise TrainingError(
            f"runs with other values of {names} cannot be trained together: the method reads one in Python ({why}); "
            "train one at a time, or say so in the method: setting(..., apart=True)"
        ) from None
