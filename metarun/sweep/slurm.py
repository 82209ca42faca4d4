"""A sweep's jobs in the queue of a Slurm cluster, through submitit: https://github.com/facebookincubator/submitit"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

from metarun.sweep import process
from metarun.sweep.executor import Needs, close, own, portion, room
from metarun.sweep.trial import Work
from metarun.types import InputError, setting

NOTICE = 90
"""seconds before its time is over that a job is told, to save"""
OVER = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED")
OVER += ("REVOKED", "TIMEOUT")
"""the states of Slurm's accounting from which no job comes back: none is ever put into the queue a second time"""
WAYS_OUT = {"OUT_OF_MEMORY": "raise sweep.executor.memory_gb", "TIMEOUT": "raise sweep.executor.minutes"}
BEAT, ASK, LIST, LATE = 15.0, 10.0, 0.5, 20.0
"""seconds: between the driver's signs of life; between questions to Slurm, about all jobs at once; between looks for
exit codes; and that one may be late to be seen on a shared file system"""
SLURMS_OWN = ("nodes", "ntasks_per_node", "gpus_per_node", "cpus_per_task", "job_name", "time", "mem", "partition")


@dataclass(frozen=True)
class Slurm:
    """A Slurm cluster: each job goes through its queue.

    `cluster` is `slurm`, or `local`: the same on this machine alone, to try it out. A job is given `minutes` and
    `memory_gb` (None: the cluster's own) in `partition`. `more`: other parameters of submitit (`account`, `qos`,
    `constraint`, `gres`, `setup`, ...), and of `sbatch` by their long names.
    """

    cluster: str = setting("slurm", choices=("slurm", "local"))
    partition: str | None = setting(None)
    minutes: int = setting(720, least=5)
    memory_gb: float | None = setting(None, above=0)
    more: dict[str, Any] = setting({})

    def __post_init__(self) -> None:
        for name in SLURMS_OWN:
            if name in self.more:
                raise ValueError(f"more.{name}: is set by the sweep: cores by device.threads, the rest by its own keys")

    def open(self, needs: Needs, workers: int | None, at_most: int) -> SlurmPool:
        try:
            import submitit
        except ImportError:
            raise InputError("sweep/executor=slurm: submitit is not installed; pip install 'metarun[slurm]'") from None
        logging.getLogger("submitit").setLevel(logging.ERROR)
        folder = needs.folder / "slurm"
        if self.cluster == "local":
            slots, devices = room(needs, workers, at_most)
            executor = submitit.LocalExecutor(folder)
            executor.update_parameters(timeout_min=self.minutes, stderr_to_stdout=True)
            return SlurmPool(executor, folder, slots, devices, real=False)
        if not all(map(shutil.which, ("sbatch", "srun", "sacct", "scancel"))):
            raise InputError(
                "sweep/executor=slurm: this machine has no sbatch, srun, sacct and scancel; type it on a machine of "
                "the cluster, or set sweep.executor.cluster=local to try it here"
            )
        if workers is None:
            raise InputError(
                "sweep.workers=auto: Slurm does not say how many jobs may run at once; "
                "set it to as many as may be in the queue: sweep.workers=8"
            )
        executor = submitit.SlurmExecutor(folder)
        executor.update_parameters(**self._parameters(needs, folder))
        _check(executor)
        return SlurmPool(executor, folder, min(workers, at_most), [], real=True)

    def _parameters(self, needs: Needs, folder: Path) -> dict[str, Any]:
        """What submitit is told; raises `InputError`."""
        import submitit

        whole, share = portion(needs.gpus or 1)
        if share > 1:
            raise InputError("sweep.per_gpu: Slurm gives out whole GPUs; leave it at 1")
        known = submitit.SlurmExecutor._valid_parameters() - {"additional_parameters"}
        flags = {name.replace("_", "-"): value for name, value in self.more.items() if name not in known}
        # Slurm tells all of a job's processes that they must end: with the signal that a run knows, not submitit's.
        flags = {"signal": f"TERM@{NOTICE}", "no-requeue": True, **flags}
        return {
            "job_name": f"metarun-{needs.folder.name}",
            "time": self.minutes,
            "cpus_per_task": needs.cpus,
            "stderr_to_stdout": True,
            **({"gpus_per_node": whole} if needs.gpus else {}),
            **({"mem": f"{int(self.memory_gb * 1024)}MB"} if self.memory_gb else {}),
            **({"partition": self.partition} if self.partition else {}),
            **{name: value for name, value in self.more.items() if name in known},
            "additional_parameters": flags,
        }


def _check(executor: Any) -> None:
    """Lets Slurm look at what it would be given, without giving it."""
    script = executor._make_submission_file_text("true", "")
    said = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    if said.returncode:
        raise InputError(f"Slurm refuses such jobs: {_last_line(said.stderr)}; see sweep.executor")


class SlurmPool:
    """Jobs are where Slurm has put them, and are told by files in the sweep's folder what signals cannot tell them.

    `FOLDER/driver` changes while this process lives: jobs end by themselves when it does not, for it may be killed.
    """

    def __init__(self, executor: Any, folder: Path, slots: int, devices: list[str], real: bool) -> None:
        self.slots = slots
        self.folder, self.real = folder, real
        self._executor, self._devices = executor, devices
        self._jobs: dict[int, SlurmJob] = {}
        self._names: set[str] = set()
        self._listed = self._asked = float("-inf")
        self._cancel_leftovers()
        self._driver = folder / f"driver-{secrets.token_hex(4)}"
        self._beat()
        self._closed = Event()
        Thread(target=self._live, daemon=True).start()

    def start(self, work: Work, slot: int) -> SlurmJob:
        self._jobs[slot] = job = SlurmJob(self, work)
        there = (work, own(self._devices, slot), self.folder / f"{job.token}.kill", self._driver)
        try:
            with _quiet():
                job.submitted = self._executor.submit(
                    process.recorded, self.folder / f"{job.token}.code", *there, process.GONE, not self.real
                )
        except Exception as e:  # submitit raises what sbatch said in several ways
            process.say(work, f"error: Slurm did not take this job: {_last_line(str(e))}")
            job.code = process.NOT_FOUND
        return job

    def close(self) -> None:
        try:
            close(self._jobs.values())
        finally:
            self._closed.set()
            self._empty()
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def has(self, name: str) -> bool:
        """Whether there is such a file. The folder is listed, for a shared file system may remember that there was
        none, and not for each job anew."""
        if monotonic() - self._listed > LIST:
            self._names = set(os.listdir(self.folder))  # noqa: PTH208
            self._listed = monotonic()
        return name in self._names

    def state(self, submitted: Any) -> str:
        """What Slurm says of a job: `OUT_OF_MEMORY`; "" while it says nothing. All are asked about together."""
        mode = "cache"
        if monotonic() - self._asked > ASK:
            mode, self._asked = "force", monotonic()
        words = submitted.watcher.get_state(submitted.job_id, mode=mode).split()
        return words[0].rstrip("+") if words else ""  # CANCELLED by 1000

    def _cancel_leftovers(self) -> None:
        """Jobs of a driver that was killed; this one starts them anew, from what they have saved."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ids = [path.name.partition("_")[0] for path in self.folder.glob("*_submitted.pkl")]
        if ids and self.real:
            subprocess.run(["scancel", *ids], capture_output=True, check=False)
        self._empty()

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            path.unlink(missing_ok=True)

    def _live(self) -> None:
        while not self._closed.wait(BEAT):
            self._beat()

    def _beat(self) -> None:
        with contextlib.suppress(OSError):  # the next may succeed
            self._driver.write_text(secrets.token_hex(8))


class SlurmJob:
    def __init__(self, pool: SlurmPool, work: Work) -> None:
        self.token = secrets.token_hex(4)
        self.submitted: Any = None
        self.code: int | None = None
        self._pool, self._work = pool, work
        self._stopped = False
        self._over: float | None = None

    def ended(self) -> int | None:
        if self.code is None:
            self.code = self._result()
            if self.code is not None:
                self._tidy()
        return self.code

    def _result(self) -> int | None:
        file = self._pool.folder / f"{self.token}.code"
        if self._pool.has(file.name) and (self._pool.real or self.submitted.done()):
            return int(file.read_text())
        if not self._is_over():
            return None
        if file.exists():
            return int(file.read_text())
        if self._stopped:
            return process.STOPPED  # it may not even have begun
        process.say(self._work, f"error: {self._reason()}")
        return process.LOST

    def _is_over(self) -> bool:
        """Whether Slurm has been done with it for so long that its exit code would be here."""
        if not self._pool.real:
            return self.submitted.done()
        if self._pool.state(self.submitted) not in OVER:
            return False
        self._over = self._over or monotonic()
        return monotonic() - self._over > LATE

    def _reason(self) -> str:
        name = f"job {self.submitted.job_id}"
        state = self._pool.state(self.submitted) if self._pool.real else "gone"
        said = self.submitted.paths.stdout
        line = _last_line(said.read_text(errors="replace")) if said.exists() else ""
        way_out = f"; {WAYS_OUT[state]}" if state in WAYS_OUT else ""
        return f"Slurm has ended {name}: {state}{way_out}{f' ({line})' if line else ''}"

    def stop(self) -> None:
        if self.ended() is None:
            self._stopped = True
            self._signal("TERM")

    def kill(self) -> None:
        if self.ended() is None:
            self._stopped = False
            (self._pool.folder / f"{self.token}.kill").touch()
            self._signal("KILL")

    def _signal(self, name: str) -> None:
        id = self.submitted.job_id
        if self._pool.real:
            # Without a signal it is cancelled: out of the queue, or SIGTERM to all its processes and time to save.
            how = ["--signal=KILL", id] if name == "KILL" and self._pool.state(self.submitted) == "RUNNING" else [id]
            subprocess.run(["scancel", *how], capture_output=True, check=False)
        elif name == "TERM":
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(id), signal.SIGTERM)  # submitit's own process passes it on; its `cancel` leaves 1 s

    def _tidy(self) -> None:
        """Nothing of submitit's is left: pickles would be code in a run's folder."""
        if self.submitted is not None:
            mine = (f"{self.token}.", f"{self.submitted.job_id}_")
            for path in self._pool.folder.iterdir():
                if path.name.startswith(mine) or (path.is_symlink() and not path.exists()):
                    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Neither submitit's advice on the terminal, nor what a job that this process is part of tells its own jobs."""
    from submitit.helpers import clean_env

    with warnings.catch_warnings(), clean_env():
        warnings.simplefilter("ignore")
        yield


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing was said"])[-1].strip()
