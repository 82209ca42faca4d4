"""A process that has imported all that a run needs, and splits itself in two for each run: that takes milliseconds,
where importing torch takes seconds.

It has no threads, has computed nothing and touched no GPU, so that what is born of it is as good as new. It ends when
the driver does, and its children end with it: their standard input is a pipe that it alone holds open.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from typing import Any, NoReturn

from metarun.sweep.process import LOST, NOT_FOUND, say
from metarun.sweep.trial import Work

WORKER = "metarun.sweep.worker"
ROOMS = ("metarun.run", "metarun.together", "metarun.evaluation", "metarun.commands", WORKER)


class Nursery:
    """The driver's end: starts works, and knows how those ended that were."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "metarun.sweep.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout.fileno()
        os.set_blocking(self._from, False)
        self._rest = b""
        self._pids: dict[int, int] = {}
        self._codes: dict[int, int] = {}
        self._count = 0

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    @staticmethod
    def serves(work: Work) -> bool:
        return work.argv[:3] == (sys.executable, "-m", WORKER)

    def start(self, work: Work, own: dict[str, str]) -> int:
        """The number by which it is known from now on."""
        self._count += 1
        order = {"number": self._count, "argv": work.argv[3:], "env": {**os.environ, **work.env, **own}}
        line = json.dumps(order | {"cwd": str(work.folder), "log": str(work.log)}) + "\n"
        try:
            self._to.write(line.encode())
            self._to.flush()
        except OSError:
            say(work, "error: could not be started: the process that starts runs has ended")
            self._codes[self._count] = NOT_FOUND
        return self._count

    def ended(self, number: int) -> int | None:
        """Its exit code, negative for a signal's number; None while it runs."""
        self._read()
        if number not in self._codes and not self.lives:
            self._read()
            return self._codes.setdefault(number, LOST)
        return self._codes.get(number)

    def signal(self, number: int, which: int) -> None:
        """To a work, or with SIGKILL to all that it has started as well."""
        if self.ended(number) is not None:
            return
        while number not in self._pids and self.lives and number not in self._codes:
            select.select([self._from], [], [], 0.1)  # it is only just being started
            self._read()
        if pid := self._pids.get(number):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                (os.killpg if which == signal.SIGKILL else os.kill)(pid, which)

    def close(self) -> None:
        """Whatever it has started ends with it."""
        self._process.kill()  # it may still be importing, and has nothing to lose
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while content := os.read(self._from, 65536):
                self._rest += content
        *lines, self._rest = self._rest.split(b"\n")
        for line in lines:
            told = json.loads(line)
            if "pid" in told:
                self._pids[told["number"]] = told["pid"]
            else:
                self._codes[told["number"]] = told["code"]


def main() -> None:
    """The process itself: an order a line on standard input, a line on standard output for each start and end."""
    for room in ROOMS:
        __import__(room)
    from metarun.registry import ROOMS as KINDS
    from metarun.registry import import_own

    for kind in KINDS:
        import_own(kind)
    gc.collect()
    gc.freeze()  # what is here stays, and is then not copied for a child by looking at it
    alive, held = os.pipe()
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    out = os.dup(1)
    numbers: dict[int, int] = {}
    rest = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            for pid, status in _over():
                _tell(out, {"number": numbers.pop(pid), "code": os.waitstatus_to_exitcode(status)})
        if 0 not in ready:
            continue
        content = os.read(0, 65536)
        if not content:
            return
        *lines, rest = (rest + content).split(b"\n")
        for line in lines:
            order = json.loads(line)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for fd in (held, woken, wakes, out):
                    os.close(fd)
                _be(order, alive)
            numbers[pid] = order["number"]
            _tell(out, {"number": order["number"], "pid": pid})


def _over() -> list[tuple[int, int]]:
    found = []
    with contextlib.suppress(ChildProcessError):
        while (pair := os.waitpid(-1, os.WNOHANG))[0]:
            found.append(pair)
    return found


def _tell(out: int, content: dict[str, Any]) -> None:
    os.write(out, json.dumps(content).encode() + b"\n")


def _be(order: dict[str, Any], alive: int) -> NoReturn:
    """The child goes on as if it had been started by itself."""
    os.setsid()
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for fd, to in ((alive, 0), (log, 1), (log, 2)):
        os.dup2(fd, to)
    for fd in (alive, log):
        os.close(fd)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from metarun.sweep import worker

    code = 1
    try:
        code = worker.main(order["argv"])
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()  # what libraries have left to do
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)  # to take all of torch apart before that would need a third of a second


if __name__ == "__main__":
    main()
