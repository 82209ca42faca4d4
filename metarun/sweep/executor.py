"""Where a sweep's processes run: the shape that every executor has, and this machine."""

from __future__ import annotations

from typing import Protocol

from metarun.sweep.trial import Work


class Job(Protocol):
    """A process that was started."""

    def ended(self) -> int | None:
        """Its exit code, negative for the number of a signal; None while it runs. Never waits."""
        ...

    def stop(self) -> None:
        """Asks it to save and end, as SIGTERM does. Never waits."""
        ...

    def kill(self) -> None:
        """Ends it."""
        ...


class Pool(Protocol):
    """Slots for jobs. Closing it ends what still runs."""

    slots: int

    def start(self, work: Work, slot: int) -> Job:
        """Starts `work` in a slot that is free. A job that could not start has ended, with a line in its log."""
        ...

    def close(self) -> None: ...
