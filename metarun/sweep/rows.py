"""What a run's rows say of a metric, for those who watch it: its driver and itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarun.sweep.trial import Goal

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Mark:
    """How far a file was read. A run that goes on has its rows up to its checkpoint in a new file of the same name."""

    inode: int = 0
    read: int = 0


def rows(path: Path, mark: Mark = Mark()) -> tuple[list[dict[str, Any]], Mark]:
    """The whole rows behind the mark, all those of another file, and the mark of the end.

    None of a file that is not there.
    """
    try:
        with path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            start = mark.read if inode == mark.inode else 0
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return [], mark
    whole = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in whole.splitlines()], Mark(inode, start + len(whole))


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
