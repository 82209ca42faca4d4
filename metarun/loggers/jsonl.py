"""metrics.jsonl: one row a line, the source of truth of a run; every other logger is a sink."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

from metarun.files import write_atomic


class JsonLines:
    """Appends rows to `path`. Opening it at `step` drops the rows after that step: a resumed run makes them again."""

    def __init__(self, path: Path, step: int) -> None:
        kept = b"".join(line for line in _whole_lines(path) if json.loads(line)["step"] <= step)
        write_atomic(path, lambda file: file.write(kept))
        self._file = path.open("a", encoding="utf-8")

    def log(self, row: dict[str, Any]) -> None:
        plain = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()}  # JSON has no inf
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of `path`, less a last one that a kill cut short."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    return [line for line in lines if line.endswith(b"\n")]
