"""What a person sees while a run goes on: a progress bar on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from time import monotonic
from typing import Any

from metarun.measures import MEASURES

EVERY = 5.0
"""seconds between two plain lines"""
REFRESH = 0.5
"""seconds between two pictures on a terminal"""


def clock(seconds: float) -> str:
    """75 -> '1:15'"""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


def describe(row: dict[str, Any], accuracy: str = "accuracy", error: str = "") -> str:
    """`loss 0.512  accuracy 81.2 %`, the measures under the names given; of an error its own where none is."""
    parts = []
    if "loss" in row:
        parts.append(f"loss {row['loss']:.4g}")
    if "accuracy" in row:
        parts.append(f"{accuracy} {100 * row['accuracy']:.1f} %")
    elif "loss" not in row:
        parts += [f"{error or name} {row[name]:.4g}" for name in MEASURES if name in row]
    return "  ".join(parts)


class Console:
    """Progress of a run from `step` to `iterations` (0: none). Every message also goes to the run's log.txt.

    Whoever reads the output may go away: the run goes on without them.
    """

    def __init__(self, log_file: Path, step: int, iterations: int) -> None:
        self._log = log_file.open("a", encoding="utf-8")
        self._iterations, self._step, self._began = iterations, step, step
        self._train: dict[str, Any] = {}
        self._val: dict[str, Any] = {}
        self._mark, self._mark_step, self._said = monotonic(), step, monotonic()
        self._progress: Any = None
        if iterations and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
            self._start_bar()

    def _start_bar(self) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        # On a terminal of 80 columns the metrics still fit beside 1,000,000 iterations; on less they are cut off.
        fixed, cut = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis")
        self._progress = Progress(
            MofNCompleteColumn(table_column=fixed),
            BarColumn(bar_width=None, table_column=Column(min_width=3, max_width=24, ratio=1)),
            TextColumn("{task.fields[pace]}", table_column=fixed, markup=False),
            TextColumn("{task.fields[metrics]}", table_column=cut, markup=False),
            console=Terminal(highlight=False),
            auto_refresh=False,  # a thread less: `tick` says when
            expand=True,
        )
        self._task = self._progress.add_task("", total=self._iterations, completed=self._step, pace="", metrics="")
        self._progress.start()

    def say(self, text: str) -> None:
        """A line for the person and for log.txt."""
        if self._log.closed:
            return
        with self._whoever_reads():
            if self._progress is not None:
                self._progress.console.print(text, markup=False, soft_wrap=True)
            else:
                print(text, flush=True)
        self._log.write(text + "\n")
        self._log.flush()

    def log(self, row: dict[str, Any]) -> None:
        if row["split"] == "val":
            self._val = row
        else:
            self._train = row

    def tick(self, step: int) -> None:
        """After every step; cheap. Speaks when it is time to."""
        self._step = step
        now = monotonic()
        if now - self._said < (EVERY if self._progress is None else REFRESH):
            return
        rate = (step - self._mark_step) / (now - self._mark)
        self._said, self._mark, self._mark_step = now, now, step
        left = clock((self._iterations - step) / rate) if rate else "?"
        pace = f"{rate:.{0 if rate >= 100 else 1}f} it/s  {left} left"
        if self._progress is None:
            self.say("  ".join(filter(None, (f"step {step}/{self._iterations}", self._metrics(), pace))))
        else:
            with self._whoever_reads():
                self._progress.update(self._task, completed=step, pace=pace, metrics=self._metrics("acc"), refresh=True)

    def _metrics(self, accuracy: str = "accuracy") -> str:
        parts = [describe(self._train, accuracy)] if self._train else []
        if self._val:
            parts.append(describe(self._val, "val", "val"))
        return "  ".join(parts)

    def end_progress(self) -> None:
        if self._progress is not None:
            with self._whoever_reads():
                self._progress.update(self._task, completed=self._step, pace="", metrics=self._metrics("acc"))
                self._progress.stop()
            self._progress = None
        elif self._step > self._began:
            self.say(f"step {self._step}/{self._iterations}  {self._metrics()}")

    def close(self) -> None:
        if self._progress is not None:
            with self._whoever_reads():
                self._progress.stop()
        self._log.close()

    @contextlib.contextmanager
    def _whoever_reads(self) -> Any:
        try:
            yield
        except OSError:
            # The pipe or the terminal is gone (`metarun train | head`): from here on to log.txt alone.
            self._progress = None
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
