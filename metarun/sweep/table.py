"""What a person sees while a sweep goes on: one live table on a terminal, a line for each event in a pipe."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from time import monotonic
from typing import Any

from metarun.loggers.voice import Voice, clock, on_a_terminal
from metarun.sweep.trial import COMPLETE, FAILED, PRUNED, RUNNING, Goal, Trial
from metarun.sweep.words import amount, cut, settings, short_names

REFRESH = 0.5
"""seconds between two pictures at the least"""
CLOCK = 2.0
"""seconds between two pictures when nothing has happened but that time went by"""
ENDED = 5
"""trials that have ended, in the picture"""
BEST = 2
"""lines that the best settings may take"""
ITERATIONS = "train.iterations"
_Row = tuple[str, str, str, str, str]
"""of a trial: its number, settings, step, value and time"""


@dataclass
class _Running:
    """A trial that runs: since when, how far it has got, and the slots' seconds it has taken."""

    trial: Trial
    since: float
    step: int | None = None
    value: float | None = None
    spent: float = 0.0


class Board:
    """A sweep in progress. Every event is also a line in the log.

    log         the sweep's log.txt
    total       how many trials there are to be; None: that is not known
    slots       jobs that can run side by side
    goal        None where trials are not compared: they only start and end
    trials      of an earlier start of the sweep; those of them that have ended are counted, the others are yet to start
    iterations  of a trial that does not set them itself; None: not known
    limit       seconds from now on after which no more trials are started
    """

    def __init__(
        self,
        log: Path,
        total: int | None,
        slots: int,
        goal: Goal | None = None,
        trials: Iterable[Trial] = (),
        iterations: int | None = None,
        limit: float | None = None,
    ) -> None:
        self._voice = Voice(log)
        self._noun = "run" if goal is None else "trial"
        self._total, self._slots, self._goal, self._iterations, self._limit = total, slots, goal, iterations, limit
        self._running: dict[int, _Running] = {}
        self._jobs: dict[int, list[int]] = {}  # slot -> the trials in it, of which it may hold several at once
        self._recent: deque[tuple[Trial, float]] = deque(maxlen=ENDED)
        self._counts: dict[str, int] = dict.fromkeys((COMPLETE, PRUNED, FAILED), 0)
        self._best: Trial | None = None
        self._short: dict[str, str] = {}
        self._began = self._mark = self._drawn = monotonic()
        self._busy = 0.0
        self._spent: list[float] = []  # by the trials that have ended here
        self._changed = True
        for trial in trials:
            if trial.state != RUNNING:
                self._count(trial)
        if on_a_terminal():
            self._start_drawing()

    # Events

    def started(self, trial: Trial, slot: int, what: str = "started") -> None:
        """A job of the trial runs in a slot. `what` says how it came to: `goes on from step 300`, `seed 2 of 3`."""
        self._advance()
        self._running.setdefault(trial.number, _Running(trial, self._mark))
        self._jobs.setdefault(slot, []).append(trial.number)
        if not trial.params.keys() <= self._short.keys():
            self._short = short_names([*self._short, *trial.params])
        self._event(f"{self._noun} {trial.number}: {what}  {settings(trial.params)}".rstrip())

    def reported(self, trial: Trial, step: int, value: float) -> None:
        """Of a trial that runs: the metric of a validation."""
        if running := self._running.get(trial.number):
            running.step, running.value = step, value
            self._changed = True

    def freed(self, slot: int) -> None:
        """No job runs in the slot any more, though its trial has others to come. `ended` says so itself."""
        self._advance()
        self._jobs.pop(slot, None)

    def ended(self, trial: Trial) -> None:
        """All of its jobs have: `trial.state` says how."""
        self._advance()
        running = self._running.pop(trial.number, None)
        self._jobs = {
            slot: rest for slot, held in self._jobs.items() if (rest := [n for n in held if n != trial.number])
        }
        if running:
            self._spent.append(running.spent)
        self._recent.append((trial, trial.seconds or (self._mark - running.since if running else 0.0)))
        self._count(trial)
        self._event(f"{self._noun} {trial.number}{self._became(trial)}")

    def say(self, line: str) -> None:
        """Anything else."""
        self._voice.say(line)

    def tick(self) -> None:
        """About ten times a second; cheap. Draws when it is time to."""
        if self._voice.drawing is None:
            return
        now = monotonic()
        if now - self._drawn >= (REFRESH if self._changed else CLOCK):
            self._draw()

    def finish(self) -> None:
        """Nothing runs any more: what stays on the terminal are the counts and the best, and lines may follow."""
        if self._voice.drawing is not None:
            self._advance()
            for held in (self._recent, self._running, self._jobs):
                held.clear()
            self._draw()
            self._voice.end_drawing()

    def close(self) -> None:
        self.finish()
        self._voice.close()

    # What is known

    @property
    def busy(self) -> float:
        """The share of the slots' time that jobs have run in, 0 to 1."""
        gone = (self._mark - self._began) * self._slots
        return min(self._busy / gone, 1.0) if gone > 0 else 0.0

    def left(self) -> float | None:
        """Seconds to the end, as the trials that have ended here lead to expect; None where nothing can be said."""
        now = self._mark
        still = None if self._limit is None else max(self._began + self._limit - now, 0.0)
        if self._spent:
            each = sum(self._spent) / len(self._spent)
        elif whole := [r.spent * n / r.step for r in self._running.values() if r.step and (n := self._length(r.trial))]:
            each = sum(whole) / len(whole)
        else:
            return still
        rest = [max(each - running.spent, 0.0) for running in self._running.values()]
        if self._total is None:
            return still
        work = (self._waiting() or 0) * each + sum(rest)
        needed = max([work / self._slots, *rest])
        return needed if still is None else min(needed, still)

    def _waiting(self) -> int | None:
        """Trials that have not started."""
        return None if self._total is None else max(self._total - sum(self._counts.values()) - len(self._running), 0)

    def _length(self, trial: Trial) -> int | None:
        own = trial.params.get(ITERATIONS)
        return int(own) if isinstance(own, (int, float)) else self._iterations

    def _count(self, trial: Trial) -> None:
        self._counts[trial.state] += 1
        if self._goal is None or trial.state != COMPLETE or trial.value is None or trial.value != trial.value:
            return
        if self._best is None or self._goal.better(trial.value, self._best.value or 0.0):
            self._best = trial

    def _advance(self) -> None:
        """Brings the account of the slots' time up to now: who shares a slot shares its time."""
        now = monotonic()
        gone, self._mark = now - self._mark, now
        self._busy += gone * len(self._jobs)
        for held in self._jobs.values():
            for number in held:
                self._running[number].spent += gone / len(held)

    def _event(self, line: str) -> None:
        self._changed = True
        if self._voice.drawing is None:
            self._voice.say(line)
        else:
            self._voice.note(line)

    def _became(self, trial: Trial) -> str:
        """The end of the line that tells of it."""
        if trial.state == FAILED:
            return f": failed: {_reason(trial)}"
        if trial.state == PRUNED:
            step, value = self._last(trial)
            at = "" if step is None else f" at step {step}"
            return f": pruned{at}" + ("" if value is None else f", {amount(value, self._goal)}")
        if self._goal is None or trial.value is None:
            return ": done"
        best = ", the best so far" if trial is self._best else ""
        return f": {amount(trial.value, self._goal)}{best}"

    def _last(self, trial: Trial) -> tuple[int | None, float | None]:
        return max(trial.reports.items()) if trial.reports else (None, None)

    # The picture

    def _start_drawing(self) -> None:
        from rich.console import Console as Terminal
        from rich.live import Live

        # A thread less: `tick` says when.
        live = Live(console=Terminal(highlight=False), auto_refresh=False, vertical_overflow="crop")
        with self._voice.whoever_reads():
            live.start()
            self._voice.drawing = live
            self._draw()

    def _draw(self) -> None:
        from rich.text import Text

        self._advance()
        self._drawn, self._changed = self._mark, False
        live: Any = self._voice.drawing
        with self._voice.whoever_reads():
            size = live.console.size
            picture = Text(no_wrap=True, overflow="crop")
            for line, style in self.picture(size.width, size.height - 1):
                picture.append(f"{line}\n", style)
            picture.rstrip()
            live.update(picture, refresh=True)

    def picture(self, width: int, height: int) -> list[tuple[str, str]]:
        """The lines of the table and how they look, at most so wide and so many."""
        summary = self._summary(width)
        room = height - len(summary) - 2  # less the head and an empty line
        running, more = [*self._running.values()], 0
        if len(running) > room:
            running, more = running[: max(room - 1, 0)], len(running) - max(room - 1, 0)
        ended = [*self._recent][::-1][: max(room - len(running) - bool(more), 0)]
        if room < 1 or not (running or ended or more):
            return summary[:height]
        rows = [self._running_row(each) for each in running]
        rows += [self._ended_row(trial, seconds) for trial, seconds in ended]
        lines = _columns(
            [(self._noun, "settings", "step", self._goal.name if self._goal else "", "time"), *rows], width
        )
        styles = ["bold", *[""] * len(running), *map(self._style, ended)]
        told = list(zip(lines, styles, strict=True))
        told[len(running) + 1 : len(running) + 1] = [(f"         and {more} more that run", "")] * bool(more)
        return [*told, ("", ""), *summary]

    def _running_row(self, each: _Running) -> _Row:
        trial, length = each.trial, self._length(each.trial)
        step = "" if each.step is None else f"{each.step}" + ("" if length is None else f"/{length}")
        value = "" if each.value is None else amount(each.value, self._goal)
        return str(trial.number), settings(trial.params, self._short, 3), step, value, clock(self._mark - each.since)

    def _ended_row(self, trial: Trial, seconds: float) -> _Row:
        what, value = settings(trial.params, self._short, 3), trial.value
        if trial.state == PRUNED:
            value = self._last(trial)[1]
        if trial.state == FAILED:
            what = f"failed: {_reason(trial)}  {what}"
        shown = "" if value is None or self._goal is None else amount(value, self._goal)
        how = {COMPLETE: "done", PRUNED: "pruned"}.get(trial.state, "")
        return str(trial.number), what, how, shown, clock(seconds)

    def _style(self, ended: tuple[Trial, float]) -> str:
        trial, _ = ended
        if trial.state == FAILED:
            return "red"
        return "green" if trial is self._best else "dim"

    def _summary(self, width: int) -> list[tuple[str, str]]:
        names = {COMPLETE: "done", PRUNED: "pruned", FAILED: "failed"}
        counts = [f"{self._counts[state]} {name}" for state, name in names.items() if self._goal or state != PRUNED]
        waiting = self._waiting()
        if waiting is not None:
            counts.append(f"{waiting} left")
        left = self.left() if self._running or waiting else None
        times = [f"{clock(self._mark - self._began)} gone"]
        if left is not None:
            times.append(f"about {clock(left)} to go")
        times.append(f"{self._slots} slot{'s' if self._slots > 1 else ''}, {100 * self.busy:.0f} % busy")
        running = [f"{len(self._running)} running"] * bool(self._running)
        lines = [", ".join([*running, *counts]), ", ".join(times)]
        out = [(cut(f"  {line}", width), "") for line in lines]
        if self._best is not None:
            value = amount(self._best.value or 0.0, self._goal)
            best = f"best {value}, trial {self._best.number}: {settings(self._best.params, self._short)}"
            told = wrap(best, max(width - 4, 8), max_lines=BEST, placeholder=" …", break_on_hyphens=False)
            out += [(f"  {'  ' * bool(n)}{line}", "green") for n, line in enumerate(told)]
        return out


def _columns(rows: list[_Row], width: int) -> list[str]:
    """The rows below one another; the settings have what room the others leave."""
    number, _, *rest = (max(map(len, column)) for column in zip(*rows, strict=True))
    room = max(width - 2 - number - 2 - sum(each + 2 for each in rest if each), 8)
    lines = []
    for trial, what, *others in rows:
        fixed = "".join(f"  {text:>{each}}" for text, each in zip(others, rest, strict=True) if each)
        lines.append(cut(f"  {trial:>{number}}  {cut(what, room):<{room}}{fixed}", width))
    return lines


def _reason(trial: Trial) -> str:
    return " ".join(trial.reason.split()) or "nobody knows why"
