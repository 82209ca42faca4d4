"""`metarun profile`: where the time of a training step goes, by phase and by operator."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from metarun import runs
from metarun.algorithms.inner import STEP
from metarun.build import networks
from metarun.computing import computing
from metarun.config import Plan, Tree
from metarun.device import describe
from metarun.engine.distributed import ALONE
from metarun.engine.loop import EPISODES, meta_update, tickets
from metarun.engine.state import TrainState
from metarun.engine.step import GRADIENT, LOSSES, UPDATE
from metarun.environment import environment
from metarun.files import write_json
from metarun.run import portion
from metarun.schema import checked, made
from metarun.session import Session, prepare
from metarun.settings import ProfileSettings
from metarun.types import InputError

PHASES = {EPISODES: 0, LOSSES: 0, STEP: 1, GRADIENT: 0, UPDATE: 0}
"""The phases of a step, in order, and how deep each lies in the one before it"""
NAME = 44
"""letters of an operator's name in the table"""


@dataclass(frozen=True)
class Part:
    name: str
    calls: float
    """a step"""
    seconds: float
    """a step, on the device that the run computes on: a phase's with all that is in it, an operator's own"""


@dataclass(frozen=True)
class Profile:
    step_seconds: float
    """median of the steps as a run takes them: recorded, or from a list, where it does"""
    apart_seconds: float
    """median of those that are taken apart, with nothing watching them"""
    peak_bytes: int | None
    """the most memory of the device that one of those had; None on a CPU"""
    phases: tuple[Part, ...]
    operators: tuple[Part, ...]
    """the longest first"""


def profile(tree: Tree, wanted: Tree, asked: Path | None) -> int:
    """`metarun profile`, from a resolved config: what it finds is printed, and written to a new folder."""
    settings = made(ProfileSettings, checked(ProfileSettings, wanted, "profile"), "profile")
    if (count := tree["device"]["processes"]) != 1:
        raise InputError(f"device.processes={count}: metarun profile looks at one process; set device.processes=1")
    session = prepare(tree)
    if session.state is None:
        raise InputError(f"algo={tree['algo']['name']} has nothing to train, so there is no step to look at")
    folder = runs.claim("profile", tree, asked)
    steps = 2 * settings.warmup + 3 * settings.steps
    print(f"{runs.label(tree)} on {describe(session.device)}, {steps} steps", flush=True)
    found = watched(session, session.state, settings, folder / "trace.json")
    runs.write_config(folder, tree)
    write_json(folder / "profile.json", asdict(found) | {"environment": environment(session.device)})
    for line in told(found, settings.operators):
        print(line)
    print(f"\nprofile: {folder}")
    return 0


def watched(session: Session, state: TrainState, settings: ProfileSettings, trace: Path) -> Profile:
    """Takes `warmup` and `steps` training steps as a run does; the same again as they come, which have phases; and as
    many with torch's profiler, which slows them."""
    plan, cuda = session.plan, session.device.type == "cuda"
    net_at, ticket = networks(plan, session.net), tickets(plan.seed)
    chunk = portion(session, state, ALONE, print)
    apart = replace(plan, device=replace(plan.device, graph=False, compile=False))

    def stepping(plan: Plan) -> Callable[[], None]:
        compute = computing(plan, session.device, state, session.train, ALONE, print)

        def step() -> None:
            net = net_at(state.step)
            meta_update(plan.algorithm, net, state, session.train, plan.train, ticket, chunk, compute=compute)
            if cuda:
                torch.cuda.synchronize()

        return step

    def seconds(step: Callable[[], None]) -> float:
        for _ in range(settings.warmup):
            step()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        return median(timed(step) for _ in range(settings.steps))

    taken, step = seconds(stepping(plan)), stepping(apart)
    taken_apart = seconds(step)
    peak = torch.cuda.max_memory_allocated() if cuda else None
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would tell of every start, and of the GPU that is not there
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities) as seen:
        for _ in range(settings.steps):
            step()
    seen.export_chrome_trace(str(trace))
    events = [event for event in seen.key_averages() if not event.key.startswith("ProfilerStep")]
    own, whole = ("self_device_time_total", "device_time_total") if cuda else ("self_cpu_time_total", "cpu_time_total")

    def parts(chosen: Iterable[Any], time: str) -> list[Part]:
        steps = settings.steps
        return [Part(event.key, event.count / steps, getattr(event, time) / 1e6 / steps) for event in chosen]

    phases = parts([event for event in events if event.key in PHASES], whole)
    operators = parts([event for event in events if event.key not in PHASES], own)
    return Profile(
        taken,
        taken_apart,
        peak,
        tuple(sorted(phases, key=lambda part: list(PHASES).index(part.name))),
        tuple(sorted((part for part in operators if part.seconds), key=lambda part: -part.seconds)),
    )


def timed(work: Callable[[], None]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def told(found: Profile, operators: int) -> list[str]:
    """The tables, of at most 80 columns. Shares are of all phases' time, and of all operators'."""
    whole = sum(part.seconds for part in found.phases if PHASES[part.name] == 0)
    own = sum(part.seconds for part in found.operators)
    peak = "" if found.peak_bytes is None else f", {found.peak_bytes / 1e9:.2f} GB at most"
    lines = [
        f"{1e3 * found.step_seconds:,.1f} ms a step (median)",
        f"{1e3 * found.apart_seconds:,.1f} ms where it is taken apart, as here{peak}",
    ]
    for title, parts, total in (("phase", found.phases, whole), ("operator", found.operators[:operators], own)):
        lines += ["", f"  {title:<{NAME}}{'calls':>10}{'ms a step':>12}{'share':>9}"]
        for part in parts:
            name = "  " * PHASES.get(part.name, 0) + part.name
            name = name if len(name) <= NAME else f"{name[: NAME - 3]}..."
            share = 100 * part.seconds / total if total else 0
            lines.append(f"  {name:<{NAME}}{part.calls:>10,.1f}{1e3 * part.seconds:>12,.2f}{share:>7.1f} %")
    return lines
