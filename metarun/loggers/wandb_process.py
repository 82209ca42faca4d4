"""The process that talks to Weights & Biases for one run. It reads JSON lines and knows nothing of metarun.

    {"mode": "auto", "parent": PID, "init": {...}}        first, once
    {"step": 10, "values": {"train/loss": 0.5}}           any number of times
    {"summary": {"best": 0.9}, "exit_code": 0}            last; without it the run is marked as crashed

What it prints is for the person: one line that says how it logs, one if it had to stop, `done` when all is done.
Online only when a key and its server are there; offline otherwise, saying why.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from typing import Any

ANSWER = 1.5
"""seconds that the server has for each sign of life"""
INIT = 15.0
"""seconds that the server has to start a run"""
LINGER = 300.0
"""seconds after the run's end that this process may still need to send things up"""


def say(text: str) -> None:
    with contextlib.suppress(OSError):  # the run is gone
        print(" ".join(text.split()), flush=True)


def main() -> None:
    start = json.loads(sys.stdin.readline() or "null")
    if start is None:
        return
    # A scheduler that stops a job tells all of its processes. The run saves what it has and then tells this one.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb

        work(wandb, start)
        say("done")
        wandb.teardown()
    except BaseException as e:
        # Also SystemExit, which wandb raises on its own account.
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        say(f"stopped ({reason[:200]}); the run goes on and metrics.jsonl has every row")
    # Not `sys.exit`: wandb's own hooks may wait for its server, and all that there is to do has been done.
    os._exit(0)


def work(wandb: Any, start: dict[str, Any]) -> None:
    run = open_run(wandb, start)
    ended: dict[str, Any] = {"summary": {}, "exit_code": 1}
    for line in sys.stdin:
        row = json.loads(line)
        if "exit_code" in row:
            ended = row
            break
        run.log(row["values"], step=row["step"])
    alarm = threading.Timer(LINGER, os._exit, [1])
    alarm.daemon = True
    alarm.start()
    run.summary.update(ended["summary"])
    run.finish(exit_code=ended["exit_code"])


def open_run(wandb: Any, start: dict[str, Any]) -> Any:
    mode, why = choose_mode(wandb, start["mode"])
    if mode == "online":
        try:
            run = init(wandb, start, mode)
            say(f"online ({run.url or why})")
            return run
        except Exception as e:
            why = f"its server would not start a run: {(str(e).strip().splitlines() or [type(e).__name__])[0][:120]}"
            wandb.teardown()
            mode = "offline"
    run = init(wandb, start, mode)
    say(f"{mode} ({why})")
    return run


def init(wandb: Any, start: dict[str, Any], mode: str) -> Any:
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=INIT,
        program="metarun",
        x_stats_pid=start["parent"],  # whose memory and processor time to show
    )
    resume = "allow" if mode == "online" else None
    return wandb.init(**start["init"], resume=resume, mode=mode, settings=settings)


def choose_mode(wandb: Any, wanted: str) -> tuple[str, str]:
    """online, offline or disabled, and why."""
    asked = os.environ.get("WANDB_MODE")
    if asked in ("offline", "disabled", "dryrun"):
        return ("offline" if asked == "dryrun" else asked), "WANDB_MODE"
    if wanted in ("offline", "disabled"):
        return wanted, "logger.mode"
    if not wandb.login(prompt=False, verify=False):
        return "offline", "no API key; wandb login gives it one"
    base = wandb.setup().settings.base_url
    from urllib.parse import urlsplit

    if silent := unreachable(base):
        return "offline", f"{urlsplit(base).hostname} {silent}"
    return "online", "with the API key there is"


def unreachable(url: str) -> str:
    """Why there is no server at `url`; nothing if there is one. A proxy that is set is used."""
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(url, timeout=ANSWER).close()
    except urllib.error.HTTPError as e:
        return f"answers {e.code} {e.reason}" if e.code >= 500 else ""
    except TimeoutError:
        return f"did not answer in {ANSWER:g} s"
    except (OSError, ValueError) as e:
        reason = getattr(e, "reason", e)
        return f"did not answer in {ANSWER:g} s" if isinstance(reason, TimeoutError) else f"cannot be reached: {reason}"
    return ""


if __name__ == "__main__":
    main()
