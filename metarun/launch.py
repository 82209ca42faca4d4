"""The other processes of a run on this machine: started, watched and ended, by torch's elastic launcher.

Of that launcher it is the part that looks after processes. The agent above it would make the `metarun` that was typed
one that only waits for those that compute; here it is the first of them, and keeps its terminal and its signals.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread, current_thread, main_thread
from time import monotonic, sleep
from typing import Any

from metarun.types import TrainingError
from metarun.world import OWN, World

OUT_OF_MEMORY, LEFT = 3, 4
"""exit codes of a helper: it had not enough memory; another one is gone"""
LONGEST = timedelta(hours=6)
"""that ranks wait for one another: while the first decodes its data, say"""
NOTICE = 2.0
"""seconds within which the end of a process is known after its connections have closed"""
STUCK = 60.0
"""seconds after which a first rank that waits for a GPU, which waits for a rank that is gone, is ended as well"""
TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""signals that torch's launcher would answer in this process"""


class RankLost(TrainingError):
    """Another process of the run has ended."""


def arrival(store: Path, rank: int) -> Path:
    """The file by which a helper says that it is there."""
    return store.with_name(f"{rank}.here")


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
        self._store = self._folder / "store"
        self._worlds = [World(rank, count, rank, self._store, os.getpid()) for rank in range(count)]
        # One machine: nothing of it need be seen from outside.
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "")
        known = "GLOO_SOCKET_IFNAME" in os.environ or not loopback
        self._network = {} if known else {"GLOO_SOCKET_IFNAME": loopback}
        self._processes: Any = None  # a `PContext`, which knows them by their ranks less one
        self._quiet = Event()

    def _start(self) -> None:
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std, start_processes

        # What becomes of them is told here.
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
        here = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
        same = self._network | {"OMP_NUM_THREADS": str(self._threads), "PYTHONPATH": here}
        others = dict(enumerate(self._worlds[1:]))
        with _own_signals():
            self._processes = start_processes(
                "metarun",
                sys.executable,
                args=dict.fromkeys(others, ("-P", "-m", "metarun")),
                envs={i: {OWN: world.variable, **same} for i, world in others.items()},
                logs_specs=DefaultLogsSpecs(str(self._folder / "said"), redirects=Std.ALL),
            )

    def join(self) -> None:
        """Starts all and waits until they are there; the first time only. Raises `RankLost` where one ends before."""
        if self.joined:
            return
        self._start()
        Thread(target=self._watch, daemon=True).start()
        while not all(arrival(self._store, world.rank).exists() for world in self._worlds[1:]):
            self.missed()
            sleep(0.01)
        with environment(self._network):
            connect(self._worlds[0])
        self.joined = True

    def missed(self) -> None:
        """Raises `RankLost` where one has ended."""
        if lost := self.lost(0):
            raise RankLost(lost)

    def lost(self, patience: float) -> str:
        """Which process has ended and why, if one has or does within `patience` seconds."""
        until = monotonic() + patience
        while not (gone := self._gone()) and monotonic() < until:
            sleep(0.02)
        if not gone:
            return ""
        rank = min(gone, key=lambda rank: (gone[rank] == LEFT, gone[rank] >= 0))  # nothing explains a signal
        return f"rank {rank} of {len(self._worlds)} {self._end_of(rank, gone[rank])}"

    def _gone(self) -> dict[int, int]:
        # Not by torch's `wait`, which ends the others itself, and takes half a minute where they wait for one another.
        handlers = self._processes.subprocess_handlers if self._processes else {}
        ends = {i + 1: handler.proc.poll() for i, handler in handlers.items()}
        return {rank: code for rank, code in ends.items() if code is not None}

    def _end_of(self, rank: int, code: int) -> str:
        if code == OUT_OF_MEMORY:
            return "had not enough memory; set device.chunk (tasks at a time), or lower train.meta_batch"
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        said = Path(self._processes.stderrs[rank - 1]).read_text(errors="replace").strip()
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
        self._processes.wait(NOTICE, 0.02)

    def end(self, idle: bool) -> None:
        """Nothing is left of them. `idle`: whether all that was on its way between them has arrived."""
        import torch
        import torch.distributed as dist

        if self._processes is not None:
            self._processes.close(signal.SIGKILL)
        if self.joined:
            if not idle:
                # gloo would wait for what it still sends, perhaps for ever, before it is taken apart. So it never is.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
            with contextlib.suppress(RuntimeError):
                dist.destroy_process_group()
        self._quiet.set()
        shutil.rmtree(self._folder, ignore_errors=True)
        torch.set_num_threads(self._before)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """They keep their meaning to this process, and wait; to those that it starts meanwhile, until they can answer."""
    waiting = signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN)
    before = {number: signal.getsignal(number) for number in TAKEN}
    try:
        yield
    finally:
        if current_thread() is main_thread():
            for number, answer in before.items():
                signal.signal(number, answer)
        signal.pthread_sigmask(signal.SIG_SETMASK, waiting)


def _on_gpus() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_initialized()


def connect(world: World) -> None:
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
def environment(more: Mapping[str, str]) -> Iterator[None]:
    os.environ.update(more)
    try:
        yield
    finally:
        for name in more:
            os.environ.pop(name, None)
