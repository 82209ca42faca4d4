"""The processes that share a run, and what they do for one another.

The first rank is the `metarun` that was typed. It does all that a run of one process does, and alone talks and writes;
the others are helpers, which wait to be called and then compute their part of the same. They hold nothing that is
worth keeping, so whatever happens to the first rank, they just end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import sleep
from typing import Any

from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.memory import NoMemory, is_about_memory
from metarun.launch import LEFT, NOTICE, OUT_OF_MEMORY, TAKEN, Helpers, RankLost, arrival, connect, cores, environment
from metarun.processes import end_with
from metarun.settings import DeviceSettings
from metarun.types import InputError, TrainingError
from metarun.world import World

Job = Callable[..., Callable[[], None]]
"""(ranks, **what) -> the work. What it raises `InputError` for is told by the first rank, and nobody works then."""


@dataclass
class Company:
    """This process as the first of `ranks`, and what it needs to call upon the others."""

    ranks: Ranks = ALONE
    plugins: Sequence[str] = ()
    way_out: str = ""
    """what to do when one is lost"""
    helpers: Helpers | None = None
    """those that this process has started itself"""

    def call(self, job: str, **what: Any) -> None:
        """Lets the others begin a job, and returns when they are about to. `what`: tensors and plain data.

        Raises `InputError` where one of them cannot: data that its machine does not have, for one.
        """
        if self.ranks.count == 1:
            return
        if self.helpers is not None:
            self.helpers.join()
        self.ranks.shared({"job": job, "plugins": [*self.plugins], **what})
        wrong = [f"rank {rank}: {text}" for rank, text in enumerate(self.ranks.gathered("")) if text]
        if wrong:
            raise InputError("\n".join(wrong))

    def dismiss(self, code: int = 0) -> None:
        """The others end."""
        self.ranks.shared({"job": None, "code": code})


_launched: tuple[World, Ranks] | None = None
"""where torchrun or Slurm has started this process as the first of many"""
_apart = False
"""whether those are no longer where this one thinks they are"""


@contextlib.contextmanager
def company(settings: DeviceSettings, plugins: Sequence[str] = (), tasks: int | None = None) -> Iterator[Company]:
    """As many processes as `device.processes` says, to share a meta-batch of `tasks` where anything is trained.

    Raises `InputError` for a number that cannot be, `RankLost` where one of them ends before its time.
    """
    global _apart
    count = processes(settings, tasks)
    if count == 1:
        yield Company()
        return
    helpers = None if _launched else Helpers(count, settings.threads)
    ranks = Ranks(0, count) if helpers is None else Ranks(0, count, helpers.missed)
    ours = Company(ranks, plugins, helpers=helpers)
    if _apart:
        raise TrainingError("the other ranks are out of step after a run that failed; start this one by itself")
    idle = True
    try:
        yield ours
        if helpers is not None and helpers.joined:
            ours.dismiss()
            helpers.leave()
    except BaseException as e:
        idle = isinstance(e, InputError)
        _apart = not isinstance(e, (InputError, TrainingError)) and helpers is None
        if lost := _lost(helpers, e):
            raise RankLost("; ".join(filter(None, (lost, ours.way_out)))) from e
        raise
    finally:
        if helpers is not None:
            helpers.end(idle)


def processes(settings: DeviceSettings, tasks: int | None) -> int:
    """How many processes `settings` ask for here. Raises `InputError` where it cannot be so many."""
    import torch

    asked, gpus = settings.processes, torch.cuda.device_count() if settings.kind != "cpu" else 0
    if _launched is not None:
        count = _launched[1].count
        if asked not in ("auto", count):
            raise InputError(
                f"device.processes={asked}: {count} processes were started together; "
                "set device=ddp, which takes as many as there are"
            )
        where = "here"
        if gpus and int(os.environ.get("LOCAL_WORLD_SIZE") or 1) > gpus:
            raise InputError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes were started on a machine with {gpus} GPUs, and each "
                "needs its own: start fewer, or set device.kind=cpu"
            )
    elif asked == "auto":
        count = gpus or max(1, cores() // (settings.threads or 1))
        return count if tasks is None else min(count, tasks)
    else:
        count, where = int(asked), f"device.processes={asked}"
        if gpus and count > gpus:
            raise InputError(
                f"{where}: this machine has {gpus} GPU{'s' if gpus > 1 else ''}, and each process needs its own; "
                "lower it, or set device.kind=cpu"
            )
    if tasks is not None and count > tasks:
        raise InputError(
            f"{where}: {count} processes cannot share a meta-batch of {tasks}; "
            f"lower device.processes to {tasks} or less, or raise train.meta_batch"
        )
    return count


def _lost(helpers: Helpers | None, e: BaseException) -> str:
    """Why a collective operation has failed, where another process is to blame; else nothing."""
    if isinstance(e, RankLost):
        return str(e)
    if not isinstance(e, RuntimeError):
        return ""
    if helpers is not None:
        return helpers.lost(NOTICE if _cut(e) else 0)
    return "another rank has ended" if _cut(e) else ""


def _cut(e: RuntimeError) -> bool:
    """Whether it is about a connection."""
    import torch.distributed as dist

    return isinstance(e, dist.DistError) or any(word in str(e) for word in ("Connection", "gloo", "Broken pipe"))


def lead(world: World, more: Mapping[str, str], command: Callable[[], int]) -> int:
    """A command in the first of many processes that another program has started; its exit code, and theirs."""
    global _launched
    import torch.distributed as dist

    with environment(more):
        connect(world)
    _launched = world, Ranks(0, world.count)
    code = 1
    try:
        code = command()
    finally:
        if not _apart:
            with contextlib.suppress(RuntimeError):
                Company(_launched[1]).dismiss(code)
                dist.destroy_process_group()
    return code


def serve(world: World, more: Mapping[str, str], jobs: Mapping[str, Job]) -> int:
    """The life of every other process: it does what the first calls it for until it is dismissed. Its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first rank says what a Ctrl-C means
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TAKEN)
    if world.parent is not None and world.store is not None:
        end_with(world.parent, partial(shutil.rmtree, world.store.parent, ignore_errors=True))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        if world.store is not None:
            arrival(world.store, world.rank).touch()
        with environment(more):
            connect(world)
        code = _served(Ranks(world.rank, world.count), jobs)
        import torch.distributed as dist

        dist.destroy_process_group()
        return code
    except (MemoryError, NoMemory):
        return OUT_OF_MEMORY
    except RuntimeError as e:
        if is_about_memory(e):
            return OUT_OF_MEMORY
        if not _cut(e):
            raise
        if world.parent is not None:
            sleep(10 * NOTICE)  # the first rank finds out which one is gone, and ends this one; or is itself the one
        return LEFT


def _served(ranks: Ranks, jobs: Mapping[str, Job]) -> int:
    while (job := (what := ranks.shared(None)).pop("job")) is not None:
        wrong, work = "", None
        try:
            work = jobs[job](ranks, **what)
        except InputError as e:
            wrong = str(e)
        if any(ranks.gathered(wrong)) or work is None:
            continue
        try:
            work()
        except NoMemory:
            raise
        except TrainingError:
            pass  # the first rank meets it as well, and says so
    return what["code"]
