"""Weights & Biases, kept at arm's length: all of it lives in a process of its own (see `wandb_process`).

That process may take its time to import, wait for a server, crash or be killed: the run neither waits for it nor ends
with it. What it cannot send up lies in the run's own folder and goes up later with `wandb sync`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from metarun.loggers.sink import RunInfo
from metarun.types import register, setting

PATIENCE = 2.0
"""seconds that a run waits for wandb at its end"""
PROGRAM = Path(__file__).with_name("wandb_process.py")


@register("logger", "wandb")
@dataclass(frozen=True)
class WandbLogger:
    project: str = setting("metarun")
    entity: str | None = setting(None)
    group: str | None = setting(None)
    job_type: str | None = setting(None)
    run_name: str | None = setting(None)
    tags: list[str] = setting([])
    mode: str = setting("auto", choices=("auto", "online", "offline", "disabled"))

    def open(self, info: RunInfo) -> WandbSink:
        return WandbSink(self, info)


@dataclass
class WandbSink:
    settings: WandbLogger
    info: RunInfo
    _lines: SimpleQueue[str | None] = field(default_factory=SimpleQueue)
    _process: subprocess.Popen[str] | None = None
    _threads: list[Thread] = field(default_factory=list)
    _closed: bool = False
    """whether the run has gone on without it: nothing may be said any more"""

    def __post_init__(self) -> None:
        try:
            # -P: nothing beside the program or in the current folder may pass for one of its modules. A session of its
            # own: a Ctrl-C is the run's to handle. No stream is shared with it, so that whoever reads the run's output
            # sees its end when the run ends.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        except OSError as e:
            self.info.say(f"wandb: not started ({e}); metrics.jsonl has every row")
            return
        self._lines.put(json.dumps(self._start(), default=str))
        for work in (self._write, self._read):
            # Threads that only wait for a pipe: the process may be slow to read, and speaks when it likes.
            self._threads.append(Thread(target=work, name="wandb", daemon=True))
            self._threads[-1].start()

    def log(self, row: dict[str, Any]) -> None:
        values = {f"{row['split']}/{k}": v for k, v in row.items() if k not in ("step", "split")}
        self._lines.put(json.dumps({"step": row["step"], "values": values}))

    def close(self, summary: dict[str, Any], exit_code: int) -> None:
        if self._process is None:
            return
        self._lines.put(json.dumps({"summary": summary, "exit_code": exit_code}, default=str))
        self._lines.put(None)
        self._threads[-1].join(PATIENCE)
        self._closed = self._threads[-1].is_alive()
        if self._closed:
            later = f"wandb sync {self.info.folder / 'wandb'}/*run-*"
            self.info.say(f"wandb: still busy, goes on by itself; should it not get there: {later}")

    def _start(self) -> dict[str, Any]:
        settings, info = self.settings, self.info
        return {
            "mode": settings.mode,
            "parent": os.getpid(),
            "init": {
                "project": settings.project,
                "entity": settings.entity,
                "group": settings.group or info.label,
                "job_type": settings.job_type,
                "name": settings.run_name or f"{info.label}-{info.folder.name}",
                "tags": [*info.tags, *settings.tags],
                "config": info.config,
                # A resumed run goes on under the same id.
                "id": sha256(str(info.folder.resolve()).encode()).hexdigest()[:12],
                "dir": str(info.folder.resolve()),
            },
        }

    def _write(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            while (line := self._lines.get()) is not None:
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
            self._process.stdin.close()
        except OSError:
            pass  # it is gone; the other thread tells

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            text = line.strip()
            if text == "done" or self._closed:
                return
            self.info.say(f"wandb: {text}")
            if text.startswith("stopped"):
                return
        if not self._closed:
            self.info.say("wandb: its process was ended from outside; the run goes on and metrics.jsonl has every row")
