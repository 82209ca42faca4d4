"""The processes that share a run: started, called upon, watched and ended.

The first rank is the `metarun` that was typed. It does all that a run of one process does, and alone talks and writes;
the others are helpers, which wait to be called and then compute their part of the same. They hold nothing that is
worth keeping, so whatever happens to the first rank, they just end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.memory import NoMemory, is_about_memory
from metarun.processes import end_with
from metarun.settings import DeviceSettings
from metarun.types import InputError, TrainingError
from metarun.world import OWN, World

OUT_OF_MEMORY, LEFT = 3, 4
"""exit codes of a helper: it had not enough memory; another one is gone"""
LONGEST = timedelta(hours=6)
"""that ranks wait for one another: while the first decodes its data, say"""
NOTICE = 2.0
"""seconds within which the end of a process is known after its connections have closed"""
STUCK = 60.0
"""seconds after which a first rank that waits for a GPU, which waits for a rank that is gone, is ended as well"""

Job = Callable[..., Callable[[], None]]
"""(ranks, **what) -> the work. What it raises `InputError` for is told by the first rank, and nobody works then."""


class RankLost(TrainingError):
    """Another process of the run has ended."""


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
    ours = Company(Ranks(0, count), plugins, helpers=helpers)
    if _apart:
        raise TrainingError("the other ranks are out of step after a run that failed; start this one by itself")
    try:
        yield ours
        if helpers is not None and helpers.joined:
            ours.dismiss()
            helpers.leave()
    except BaseException as e:
        _apart = not isinstance(e, (InputError, TrainingError)) and helpers is None
        if isinstance(e, RuntimeError) and (lost := _lost(helpers, e)):
            raise RankLost("; ".join(filter(None, (lost, ours.way_out)))) from e
        raise
    finally:
        if helpers is not None:
            helpers.end()


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


def cores() -> int:
    from loky import cpu_count  # knows of affinity and containers' limits

    return cpu_count()


class Helpers:
    """The other processes of a run on this machine. They are started when they are first needed, which is after
    everything that a person can get wrong has been looked at."""

    def __init__(self, count: int, threads: int | None) -> None:
        import torch

        self.joined = False
        self._before, self._threads = torch.get_num_threads(), threads or max(1, cores() // count)
        torch.set_num_threads(self._threads)
        self._folder = Path(tempfile.mkdtemp(prefix="metarun-ranks-"))
        self._worlds = [World(rank, count, rank, self._folder / "store", os.getpid()) for rank in range(count)]
        # One machine: nothing of it need be seen from outside.
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "")
        known = "GLOO_SOCKET_IFNAME" in os.environ or not loopback
        self._network = {} if known else {"GLOO_SOCKET_IFNAME": loopback}
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._quiet = Event()

    def _started(self, world: World) -> subprocess.Popen[bytes]:
        here = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        own = {OWN: world.variable, "OMP_NUM_THREADS": str(self._threads), "PYTHONPATH": here}
        # Until it can do better, a helper leaves Ctrl-C to the first rank.
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with self._said(world.rank).open("wb") as said:
                return subprocess.Popen(
                    [sys.executable, "-P", "-m", "metarun"],
                    env=os.environ | self._network | own,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)

    def _said(self, rank: int) -> Path:
        return self._folder / f"{rank}.txt"

    def join(self) -> None:
        """Starts all and waits until they are there; the first time only. Raises `RankLost` where one ends before."""
        if self.joined:
            return
        for world in self._worlds[1:]:
            self._processes[world.rank] = self._started(world)
        Thread(target=self._watch, daemon=True).start()
        while not all((self._folder / f"{rank}.here").exists() for rank in self._processes):
            if lost := self.lost(0):
                raise RankLost(lost)
            sleep(0.01)
        with _environment(self._network):
            _join(self._worlds[0])
        self.joined = True

    def lost(self, patience: float) -> str:
        """Which process has ended and why, if one has or does within `patience` seconds."""
        until = monotonic() + patience
        while not (gone := self._gone()) and monotonic() < until:
            sleep(0.02)
        if not gone:
            return ""
        rank = min(gone, key=lambda rank: (gone[rank] >= 0, rank))  # nothing explains a signal from outside
        return f"rank {rank} of {len(self._worlds)} {self._end_of(rank, gone[rank])}"

    def _gone(self) -> dict[int, int]:
        ends = {rank: process.poll() for rank, process in self._processes.items()}
        return {rank: code for rank, code in ends.items() if code is not None}

    def _end_of(self, rank: int, code: int) -> str:
        if code == OUT_OF_MEMORY:
            return "had not enough memory; set device.chunk (tasks at a time), or lower train.meta_batch"
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        said = self._said(rank).read_text(errors="replace").strip()
        return f"failed with exit code {code}" + (f":\n{said}\n" if said else "")

    def _watch(self) -> None:
        """Where a GPU waits for a rank that is gone nothing wakes this process up, so it is ended."""
        while not self._quiet.wait(1):
            if self._gone() and _on_gpus():
                if not self._quiet.wait(STUCK):
                    print(f"error: {self.lost(0)}; this process waits for it no longer", file=sys.stderr, flush=True)
                    os._exit(1)
                return

    def leave(self) -> None:
        """Ends the connection with all, who have been dismissed."""
        import torch.distributed as dist

        self._quiet.set()
        dist.destroy_process_group()
        self.joined = False
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(NOTICE)

    def end(self) -> None:
        """Nothing is left of them."""
        import torch

        self._quiet.set()
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        if self.joined:
            import torch.distributed as dist

            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
        shutil.rmtree(self._folder, ignore_errors=True)
        torch.set_num_threads(self._before)


def _lost(helpers: Helpers | None, e: RuntimeError) -> str:
    """Why a collective operation has failed, where another process is to blame."""
    if helpers is not None:
        return helpers.lost(NOTICE if _cut(e) else 0)
    return "another rank has ended" if _cut(e) else ""


def _cut(e: RuntimeError) -> bool:
    """Whether it is about a connection."""
    import torch.distributed as dist

    return isinstance(e, dist.DistError) or any(word in str(e) for word in ("Connection", "gloo", "Broken pipe"))


def _on_gpus() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_initialized()


def _join(world: World) -> None:
    """Makes the connection between the processes; returns when all are there."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore

    cuda = torch.cuda.is_available()
    if cuda:
        gpus = torch.cuda.device_count()
        # More processes than GPUs are refused by the first rank, unless they compute on the CPU.
        torch.cuda.set_device(0 if world.own_gpu and gpus == 1 else world.local % gpus)
    backend = "cpu:gloo,cuda:nccl" if cuda and dist.is_nccl_available() else "gloo"
    if world.store is None:
        dist.init_process_group(backend, rank=world.rank, world_size=world.count, timeout=LONGEST)
    else:
        store = FileStore(str(world.store), world.count)
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.count, timeout=LONGEST)


@contextlib.contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    os.environ.update(more)
    try:
        yield
    finally:
        for name in more:
            os.environ.pop(name, None)


def lead(world: World, more: Mapping[str, str], command: Callable[[], int]) -> int:
    """A command in the first of many processes that another program has started; its exit code, and theirs."""
    global _launched
    import torch.distributed as dist

    with _environment(more):
        _join(world)
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
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if world.parent is not None and world.store is not None:
        end_with(world.parent, partial(shutil.rmtree, world.store.parent, ignore_errors=True))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    try:
        if world.store is not None:
            (world.store.parent / f"{world.rank}.here").touch()
        with _environment(more):
            _join(world)
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
