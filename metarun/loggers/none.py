"""No sink beyond the run's own metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from metarun.loggers.sink import RunInfo
from metarun.types import register


@register("logger", "none")
@dataclass(frozen=True)
class NoLogger:
    def open(self, info: RunInfo) -> NoLogger:
        return self

    def log(self, row: dict[str, Any]) -> None:
        pass

    def close(self, summary: dict[str, Any], exit_code: int) -> None:
        pass
