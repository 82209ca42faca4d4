"""How a person is spoken to: on a terminal or in a pipe, by whoever reads or no one, and in a log as well."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def on_a_terminal() -> bool:
    """Whether there is one that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def clock(seconds: float) -> str:
    """75 -> '1:15'"""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


class Voice:
    """Lines for the person and for a log, which is added to.

    Whoever reads the output may go away: all goes on without them.

    drawing     what stands below the lines on a terminal, rich's Live or Progress; None where nothing does
    """

    def __init__(self, log_file: Path) -> None:
        self._log = log_file.open("a", encoding="utf-8")
        self.drawing: Any = None

    def say(self, text: str) -> None:
        """A line for the person and for the log."""
        if self._log.closed:
            return
        with self.whoever_reads():
            if self.drawing is not None:
                self.drawing.console.print(text, markup=False, soft_wrap=True)
            else:
                print(text, flush=True)
        self.note(text)

    def note(self, text: str) -> None:
        """A line for the log alone."""
        if not self._log.closed:
            self._log.write(text + "\n")
            self._log.flush()

    def end_drawing(self) -> None:
        if self.drawing is not None:
            with self.whoever_reads():
                self.drawing.stop()
            self.drawing = None

    def close(self) -> None:
        self.end_drawing()
        self._log.close()

    @contextlib.contextmanager
    def whoever_reads(self) -> Iterator[None]:
        """Around all that is written to them."""
        try:
            yield
        except OSError:
            # The pipe or the terminal is gone (`metarun train | head`): from here on to the log alone.
            self.drawing = None
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
