"""A sweep's jobs as tasks of a Ray cluster: https://docs.ray.io/en/latest/ray-core/tasks.html"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metarun.sweep import process
from metarun.sweep.executor import Needs, close, portion
from metarun.sweep.trial import Work
from metarun.types import InputError, setting

PASSED = ("METARUN_", "WANDB_", "PYTHONPATH")
"""what the driver's variables are called that its jobs have too: other machines have an environment of their own"""
REACHABLE = 5.0
"""seconds in which a cluster must answer; Ray itself would wait for ever"""
STORE = 100 * 2**20
"""bytes of the object store of a Ray that is started here: nothing is ever put there"""


@dataclass(frozen=True)
class Ray:
    """A Ray cluster: each job is a task, which has the GPUs and cores that it needs on one of its machines.

    `address` is the cluster's, HOST:PORT; `auto`: of the one that this machine belongs to; None: one is started here.
    """

    address: str | None = setting(None)

    def open(self, needs: Needs, workers: int | None, at_most: int) -> RayPool:
        try:
            import ray
        except ImportError:
            raise InputError("sweep/executor=ray: Ray is not installed; pip install 'metarun[ray]'") from None
        portion(needs.gpus or 1)  # is it a number of GPUs at all
        began = not ray.is_initialized()
        if began:
            with _undisturbed():
                _connect(ray, self.address)
        holds = sum(_holds(node["Resources"], needs) for node in ray.nodes() if node["Alive"])
        if not holds:
            if began:
                ray.shutdown()
            raise InputError(
                f"no machine of the Ray cluster has {needs.cpus} cores"
                + (f" and {needs.gpus:g} GPUs" if needs.gpus else "")
                + " for a run; lower device.threads, or add machines with: ray start --address=HOST:PORT"
            )
        return RayPool(ray, needs, min(at_most, workers or holds), began)


class RayPool:
    """More slots than the cluster has room for are no harm: what does not fit waits for its turn there."""

    def __init__(self, ray: Any, needs: Needs, slots: int, ours: bool) -> None:
        self.slots = slots
        self._ray, self._folder, self._ours = ray, needs.folder, ours
        self._jobs: dict[int, RayJob] = {}
        self._task = ray.remote(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            max_retries=0,
            max_calls=1,  # a Ray worker of its own, which ends with it
            scheduling_strategy="SPREAD",
        )(process.task)

    def start(self, work: Work, slot: int) -> RayJob:
        kill = self._folder / f".kill-{secrets.token_hex(4)}"
        passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED)}
        there = replace(work, env={**passed, **work.env})
        self._jobs[slot] = RayJob(self._ray, self._task.remote(there, {}, kill), work, kill)
        return self._jobs[slot]

    def close(self) -> None:
        try:
            close(self._jobs.values())
        finally:
            if self._ours:
                self._ray.shutdown()


class RayJob:
    def __init__(self, ray: Any, ref: Any, work: Work, kill: Path) -> None:
        self._ray, self._ref, self._work, self._kill = ray, ref, work, kill
        self._code: int | None = None

    def ended(self) -> int | None:
        if self._code is None and self._ray.wait([self._ref], timeout=0)[0]:
            self._code = self._result()
            self._kill.unlink(missing_ok=True)
        return self._code

    def _result(self) -> int:
        try:
            code = self._ray.get(self._ref)
        except self._ray.exceptions.TaskCancelledError:  # it had not begun
            return process.STOPPED
        except self._ray.exceptions.RayError as e:
            process.say(self._work, f"error: Ray has lost this job: {type(e).__name__}: {_first_line(e)}")
            return process.LOST
        if code == process.NOT_FOUND:
            process.say(
                self._work,
                f"error: the machine that Ray chose could not start it; does it see {self._work.folder} "
                f"and {self._work.argv[0]} under these paths?",
            )
        return code

    def stop(self) -> None:
        if self.ended() is None:
            self._ray.cancel(self._ref, force=False)

    def kill(self) -> None:
        """Not Ray's `force`, which kills its own process and leaves the job's alone."""
        if self.ended() is None:
            self._kill.touch()
            self._ray.cancel(self._ref, force=False)


def _connect(ray: Any, address: str | None) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    # What Ray tells of its workers' ends would go through the table; each job's log has it.
    ray._private.worker.print_to_stdstream = lambda *args, **kwargs: None
    if address is None:
        ray.init(address="local", include_dashboard=False, object_store_memory=STORE, **quiet)
        return
    try:
        if address == "auto":
            address = ray._private.services.canonicalize_bootstrap_address_or_die("auto")
        host, _, port = str(address).rpartition(":")
        socket.create_connection((host, int(port)), REACHABLE).close()
        ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as e:
        what = "auto" if address is None else address
        raise InputError(
            f"sweep.executor.address={what}: no Ray cluster can be reached there ({_first_line(e)}); "
            "start one with: ray start --head, and type this on one of its machines"
        ) from None


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ray sets variables and a handler of SIGTERM, which are this process's own business."""
    env, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        for name in set(os.environ) - set(env):
            del os.environ[name]
        os.environ.update(env)
        with contextlib.suppress(ValueError):  # not the main thread, where Ray sets none either
            signal.signal(signal.SIGTERM, handler)


def _holds(resources: dict[str, float], needs: Needs) -> int:
    """How many jobs a machine has room for at once."""
    cpus = int(resources.get("CPU", 0) // needs.cpus)
    if not needs.gpus:
        return cpus
    each, share = portion(needs.gpus)
    return min(cpus, int(resources.get("GPU", 0)) // each * share)


def _first_line(e: Exception) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]
