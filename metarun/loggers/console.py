"""What a person sees while a run goes on: a progress bar on a terminal, a plain line now and then in a pipe."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

from metarun.loggers.voice import Voice, clock, on_a_terminal
from metarun.measures import MEASURES

EVERY = 5.0
"""seconds between two plain lines"""
REFRESH = 0.5
"""seconds between two pictures on a terminal"""


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
    """Progress of a run from `step` to `iterations` (0: none). Every message also goes to the run's log.txt."""

    def __init__(self, log_file: Path, step: int, iterations: int) -> None:
        self._voice = Voice(log_file)
        self._iterations, self._step, self._began = iterations, step, step
        self._train: dict[str, Any] = {}
        self._val: dict[str, Any] = {}
        self._mark, self._mark_step, self._said = monotonic(), step, monotonic()
        if iterations and on_a_terminal():
            self._start_bar()

    def _start_bar(self) -> None:
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        # On a terminal of 80 columns the metrics still fit beside 1,000,000 iterations; on less they are cut off.
        fixed, cut = Column(no_wrap=True), Column(no_wrap=True, overflow="ellipsis")
        progress = Progress(
            MofNCompleteColumn(table_column=fixed),
            BarColumn(bar_width=None, table_column=Column(min_width=3, max_width=24, ratio=1)),
            TextColumn("{task.fields[pace]}", table_column=fixed, markup=False),
            TextColumn("{task.fields[metrics]}", table_column=cut, markup=False),
            console=Terminal(highlight=False),
            auto_refresh=False,  # a thread less: `tick` says when
            expand=True,
        )
        self._task = progress.add_task("", total=self._iterations, completed=self._step, pace="", metrics="")
        progress.start()
        self._voice.drawing = progress

    def say(self, text: str) -> None:
        """A line for the person and for log.txt."""
        self._voice.say(text)

    def log(self, row: dict[str, Any]) -> None:
        if row["split"] == "val":
            self._val = row
        else:
            self._train = row

    def tick(self, step: int) -> None:
        """After every step; cheap. Speaks when it is time to."""
        self._step = step
        now = monotonic()
        if now - self._said < (EVERY if self._voice.drawing is None else REFRESH):
            return
        rate = (step - self._mark_step) / (now - self._mark)
        self._said, self._mark, self._mark_step = now, now, step
        left = clock((self._iterations - step) / rate) if rate else "?"
        pace = f"{rate:.{0 if rate >= 100 else 1}f} it/s  {left} left"
        if self._voice.drawing is None:
            self.say("  ".join(filter(None, (f"step {step}/{self._iterations}", self._metrics(), pace))))
        else:
            self._draw(pace, refresh=True)

    def _draw(self, pace: str, refresh: bool) -> None:
        with self._voice.whoever_reads():
            metrics = self._metrics("acc")
            self._voice.drawing.update(self._task, completed=self._step, pace=pace, metrics=metrics, refresh=refresh)

    def _metrics(self, accuracy: str = "accuracy") -> str:
        parts = [describe(self._train, accuracy)] if self._train else []
        if self._val:
            parts.append(describe(self._val, "val", "val"))
        return "  ".join(parts)

    def end_progress(self) -> None:
        if self._voice.drawing is not None:
            self._draw("", refresh=False)
            self._voice.end_drawing()
        elif self._step > self._began:
            self.say(f"step {self._step}/{self._iterations}  {self._metrics()}")

    def close(self) -> None:
        self._voice.close()
