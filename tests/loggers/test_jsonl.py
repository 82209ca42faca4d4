"""metrics.jsonl is what a run is known by: whole lines, none twice, none lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metarun.loggers.jsonl import JsonLines


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def row(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "split": "train", **values}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_each_row_is_there_as_soon_as_it_is_logged(path: Path) -> None:
    log = JsonLines(path, 0)
    for step in (1, 2):
        log.log(row(step, loss=0.1 * step))
        assert rows(path)[-1] == row(step, loss=0.1 * step)
    log.close()


def test_a_resumed_run_makes_the_rows_after_its_checkpoint_again(path: Path) -> None:
    log = JsonLines(path, 0)
    for step in range(1, 6):
        log.log(row(step))
    log.close()
    log = JsonLines(path, 3)
    assert [r["step"] for r in rows(path)] == [1, 2, 3]
    log.log(row(4, again=True))
    log.close()
    assert rows(path)[-1] == row(4, again=True)


@pytest.mark.parametrize("rest", [b'{"step": 3, "spl', b"{", b"\xff", b"\x00" * 40])
def test_a_line_that_a_kill_cut_short_is_dropped(path: Path, rest: bytes) -> None:
    path.write_bytes(json.dumps(row(1)).encode() + b"\n" + json.dumps(row(2)).encode() + b"\n" + rest)
    log = JsonLines(path, 2)
    log.log(row(3))
    log.close()
    assert [r["step"] for r in rows(path)] == [1, 2, 3]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_null(path: Path, value: float) -> None:
    """NaN is no JSON; whoever reads the file would stumble over it."""
    log = JsonLines(path, 0)
    log.log(row(1, loss=value))
    log.close()
    assert rows(path) == [row(1, loss=None)]
