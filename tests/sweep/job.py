"""What tests give executors to do: `python job.py WHAT`, in a folder of its own. No torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from time import sleep
from typing import Any


def note(name: str, what: Any = None) -> None:
    """A file that is there, whole, once it is seen."""
    Path(f".{name}").write_text(json.dumps(what))
    Path(f".{name}").rename(name)


def saves(number: int, frame: Any) -> None:
    """As a run does: after a while, and a second signal in the meantime has its usual effect."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sleep(0.3)
    note("saved")
    os._exit(143)


def with_parent() -> None:
    sys.stdin.read()
    note("alone")
    os._exit(1)


def main(what: str) -> int:
    if what.startswith("exit"):
        print("said out", flush=True)
        print("said err", file=sys.stderr, flush=True)
        return int(what.removeprefix("exit"))
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, saves)
        threading.Thread(target=with_parent, daemon=True).start()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) if what == "parent" else None
    note(
        "started",
        {
            "pid": os.getpid(),
            "above": os.getppid(),
            "session": os.getsid(0),
            "child": child and child.pid,
            "env": dict(os.environ),
            "cwd": str(Path.cwd()),
        },
    )
    if what == "tell":
        return 0
    while True:
        sleep(600)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
