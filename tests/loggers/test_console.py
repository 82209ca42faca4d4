"""A bar on a terminal, plain lines in a pipe, and a run that outlives whoever watches it."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from terminal import lines, on_a_real_one, terminal

from metarun.loggers import console
from metarun.loggers.console import Console, describe
from metarun.loggers.voice import clock

TRAIN = {"step": 10, "split": "train", "loss": 0.5117, "accuracy": 0.8123}
VAL = {"step": 10, "split": "val", "accuracy": 0.9}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


def test_words() -> None:
    assert [clock(s) for s in (0, 59.6, 75, 3600, 90061)] == ["0:00", "1:00", "1:15", "1:00:00", "25:01:01"]
    assert describe(TRAIN) == "loss 0.5117  accuracy 81.2 %"
    assert describe({"loss": 123456.789}) == "loss 1.235e+05"
    assert describe({}) == ""


def test_plain_lines_in_a_pipe(log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One every few seconds, however fast the steps are."""
    now = [100.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    shown = Console(log, 0, 100)
    for step in range(1, 101):
        now[0] += 0.2
        shown.tick(step)
        if step % 10 == 0:
            shown.log(TRAIN)
        if step == 50:
            shown.log(VAL)
    shown.end_progress()
    shown.close()
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "step 25/100  loss 0.5117  accuracy 81.2 %  5.0 it/s  0:15 left",
        "step 50/100  loss 0.5117  accuracy 81.2 %  5.0 it/s  0:10 left",
        "step 75/100  loss 0.5117  accuracy 81.2 %  val 90.0 %  5.0 it/s  0:05 left",
        "step 100/100  loss 0.5117  accuracy 81.2 %  val 90.0 %  5.0 it/s  0:00 left",
        "step 100/100  loss 0.5117  accuracy 81.2 %  val 90.0 %",
    ]
    assert log.read_text() == out


def test_nothing_is_said_of_steps_that_were_not_made(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished run that is resumed only to be evaluated."""
    shown = Console(log, 60, 60)
    shown.end_progress()
    shown.close()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("iterations", [60, 60_000, 1_000_000])
def test_the_bar_fits_80_columns(log: Path, monkeypatch: pytest.MonkeyPatch, iterations: int) -> None:
    screen = terminal(monkeypatch)
    now = [100.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    shown = Console(log, 0, iterations)
    shown.log(TRAIN | {"accuracy": 1.0})
    shown.log(VAL | {"accuracy": 1.0})
    now[0] += 2.0
    shown.tick(iterations // 3)
    shown.say("a line above the bar")
    now[0] += 2.0
    shown.tick(iterations * 2 // 3)
    shown.end_progress()
    shown.close()
    seen = lines(screen.getvalue())
    assert max(map(len, seen)) <= 80
    bars = [line for line in seen if "it/s" in line]
    assert any("left" in bar and "loss 0.5117  acc 100.0 %  val 100.0 %" in bar for bar in bars), seen
    assert "a line above the bar" in [line.strip() for line in seen]
    assert "it/s" not in log.read_text()


def test_the_bar_moves_by_itself_on_a_real_terminal(tmp_path: Path) -> None:
    script = (
        "import time\nfrom pathlib import Path\nfrom metarun.loggers.console import Console\n"
        "shown = Console(Path('log'), 0, 40)\n"
        "for step in range(1, 41):\n"
        "    shown.log({'step': step, 'split': 'train', 'loss': 1 / step, 'accuracy': step / 40})\n"
        "    time.sleep(0.03)\n    shown.tick(step)\n"
        "shown.end_progress()\nshown.say('the end')\nshown.close()\n"
    )
    screen = on_a_real_one(script, tmp_path)
    assert max(map(len, screen)) <= 80
    assert any("it/s" in line and " left " in line and "loss" in line for line in screen), screen
    assert any("40/40" in line for line in screen)
    assert "the end" in [line.strip() for line in screen]
    assert "Traceback" not in "".join(screen)


def test_a_dumb_terminal_gets_plain_lines(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch, "dumb")
    shown = Console(log, 0, 10)
    shown.tick(10)
    shown.log(TRAIN)
    shown.end_progress()
    shown.close()
    assert screen.getvalue() == "step 10/10  loss 0.5117  accuracy 81.2 %\n"


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        raise OSError


def test_whoever_reads_may_go(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`metarun train | head -3` trains to the end."""
    monkeypatch.setattr(sys, "stdout", Gone())
    shown = Console(log, 0, 10)
    shown.say("one")
    shown.tick(10)
    shown.end_progress()
    shown.say("two")
    shown.close()
    shown.say("after the end, from a thread that is left")
    assert log.read_text().splitlines() == ["one", "step 10/10  ", "two"]
