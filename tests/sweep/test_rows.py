"""What a driver reads of a run while that writes it, and while it is killed and goes on."""

from __future__ import annotations

from pathlib import Path

from metarun.loggers.jsonl import JsonLines
from metarun.sweep.rows import Mark, rows


def steps(path: Path, mark: Mark) -> tuple[list[int], Mark]:
    found, mark = rows(path, mark)
    return [row["step"] for row in found], mark


def test_rows_are_read_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert steps(path, Mark()) == ([], Mark())
    path.write_bytes(b'{"step": 1}\n{"step": 2')
    found, mark = steps(path, Mark())
    assert found == [1]
    with path.open("ab") as file:
        file.write(b'2}\n{"step": 3}\n')
    found, mark = steps(path, mark)
    assert found == [22, 3]
    assert steps(path, mark) == ([], mark)


def test_of_a_run_that_goes_on_all_rows_are_read_again(tmp_path: Path) -> None:
    """From a checkpoint at step 2 it makes row 3 anew, and that begins where none of the old rows did."""
    path = tmp_path / "metrics.jsonl"
    before = JsonLines(path, 0)
    for step in range(1, 4):
        before.log({"step": step, "rate": 1000.123 / step})
    found, mark = steps(path, Mark())
    assert found == [1, 2, 3]
    after = JsonLines(path, 2)
    after.log({"step": 3, "rate": 7.0})
    after.log({"step": 4, "rate": 12.3456})
    found, mark = steps(path, mark)
    assert found == [1, 2, 3, 4]
    after.log({"step": 5})
    assert steps(path, mark)[0] == [5]
