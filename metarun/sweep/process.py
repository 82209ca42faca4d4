"""A process of a sweep, on the machine where it runs: started, asked to end, ended.

Light: on a cluster this is imported beside every job. The process itself must end when its standard input closes, for
that is all that one which started it and was then killed can still tell it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from metarun.files import write_atomic
from metarun.sweep.trial import Work

STOPPED = 128 + signal.SIGTERM
"""the exit code of a run that was asked to end, and has saved: 143"""
LOST = -signal.SIGKILL
"""said of a job that ended where nobody saw its exit code"""
NOT_FOUND = 127
"""said of a job that could not be started at all"""
CALLS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""by which schedulers say that a job has to end: Slurm, Ray's cancel, and submitit when time is nearly over"""
TICK, LOOK = 0.05, 0.5
"""seconds between looks at the process, and between looks at files that say what is to become of it"""
GONE = 180.0
"""seconds without a sign of life after which a driver on another machine is taken for dead"""


def say(work: Work, text: str) -> None:
    """Adds a line to the job's log, if it can be written at all."""
    with contextlib.suppress(OSError), work.log.open("a", encoding="utf-8") as log:
        log.write(f"{text}\n")


def start(work: Work, own: Mapping[str, str]) -> subprocess.Popen[bytes] | None:
    """Starts `work` with this process's environment, `work.env` and then `own` on top of it.

    It has a session of its own, so that Ctrl-C reaches only whoever started it. None, with a line in its log, where it
    cannot be started.
    """
    try:
        with work.log.open("ab") as log:
            return subprocess.Popen(
                work.argv,
                env={**os.environ, **work.env, **own},
                cwd=work.folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as e:
        say(work, f"error: could not be started: {e}")
        return None


def end(process: subprocess.Popen[bytes]) -> None:
    """Kills the process and all that it has started and left in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def ended(process: subprocess.Popen[bytes]) -> int | None:
    """Its exit code, or None. Of one that was killed nothing is left."""
    code = process.poll()
    if code is not None and process.stdin is not None and not process.stdin.closed:
        if code < 0:
            end(process)
        process.stdin.close()
    return code


def attend(work: Work, own: Mapping[str, str], orders: Callable[[], int] = lambda: 0, pass_on: bool = True) -> int:
    """Runs `work` to its end on this machine, and returns its exit code: what a scheduler is given to do.

    The first signal that asks this process to end goes on to the job as SIGTERM, unless the scheduler tells all
    processes itself (not `pass_on`): a run dies of a second one, and must not be hurried when it saves. `orders` is
    asked now and then: SIGTERM, SIGKILL, or 0 for none. Must be called in the main thread.
    """
    with _noted() as heard:
        process = None if heard else start(work, own)
        if process is None:
            return STOPPED if heard else NOT_FOUND
        asked = 0
        try:
            while (code := ended(process)) is None:
                order = orders() or (signal.SIGTERM if heard else 0)
                if order == signal.SIGKILL:
                    end(process)
                elif order and not asked:
                    asked = order
                    if pass_on or not heard:
                        process.terminate()
                sleep(TICK)
            return code
        finally:
            if process.poll() is None:
                end(process)
                process.wait()


@contextlib.contextmanager
def _noted() -> Iterator[list[int]]:
    """The signals that have asked this process to end, none of which then has its usual effect."""
    heard: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in CALLS}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def task(
    work: Work,
    own: Mapping[str, str],
    kill: Path,
    driver: Path | None = None,
    patience: float = GONE,
    pass_on: bool = True,
) -> int:
    """`attend`, with orders by files that all machines see: the job is killed once there is a file `kill`. It is
    stopped once the file `driver` is gone, or has said nothing new for `patience` seconds of this machine's clock."""
    alive = (lambda: True) if driver is None else signs_of_life(driver, patience)
    looked = -LOOK

    def orders() -> int:
        nonlocal looked
        if monotonic() - looked < LOOK:
            return 0
        looked = monotonic()
        if kill.exists():
            return signal.SIGKILL
        return 0 if alive() else signal.SIGTERM

    return attend(work, own, orders, pass_on)


def recorded(code: Path, work: Work, *how: Any) -> None:
    """`task`, whose exit code is then written to the file `code`, for the driver to see."""
    result = task(work, *how)
    write_atomic(code, lambda file: file.write(str(result).encode()))


def signs_of_life(file: Path, patience: float) -> Callable[[], bool]:
    """Asked again and again, says whether whoever keeps changing `file` is still there.

    No clocks are compared. A file that cannot be read now has no news; one that is missing twice running is gone.
    """
    last, heard, missing = b"", monotonic(), 0

    def alive() -> bool:
        nonlocal last, heard, missing
        try:
            text, missing = file.read_bytes(), 0
        except FileNotFoundError:
            missing += 1
            return missing < 2
        except OSError:
            text = last
        if text != last:
            last, heard = text, monotonic()
        return monotonic() - heard < patience

    return alive
