"""The driver, with settings, runs and slots that are made up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sweep.made_up import ACCURACY

from metarun.sweep.driver import Driver
from metarun.sweep.settings import SweepSettings
from metarun.sweep.study import STOP, Study, opened
from metarun.sweep.table import Board
from metarun.sweep.trial import Params


class Hard:
    """One setting, which is to be given up whatever it reports."""

    def ask(self, number: int) -> Params | None:
        return {"train.lr": 0.1} if number == 0 else None

    def reported(self, number: int, value: float) -> bool:
        return True

    def ended(self, number: int, state: str, value: float | None) -> None: ...


class Running:
    """A slot whose job reports once and goes on."""

    slots = 1

    def start(self, work: Any, slot: int) -> Running:
        folder = Path(work.argv[-1])
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "split": "val", "accuracy": 0.5}) + "\n")
        return self

    def ended(self) -> int | None:
        return None

    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


class Killed(BaseException): ...


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    with closing(opened(tmp_path)) as study:
        yield study


def test_no_kill_comes_between_a_report_and_what_it_decides(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*event: Any) -> None:
        raise Killed

    monkeypatch.setattr(study, "reported", killed)
    with closing(Board(tmp_path / "log.txt", 1, 1, ACCURACY, study.trials)) as board:
        given = Running(), board, lambda params, seed: {}
        driver = Driver(tmp_path, SweepSettings(), ACCURACY, 1, Hard(), study, *given)
        with pytest.raises(Killed):
            driver.drive(lambda: False)
    assert study.trials[0].reports == {}, "it will be read again"
    assert (tmp_path / "0" / STOP).exists()
