"""A sweep while it goes on: one table that fits the terminal, a line for each event in a pipe, all of it in the log."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import Terminal, on_a_real_one, terminal

from metarun.sweep import table
from metarun.sweep.table import Board
from metarun.sweep.trial import COMPLETE, FAILED, PRUNED, Goal, Trial

ACCURACY = Goal("val/accuracy", True)
MSE = Goal("val/mse", False)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`passes(2.0)`: seconds go by."""
    now = [100.0]
    monkeypatch.setattr(table, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def made(number: int, **params: float | str) -> Trial:
    return Trial(number, {name.replace("__", "."): value for name, value in params.items()})


def end(board: Board, trial: Trial, state: str, value: float | None = None, reason: str = "") -> None:
    trial.state, trial.value, trial.reason = state, value, reason
    board.ended(trial)


def picture(board: Board, width: int = 80, height: int = 24) -> list[str]:
    return [line for line, _ in board.picture(width, height)]


def test_a_line_for_each_event_in_a_pipe(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(log, 4, 2, ACCURACY)
    first, second, third, fourth = (made(n, algo__inner_lr=0.0432198 * n, train__lr=0.0012) for n in range(4))
    board.started(first, 0)
    board.started(second, 1, "goes on from step 300")
    board.say("wandb keeps these runs offline")
    for step in (100, 200):
        first.reports[step] = 0.5 + step / 1000
        board.reported(first, step, first.reports[step])
        board.tick()
    end(board, first, PRUNED)
    board.started(third, 0)
    end(board, second, COMPLETE, 0.912)
    end(board, third, FAILED, reason="CUDA ran out of memory\n at step 3")
    board.started(fourth, 0)
    end(board, fourth, COMPLETE, 0.9)
    board.close()
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "trial 0: started  algo.inner_lr=0 train.lr=0.0012",
        "trial 1: goes on from step 300  algo.inner_lr=0.04322 train.lr=0.0012",
        "wandb keeps these runs offline",
        "trial 0: pruned at step 200, 70.0 %",
        "trial 2: started  algo.inner_lr=0.08644 train.lr=0.0012",
        "trial 1: 91.2 %, the best so far",
        "trial 2: failed: CUDA ran out of memory at step 3",
        "trial 3: started  algo.inner_lr=0.1297 train.lr=0.0012",
        "trial 3: 90.0 %",
    ]
    assert log.read_text() == out


def test_an_error_is_the_better_the_smaller(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = Board(log, 3, 1, MSE)
    for number, value in enumerate((0.5, 0.7, 0.35214)):
        end(board, made(number), COMPLETE, value)
    assert capsys.readouterr().out.splitlines() == [
        "trial 0: 0.5, the best so far",
        "trial 1: 0.7",
        "trial 2: 0.3521, the best so far",
    ]
    assert "best 0.3521, trial 2" in "\n".join(picture(board))


def test_trials_of_an_earlier_start_count_and_are_not_told_again(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = [made(n) for n in range(4)]
    for trial, state, value in zip(done, (COMPLETE, PRUNED, FAILED), (0.9, None, None), strict=False):
        trial.state, trial.value = state, value
    log.write_text("what was said before\n")
    board = Board(log, 10, 2, ACCURACY, done)
    assert capsys.readouterr().out == ""
    assert "  1 done, 1 pruned, 1 failed, 7 left" in picture(board)
    end(board, done[3], COMPLETE, 0.8)
    assert capsys.readouterr().out == "trial 3: 80.0 %\n"  # 90 % was better
    board.close()
    assert log.read_text() == "what was said before\ntrial 3: 80.0 %\n"


def test_without_a_goal_trials_only_start_and_end(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`metarun train -m`"""
    board = Board(log, 3, 2)
    first, second = made(0, algo="maml"), made(1, algo="protonet")
    board.started(first, 0)
    board.started(second, 1)
    end(board, first, COMPLETE)
    end(board, second, FAILED, reason="exit code 1")
    assert capsys.readouterr().out.splitlines() == [
        "run 0: started  algo=maml",
        "run 1: started  algo=protonet",
        "run 0: done",
        "run 1: failed: exit code 1",
    ]
    told = "\n".join(picture(board))
    assert "1 done, 1 failed, 1 left" in told
    assert "best" not in told and "pruned" not in told


def test_the_table(log: Path, passes: Callable[[float], None]) -> None:
    board = Board(log, 24, 2, ACCURACY, iterations=1000)
    first, second, third = (made(n, algo__inner_lr=0.04321987 * (n + 1), train__lr=0.0012) for n in range(3))
    board.started(first, 0)
    board.started(second, 1)
    passes(75)
    end(board, first, COMPLETE, 0.934)
    board.started(third, 0)
    board.reported(second, 300, 0.912)
    passes(5)
    board.freed(0)
    assert picture(board) == [
        "  trial  settings                                           step  accuracy  time",
        "      1  inner_lr=0.0864 lr=0.0012                      300/1000    91.2 %  1:20",
        "      2  inner_lr=0.13 lr=0.0012                                            0:05",
        "      0  inner_lr=0.0432 lr=0.0012                          done    93.4 %  1:15",
        "",
        "  2 running, 1 done, 0 pruned, 0 failed, 21 left",
        "  1:20 gone, about 13:42 to go, 2 slots, 100 % busy",
        "  best 93.4 %, trial 0: inner_lr=0.04322 lr=0.0012",
    ]


@pytest.mark.parametrize("width, height", [(80, 24), (80, 9), (60, 12), (200, 50), (80, 3), (20, 5)])
@pytest.mark.parametrize("jobs", [0, 1, 5, 40])
def test_the_table_fits(log: Path, width: int, height: int, jobs: int) -> None:
    board = Board(log, 1000, 40, ACCURACY, iterations=1_000_000)
    names = [f"model.quite_a_long_name_{n}" for n in range(12)]
    for number in range(8):
        end(board, Trial(number, dict.fromkeys(names, 0.123456)), (COMPLETE, FAILED)[number % 2], 0.9, "no " * 99)
    for number in range(8, 8 + jobs):
        trial = Trial(number, dict.fromkeys(names, "a value of some length"))
        board.started(trial, number)
        board.reported(trial, 1_000_000, 1.0)
    lines = picture(board, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "8 left" not in lines[-1]
    shown = sum("1000000/1000000" in line for line in lines)
    assert shown or jobs == 0 or height < 10 or width < 40
    if shown and shown < jobs:
        assert f"and {jobs - shown} more that run" in "\n".join(lines)
    if height > 5 and width >= 60:
        assert f"4 done, 0 pruned, 4 failed, {1000 - 8 - jobs} left" in "\n".join(lines)


def test_slots_are_busy_while_a_job_is_in_them(log: Path, passes: Callable[[float], None]) -> None:
    board = Board(log, None, 2, ACCURACY)
    one, two = made(0), made(1)
    assert board.busy == 0
    board.started(one, 0)  # its seeds, one after the other
    passes(10)
    board.freed(0)
    passes(10)
    board.started(one, 1, "seed 2 of 2")
    board.started(two, 0)
    passes(20)
    end(board, one, COMPLETE, 0.5)
    end(board, two, COMPLETE, 0.5)
    assert board.busy == pytest.approx((10 + 2 * 20) / (2 * 40))
    assert board.left() is None  # there is no end to it


def test_time_left(log: Path, passes: Callable[[float], None]) -> None:
    board = Board(log, 10, 2, ACCURACY, iterations=400)
    assert board.left() is None
    one, two, three = made(0), made(1), Trial(2, {"train.iterations": 100})
    board.started(one, 0)
    board.started(two, 1)
    passes(10)
    board.freed(9)
    assert board.left() is None
    board.reported(one, 100, 0.5)  # a quarter of it in 10 s: 40 s each
    assert board.left() == pytest.approx((8 * 40 + 30 + 30) / 2)
    passes(10)
    end(board, one, PRUNED)  # and yet it took 20 s
    assert board.left() == pytest.approx((8 * 20 + 0) / 2)
    board.started(three, 0)
    assert board.left() == pytest.approx((7 * 20 + 20) / 2)


def test_trials_that_share_a_slot_share_its_time(log: Path, passes: Callable[[float], None]) -> None:
    board = Board(log, 8, 1, ACCURACY)
    four = [made(n) for n in range(4)]
    for trial in four:
        board.started(trial, 0)
    passes(40)
    for trial in four:
        end(board, trial, COMPLETE, 0.5)
    assert board.left() == pytest.approx(40)
    assert board.busy == pytest.approx(1)


def test_no_more_time_is_left_than_the_limit(log: Path, passes: Callable[[float], None]) -> None:
    board = Board(log, 100, 1, ACCURACY, limit=60)
    board.started(made(0), 0)
    passes(20)
    end(board, made(0), COMPLETE, 0.5)
    assert board.left() == pytest.approx(40)


# A terminal


class Counting(Terminal):
    drawn = 0

    def write(self, text: str) -> int:
        self.drawn += "trial  settings" in text or "left" in text
        return super().write(text)


def test_it_is_drawn_when_something_changed_and_twice_a_second_at_most(
    log: Path, monkeypatch: pytest.MonkeyPatch, passes: Callable[[float], None]
) -> None:
    screen = Counting()
    terminal(monkeypatch, screen=screen)
    board = Board(log, 1000, 2, ACCURACY)
    before = screen.drawn
    for number in range(100):  # in 10 seconds
        board.started(made(number), 0)
        end(board, made(number), COMPLETE, 0.5)
        for _ in range(10):
            board.tick()
        passes(0.1)
    assert 15 <= screen.drawn - before <= 20
    passes(1)
    board.tick()
    before = screen.drawn
    for _ in range(100):  # in which nothing happens
        board.tick()
        passes(0.1)
    assert 1 <= screen.drawn - before <= 5
    board.close()
    assert len(log.read_text().splitlines()) == 200


def test_nothing_starts_a_thread(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    terminal(monkeypatch)
    before = threading.active_count()
    board = Board(log, 10, 2, ACCURACY)
    board.started(made(0), 0)
    assert threading.active_count() == before
    board.close()


REAL = """
import time
from pathlib import Path
from metarun.sweep.table import Board
from metarun.sweep.trial import COMPLETE, Goal, Trial
board = Board(Path("log"), 4, 2, Goal("val/accuracy", True))
for number in range(4):
    trial = Trial(number, {"algo.inner_lr": 0.1 * number, "model": "conv4 [red]"})
    board.started(trial, number % 2)
    until = time.monotonic() + 0.26
    while time.monotonic() < until:
        board.tick()
        time.sleep(0.02)
    trial.state, trial.value = COMPLETE, 0.5 + number / 100
    board.ended(trial)
board.say("a line above it")
board.close()
print("the end")
"""


def test_it_moves_on_a_real_terminal(tmp_path: Path) -> None:
    screen = on_a_real_one(REAL, tmp_path)
    assert max(map(len, screen)) <= 80
    assert any(re.search(r"\d  inner_lr=0.[0-9]+ model=conv4 \[red\]", line) for line in screen), screen
    assert any("a line above it" in line for line in screen)
    assert "  4 done, 0 pruned, 0 failed, 0 left" in screen[-6:]
    assert "the end" in screen
    assert "trial 3: 53.0 %, the best so far" in (tmp_path / "log").read_text()


def test_whoever_reads_may_go(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`metarun sweep ... | head -3` searches to the end, and so does one whose terminal was closed."""

    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO if self.isatty() else errno.EPIPE, "gone")

        def fileno(self) -> int:
            raise OSError

    for closed_terminal in (False, True):
        screen = Gone()
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(screen, "isatty", lambda it=closed_terminal: it)
        monkeypatch.setattr(sys, "stdout", screen)
        board = Board(log, 2, 1, ACCURACY)
        board.started(made(0), 0)
        board.tick()
        end(board, made(0), COMPLETE, 0.5)
        board.say("still there")
        board.close()
    assert log.read_text().splitlines() == 2 * [
        "trial 0: started",
        "trial 0: 50.0 %, the best so far",
        "still there",
    ]


def test_torch_is_not_needed_to_look(tmp_path: Path) -> None:
    script = "import sys; import metarun.sweep.table; assert not {'torch', 'optuna', 'rich'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
