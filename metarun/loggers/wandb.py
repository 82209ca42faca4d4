"""Weights & Biases, kept at arm's length: everything it does happens in a thread that the run never waits for long.

Online only when a key and its server are there; offline otherwise, saying which in one line. An offline run lies in the
run's own folder and goes up later with `wandb sync`. Whatever goes wrong in wandb ends the logging, never the run.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from hashlib import sha256
from queue import SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

from metarun.loggers.sink import RunInfo
from metarun.types import register, setting

CONNECT = 1.5  # seconds the server has to accept a connection
PATIENCE = 3.0  # seconds a run waits for wandb at its end


@register("logger", "wandb")
@dataclass(frozen=True)
class WandbLogger:
    project: str = setting("metarun")
    entity: str | None = setting(None)
    group: str | None = setting(None)
    name: str | None = setting(None)
    tags: list[str] = setting([])
    mode: str = setting("auto", choices=("auto", "online", "offline", "disabled"))

    def open(self, info: RunInfo) -> WandbSink:
        return WandbSink(self, info)


@dataclass
class WandbSink:
    settings: WandbLogger
    info: RunInfo
    _rows: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    _thread: Thread | None = None

    def __post_init__(self) -> None:
        self._thread = Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, row: dict[str, Any]) -> None:
        self._rows.put(row)

    def close(self, summary: dict[str, Any], exit_code: int) -> None:
        assert self._thread is not None
        self._rows.put((summary, exit_code))
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self.info.say(
                f"wandb is still busy and is left behind; later: wandb sync {self.info.folder / 'wandb'}/*run-*"
            )

    def _work(self) -> None:
        try:
            run = self._open()
            while isinstance(row := self._rows.get(), dict):
                split = row["split"]
                values = {f"{split}/{k}": v for k, v in row.items() if k not in ("step", "split")}
                run.log(values, step=row["step"])
            summary, exit_code = row
            run.summary.update(summary)
            run.finish(exit_code=exit_code)
        except BaseException as e:
            # Also SystemExit: wandb ends threads of its own that way. The rows are safe in metrics.jsonl.
            reason = (str(e).splitlines() or [type(e).__name__])[0]
            self.info.say(f"wandb: stopped ({reason}); the run goes on and metrics.jsonl has every row")

    def _open(self) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        settings, info = self.settings, self.info
        mode, why = self._mode(wandb)
        info.say(f"wandb: {mode} ({why})")
        return wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group or info.label,
            name=settings.name or f"{info.label}-{info.folder.name}",
            tags=[*info.tags, *settings.tags],
            config=info.config,
            # A resumed run goes on under the same id.
            id=sha256(str(info.folder.resolve()).encode()).hexdigest()[:12],
            resume="allow" if mode == "online" else None,
            dir=str(info.folder),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def _mode(self, wandb: Any) -> tuple[Any, str]:
        """online, offline or disabled, and why."""
        asked = os.environ.get("WANDB_MODE")
        if asked in ("offline", "disabled", "dryrun"):
            return ("offline" if asked == "dryrun" else asked), "WANDB_MODE"
        if self.settings.mode in ("offline", "disabled"):
            return self.settings.mode, "logger.mode"
        if not wandb.login(prompt=False, verify=False):
            return "offline", "no API key; wandb login gives it one"
        base = urlsplit(wandb.setup().settings.base_url)
        try:
            port = base.port or (443 if base.scheme == "https" else 80)
            socket.create_connection((base.hostname or "", port), timeout=CONNECT).close()
        except OSError as e:
            return "offline", f"its server {base.hostname} cannot be reached: {e}"
        return "online", f"project {self.settings.project}"
