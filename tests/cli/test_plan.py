"""`metarun plan` and `metarun train --dry-run`: what a run will take, with nothing left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from commandline import TINY, Said, files

from metarun import planning

Metarun = Callable[..., Said]
MAML = [*(word for word in TINY if not word.startswith("algo")), "algo=maml"]


def told(said: Said) -> dict[str, str]:
    """{"training": "0:03  (...)"}"""
    return dict(re.findall(r"^  (\w[\w ]*?)  +(\S.*)$", said.out, re.M))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib looks through all fonts in a home that is new, as every test's is."""
    monkeypatch.setattr(planning, "draw", lambda *what: None)


@pytest.mark.parametrize("words", [("plan",), ("train", "--dry-run")])
def test_a_run_is_foretold(metarun: Metarun, tmp_path: Path, words: tuple[str, ...]) -> None:
    said = metarun(*words, *MAML, "train.iterations=7", "train.val_every=3", "train.meta_batch=6")
    assert (said.code, said.err) == (0, "")
    assert files(tmp_path) == set(), "it writes nothing"
    rows = told(said)
    assert list(rows) == [
        "start", "training", "validation", "test", "total", "peak memory", "data", "tasks at a time", "a checkpoint"
    ]  # fmt: skip
    assert "(7 steps of " in rows["training"]
    assert "(3 of " in rows["validation"] and "4 tasks each)" in rows["validation"], "after 3, 6 and 7 steps"
    assert rows["test"].endswith("(4 tasks)")
    assert rows["tasks at a time"] in ("1 of 6", "2 of 6", "4 of 6", "6 of 6"), "by the number of threads"
    assert rows["data"].endswith("MB on the device")
    assert rows["a checkpoint"].endswith("kB")
    assert max(map(len, said.out.splitlines())) <= 80


def test_what_is_foretold_adds_up() -> None:
    trained = planning.Training(0.2, 100.0, 3.0, 10, 1, 1)
    assert planning.Forecast(4.0, trained, 20.0, None, None).total == 4 + 100 + 10 * 3 + 20
    assert planning.Forecast(4.0, None, 20.0, None, None).total == 4 + 20


def test_every_part_of_the_run_is_asked(metarun: Metarun, monkeypatch: pytest.MonkeyPatch) -> None:
    """MAML++ does more in its first steps, so a run's beginning does not tell of the rest."""
    asked: list[int] = []
    real = planning.meta_update

    def noted(algorithm: object, net: object, state: planning.TrainState, *rest: Any, **more: Any) -> object:
        asked.append(state.step)
        return real(algorithm, net, state, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(planning, "meta_update", noted)
    assert metarun("plan", *MAML, "train.iterations=1000").code == 0
    assert {step // 200 for step in asked} == {0, 1, 2, 3, 4}
    rest = asked[1:]
    assert all(b == a + 1 or b >= a + 100 for a, b in pairwise(rest)), "some in a row at each place"


def test_a_slow_step_is_taken_few_times(metarun: Metarun, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    real = planning.meta_update
    monkeypatch.setattr(planning, "meta_update", lambda *what, **more: steps.append(1) or real(*what, **more))
    assert metarun("plan", *MAML, "plan.seconds=1e-6").code == 0
    assert len(steps) == 3


def test_a_method_without_training_is_foretold_too(metarun: Metarun, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the extra 'classical' is not installed")
    said = metarun("plan", "dataset=glyphs", "algo=classical", "logger=none", "eval.episodes=4")
    assert said.code == 0, said.err
    assert list(told(said)) == ["start", "test", "total", "peak memory", "data"]
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("plan.seconds=0", "plan.seconds=0.0: must be greater than 0"),
        ("resume=latest", "resume=latest: goes on with a run, which is metarun train's"),
        ("task.way=300", "eval.way=300: split 'val' has 96 classes"),
    ],
)
def test_what_is_typed_wrong(metarun: Metarun, tmp_path: Path, word: str, why: str) -> None:
    said = metarun("plan", *TINY, word)
    assert said.code == 2 and why in said.errors[0]
    assert files(tmp_path) == set()


def test_sizes_are_short() -> None:
    assert [planning.size(n) for n in (12, 3_400, 1_370_000, 1_240_000_000)] == [
        "12 bytes", "3.4 kB", "1.37 MB", "1.24 GB"
    ]  # fmt: skip
