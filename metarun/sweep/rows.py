"""What a run's rows say of a metric, for those who watch it: its driver and itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metarun.sweep.trial import Goal

METRICS = "metrics.jsonl"


def rows(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole rows of a file from byte `start` on, and where the next begins. None of a file that is not there."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return [], start
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], start + len(whole)


def reports(found: list[dict[str, Any]], goal: Goal) -> Iterator[tuple[int, float]]:
    """(step, value) of each row that has the metric and a value for it."""
    split = goal.metric.partition("/")[0]
    for row in found:
        if row.get("split") == split and isinstance(value := row.get(goal.name), (int, float)):
            yield row["step"], float(value)


def objective(folder: Path, goal: Goal) -> float | None:
    """The best that a run has reached, which is what its kept checkpoint is; None before the first value."""
    values = [value for _, value in reports(rows(folder / METRICS)[0], goal)]
    return (max if goal.maximize else min)(values, default=None)
