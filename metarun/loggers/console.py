"""What a person sees while a run goes on: a progress bar on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic
from typing import Any

EVERY = 5.0  # seconds between two plain lines


def clock(seconds: float) -> str:
    """75 -> '1:15'"""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


def describe(row: dict[str, Any]) -> str:
    """`loss 0.512  accuracy 81.2 %`"""
    parts = []
    for name in ("loss", "accuracy"):
        if name in row:
            parts.append(f"{name} {100 * row[name]:.1f} %" if name == "accuracy" else f"{name} {row[name]:.3f}")
    return "  ".join(parts)


class Console:
    """Progress of a run from `step` to `iterations`. Every message also goes to the run's log.txt."""

    def __init__(self, log_file: Path, step: int, iterations: int) -> None:
        self._log = log_file.open("a", encoding="utf-8")
        self._iterations, self._step = iterations, step
        self._train: dict[str, Any] = {}
        self._val: dict[str, Any] = {}
        self._mark, self._mark_step, self._said = monotonic(), step, monotonic()
        self._progress: Any = None
        if sys.stdout.isatty():
            self._start_bar()

    def _start_bar(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            MofNCompleteColumn(), BarColumn(bar_width=16), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"), refresh_per_second=4,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=self._iterations, completed=self._step, rate="", metrics="")
        self._progress.start()

    def say(self, text: str) -> None:
        """A line for the person and for log.txt."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
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
        if self._progress is not None:
            self._progress.update(self._task, completed=step)
        if now - self._said < (0.5 if self._progress is not None else EVERY):
            return
        self._said = now
        rate = (step - self._mark_step) / (now - self._mark)
        self._mark, self._mark_step = now, step
        if self._progress is not None:
            self._progress.update(self._task, rate=f"{rate:.1f} it/s", metrics=self._metrics())
            return
        left = clock((self._iterations - step) / rate) if rate else "?"
        self.say(f"step {step}/{self._iterations}  {self._metrics()}  {rate:.1f} it/s  {left} left")

    def _metrics(self) -> str:
        parts = [describe(self._train)] if self._train else []
        if self._val:
            parts.append(f"val {100 * self._val['accuracy']:.1f} %")
        return "  ".join(parts)

    def end_progress(self) -> None:
        if self._progress is not None:
            self._progress.update(self._task, metrics=self._metrics())
            self._progress.stop()
            self._progress = None
        elif self._step:
            self.say(f"step {self._step}/{self._iterations}  {self._metrics()}")

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._log.close()
