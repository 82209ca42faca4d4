"""Where a sweep's processes run: the shape that every executor has, and this machine."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol

from metarun.hints import did_you_mean
from metarun.schema import checked, made
from metarun.sweep import process
from metarun.sweep.nursery import Nursery
from metarun.sweep.trial import Work
from metarun.types import InputError

EXECUTORS = {"local": "executor:Local", "slurm": "slurm:Slurm", "ray": "ray:Ray"}
"""what `sweep.executor.name` may be: the file of metarun.sweep, imported when it is asked for, and the class"""
PATIENCE = 20.0
"""seconds that jobs have to save when their pool is closed"""
REAPING = 5.0
"""seconds in which a job that was killed is surely gone"""


@dataclass(frozen=True)
class Needs:
    """What each job of a sweep needs.

    gpus        0: none; 2: two; 0.5: one that it shares with another job
    cpus        cores: the threads of a run
    folder      the sweep's own; of several machines, all must see it under this path
    """

    gpus: float
    cpus: int
    folder: Path


class Job(Protocol):
    """A process that was started."""

    def ended(self) -> int | None:
        """Its exit code, negative for the number of a signal; None while it runs. Never waits."""
        ...

    def stop(self) -> None:
        """Asks it to save and end, as SIGTERM does. Never waits."""
        ...

    def kill(self) -> None:
        """Ends it."""
        ...


class Pool(Protocol):
    """Slots for jobs. Closing it ends what still runs."""

    slots: int

    def start(self, work: Work, slot: int) -> Job:
        """Starts `work` in a slot that is free. A job that could not start has ended, with a line in its log."""
        ...

    def close(self) -> None: ...


class Executor(Protocol):
    """Settings that say where to run."""

    def open(self, needs: Needs, workers: int | None, at_most: int) -> Pool:
        """A pool of `workers` slots (None: as many as there is room for), but never more than `at_most`.

        Raises `InputError` for what cannot be.
        """
        ...


def executor(node: Any) -> Executor:
    """The executor that the config node `sweep.executor` means. Raises `InputError` where it means none."""
    name = node.get("name") if isinstance(node, Mapping) else None
    if name not in EXECUTORS:
        raise InputError(
            f"sweep.executor.name={name}: no such executor; {did_you_mean(str(name), EXECUTORS)} "
            "(choose with sweep/executor=NAME)"
        )
    file, cls = EXECUTORS[name].split(":")
    kind = getattr(importlib.import_module(f"metarun.sweep.{file}"), cls)
    return made(kind, checked(kind, node, "sweep.executor"), "sweep.executor")


def close(jobs: Iterable[Job], patience: float = PATIENCE) -> None:
    """Asks all to end, and kills those that have not after `patience` seconds; or at once after a Ctrl-C."""
    left = [job for job in jobs if job.ended() is None]
    try:
        for job in left:
            job.stop()
        left = _waited(left, patience)
    finally:
        for job in left:
            job.kill()
        _waited(left, REAPING)


def _waited(jobs: list[Job], patience: float) -> list[Job]:
    """Those that still run after `patience` seconds."""
    until = monotonic() + patience
    while (jobs := [job for job in jobs if job.ended() is None]) and monotonic() < until:
        sleep(0.02)
    return jobs


@dataclass(frozen=True)
class Local:
    """This machine: each job is a process, which on GPUs sees those of its slot alone.

    `nursery`: of which runs are born, where one is there already.
    """

    nursery: Nursery | None = None

    def open(self, needs: Needs, workers: int | None, at_most: int) -> LocalPool:
        return LocalPool(*room(needs, workers, at_most), self.nursery)


class LocalPool:
    def __init__(self, slots: int, devices: list[str], nursery: Nursery | None = None) -> None:
        self.slots, self._devices, self._nursery = slots, devices, nursery
        self._jobs: dict[int, Job] = {}

    def start(self, work: Work, slot: int) -> Job:
        mine = own(self._devices, slot)
        if Nursery.serves(work):
            if self._nursery is None or not self._nursery.lives:
                self._nursery = Nursery()
            self._jobs[slot] = Born(self._nursery, self._nursery.start(work, mine))
        else:
            self._jobs[slot] = Started(process.start(work, mine))
        return self._jobs[slot]

    def close(self) -> None:
        close(self._jobs.values())
        if self._nursery is not None:
            self._nursery.close()


@dataclass(frozen=True)
class Born:
    """A job of the nursery's."""

    nursery: Nursery
    number: int

    def ended(self) -> int | None:
        return self.nursery.ended(self.number)

    def stop(self) -> None:
        self.nursery.signal(self.number, signal.SIGTERM)

    def kill(self) -> None:
        self.nursery.signal(self.number, signal.SIGKILL)


@dataclass(frozen=True)
class Started:
    process: subprocess.Popen[bytes] | None

    def ended(self) -> int | None:
        return process.NOT_FOUND if self.process is None else process.ended(self.process)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            process.end(self.process)


def own(devices: list[str], slot: int) -> dict[str, str]:
    """The environment that a slot has for itself: neighbouring slots share a GPU only when all have something to do."""
    return {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]} if devices else {}


def room(needs: Needs, workers: int | None, at_most: int) -> tuple[int, list[str]]:
    """How many slots this machine has, and the GPUs of each in turn as CUDA_VISIBLE_DEVICES names them (none: []).

    Raises `InputError` for more than its GPUs hold. Cores may be shared by as many as the person likes.
    """
    if not needs.gpus:
        return min(at_most, workers or max(1, cores() // needs.cpus)), []
    gpus, each, share = visible(), *portion(needs.gpus)
    if each > len(gpus):
        raise InputError(
            f"a run of this sweep needs {each} GPU{'s' * (each > 1)}, and this machine has {len(gpus) or 'none'}; "
            "set device=cpu, or run it elsewhere: sweep/executor=slurm or ray"
        )
    groups = [",".join(gpus[i : i + each]) for i in range(0, len(gpus) - each + 1, each)]
    most = len(groups) * share
    if workers is not None and workers > most:
        raise InputError(
            f"sweep.workers={workers}: the {len(gpus)} GPU{'s' * (len(gpus) > 1)} of this machine "
            f"hold{'s' * (len(gpus) == 1)} {most}; lower it"
            + (", or raise sweep.per_gpu: so many runs share each" if each == 1 else "")
        )
    return min(at_most, workers or most), groups


def portion(gpus: float) -> tuple[int, int]:
    """(GPUs of a slot, slots that share them): (2, 1) of 2.0, (1, 3) of 0.333. Raises `InputError`: 1.5."""
    if gpus < 1:
        return 1, int(1 / gpus + 1e-6)
    if gpus != int(gpus):
        raise InputError(f"a run cannot have {gpus:g} GPUs: whole ones, or a part of one")
    return int(gpus), 1


def visible() -> list[str]:
    """This machine's GPUs, as CUDA_VISIBLE_DEVICES names them: those that it names already, where it does."""
    import torch

    count = torch.cuda.device_count()  # of those that are visible
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(i) for i in range(count)] if named is None else [name.strip() for name in named.split(",")][:count]


def cores() -> int:
    from loky import cpu_count  # knows of affinity and containers' limits

    return cpu_count()
