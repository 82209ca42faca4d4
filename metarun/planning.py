"""`metarun plan`: what a run will take of time and memory, told by taking a little of each of its parts.

Nothing of it is kept, and nothing written where runs are.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from metarun import checkpoint, runs
from metarun.build import networks, sampler, serves
from metarun.company import Company
from metarun.computing import computing, few_at_once
from metarun.config import Tree
from metarun.device import describe
from metarun.engine.distributed import ALONE
from metarun.engine.graph import WARM
from metarun.engine.loop import meta_update, tickets
from metarun.engine.portions import tasks_at_once
from metarun.engine.state import TrainState
from metarun.evaluation import Banks, Subject, examined, report
from metarun.loggers.voice import clock
from metarun.memory import free_bytes, peak
from metarun.report import draw, show, table, write
from metarun.run import portion, validated
from metarun.schema import checked, made
from metarun.session import Session, prepare
from metarun.settings import PlanSettings
from metarun.types import InputError

PLACES, RUN_IN, LOOKED_AT = 5, 1, 3
"""Where in the run steps are taken, since they need not all cost the same; steps at each that are not looked at, and
steps that are"""


@dataclass(frozen=True)
class Training:
    """`step` is the mean of the steps' seconds, `seconds` of all of them with what is saved on the way."""

    step: float
    seconds: float
    validation: float
    validations: int
    checkpoint_bytes: int
    at_a_time: int


@dataclass(frozen=True)
class Forecast:
    """Seconds and bytes; None where there is nothing to train, or where the system does not say."""

    start: float
    training: Training | None
    test: float
    peak: int | None
    free: int | None

    @property
    def total(self) -> float:
        t = self.training
        return self.start + self.test + (0 if t is None else t.seconds + t.validations * t.validation)


def plan(tree: Tree, wanted: Tree) -> int:
    """`metarun plan`, from a resolved config."""
    settings = made(PlanSettings, checked(PlanSettings, wanted, "plan"), "plan")
    imported, began = _age(), perf_counter()
    if (count := tree["device"]["processes"]) != 1:
        raise InputError(f"device.processes={count}: metarun plan looks at one process; set device.processes=1")
    session = prepare(tree)
    start = imported + perf_counter() - began
    print(f"{runs.label(tree)} on {describe(session.device)}", flush=True)
    found = forecast(session, tree, start, settings.seconds)
    print()
    table(rows(session, found), print)
    return 0


def forecast(session: Session, tree: Tree, start: float, seconds: float) -> Forecast:
    """Takes steps of a run for about `seconds`, a batch of a validation and one of the test."""
    device = session.device
    free, most = free_bytes(device), peak(device)
    trained = None if session.state is None else training(session, session.state, seconds)
    test = test_seconds(session, tree)
    peaks = [bytes for bytes in (most, peak(device)) if bytes is not None]
    return Forecast(start, trained, test, max(peaks, default=None), free)


def training(session: Session, state: TrainState, seconds: float) -> Training:
    plan = session.plan
    chunk = portion(session, state, ALONE, print)
    step = step_seconds(session, state, chunk, seconds)
    count = plan.train.val_episodes
    tasks = min(tasks_at_once(plan.device.eval_batch, session.val, count, state.meta), count)
    batch = min(timed(session, lambda: validated(session, state, tasks)) for _ in range(2))
    size, save = saved(state)
    at_a_time = state.chunk or min(chunk or plan.train.meta_batch, plan.train.meta_batch)
    if (few := few_at_once(plan, session.device, session.train)) is not None:
        at_a_time = min(at_a_time, few(session.train(0, 1), state.meta))
    validations, saves = (-(-plan.train.iterations // n) for n in (plan.train.val_every, plan.checkpoint.every))
    return Training(
        step,
        plan.train.iterations * step + (validations + saves) * save,  # each validation may be the best so far
        batch * count / tasks,
        validations,
        size,
        at_a_time,
    )


def step_seconds(session: Session, state: TrainState, chunk: int | None, seconds: float) -> float:
    """The mean over the run's steps, from some of them, in `seconds` or little more."""
    plan = session.plan
    net_at, ticket = networks(plan, session.net), tickets(plan.seed)
    compute = computing(plan, session.device, state, session.train, ALONE, print)

    def step() -> None:
        net = net_at(state.step)
        meta_update(plan.algorithm, net, state, session.train, plan.train, ticket, chunk, compute=compute, say=print)

    def at(place: int, steps: int) -> list[float]:
        """Of steps in a row, as a run takes them: what is read ahead is then of use."""
        state.step = place
        return [timed(session, step) for _ in range(steps)]

    first = at(0, 1 if session.device.type == "cpu" else WARM + 2)[-1]  # a GPU's steps may be recorded by then
    places = max(1, min(PLACES, int(seconds / first) // (RUN_IN + LOOKED_AT)))
    looked_at = max(1, min(LOOKED_AT, int(seconds / first)))
    middles = [int((i + 0.5) / places * plan.train.iterations) for i in range(places)]
    return sum(median(at(place, RUN_IN + looked_at)[RUN_IN:]) for place in middles) / places


def saved(state: TrainState) -> tuple[int, float]:
    """The bytes of a checkpoint, and the seconds that one takes to write where temporary files are."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "last.pt"
        began = perf_counter()
        checkpoint.save(path, state)
        return path.stat().st_size, perf_counter() - began


def test_seconds(session: Session, tree: Tree) -> float:
    """The test of what is trained so far on a batch of its tasks, for the seconds that all of them take."""
    plan, state = session.plan, session.state
    began, alone = perf_counter(), Company()
    bank, data = Banks("test").of(plan)
    episodes = sampler(plan, "test", bank)
    serves(plan, tree, session.test_net, bank.kind, "eval")
    trained = state.meta if state is not None else plan.algorithm.init(session.test_net, torch.Generator())
    meta = {name: w.detach() for name, w in plan.algorithm.at_test(trained).items()}
    net = session.test_net.at_test(state.running if state is not None else {})
    tasks = min(tasks_at_once(plan.device.eval_batch, episodes, plan.eval.episodes, meta), plan.eval.episodes)
    few = replace(plan, eval=replace(plan.eval, episodes=tasks))
    with TemporaryDirectory() as name:
        folder = Path(name)
        subject = Subject(tree, few, folder, None, 0, 0, "test", net, meta, bank, data, episodes, None)
        once = timed(session, lambda: examined(subject, alone))
        again = timed(session, lambda: examined(subject, alone))  # the first time much is set up that counts once
        with contextlib.redirect_stdout(io.StringIO()):
            found = report(subject, examined(subject, alone))
            write(found, folder)
            draw(found, folder, lambda line: None)
            show(found, lambda line: None)
    rest = perf_counter() - began - once - 2 * again
    return rest + once + again * (plan.eval.episodes - tasks) / tasks


def timed(session: Session, work: Callable[[], Any]) -> float:
    """Seconds, until the device has done it."""
    began = perf_counter()
    work()
    if session.device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - began


def rows(session: Session, found: Forecast) -> dict[str, str]:
    plan, t = session.plan, found.training
    told = {"start": clock(found.start)}
    if t is not None:
        told["training"] = f"{clock(t.seconds)}  ({plan.train.iterations:,} steps of {t.step:.3g} s)"
        each = f"{t.validations:,} of {t.validation:.3g} s, {plan.train.val_episodes:,} tasks each"
        told["validation"] = f"{clock(t.validations * t.validation)}  ({each})"
    told["test"] = f"{clock(found.test)}  ({plan.eval.episodes:,} tasks)"
    told["total"] = clock(found.total)
    free = "" if found.free is None else f"  ({size(found.free)} were free at the start)"
    told["peak memory"] = "unknown here" if found.peak is None else f"{size(found.peak)}{free}"
    told["data"] = f"{size(session.data_bytes)} on the device"
    if t is not None:
        told["tasks at a time"] = f"{t.at_a_time} of {plan.train.meta_batch}"
        told["a checkpoint"] = size(t.checkpoint_bytes)
    return told


def size(bytes: int) -> str:
    """`1.24 GB`"""
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes >= one:
            return f"{bytes / one:.3g} {unit}"
    return f"{bytes} bytes"


def _age() -> float:
    """Seconds since this process was started, which went into importing; 0 where the system does not say."""
    try:
        started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return 0.0
