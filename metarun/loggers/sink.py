"""What a logger is: something that is told of a run's rows and can neither hold it up nor bring it down."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class RunInfo:
    """What a sink is told of a run. `say` shows the person one line."""

    folder: Path
    label: str
    tags: tuple[str, ...]
    config: dict[str, Any]
    resumed: bool
    say: Callable[[str], None]


class Sink(Protocol):
    def log(self, row: dict[str, Any]) -> None: ...
    def close(self, summary: dict[str, Any], exit_code: int) -> None: ...


class Logger(Protocol):
    """A frozen dataclass whose fields are its config schema."""

    def open(self, info: RunInfo) -> Sink: ...
