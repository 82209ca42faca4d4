"""A run goes on where it stopped: to the same bits, as the same run, in one process at a time."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from commandline import TINY, Said, only_run, started, typed

from metarun import runs

Metarun = Callable[..., Said]

_LONG = (
    "dataset=glyphs algo=maml model.filters=8 logger=none device=cpu device.threads=1 train.iterations=60 "
    "train.meta_batch=4 train.log_every=5 train.val_every=10 train.val_episodes=20 eval.episodes=20 checkpoint.every=7"
)
LONG = _LONG.split()
"""A run long enough to be stopped in."""


def rows(run: Path) -> list[dict[str, Any]]:
    """The metrics, less what the clock has a say in."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "rate"} for line in lines]


def same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def same_run(one: Path, other: Path) -> bool:
    """Whether two runs came to the same: all that is in their checkpoints, and all their metrics."""
    for which in ("last", "best"):
        a, b = (torch.load(run / "checkpoints" / f"{which}.pt", weights_only=True) for run in (one, other))
        if not same(a, b):
            return False
    accuracy, again = (json.loads((run / "eval.json").read_text())["mean"] for run in (one, other))
    return rows(one) == rows(other) and accuracy == again


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The long run, never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    said = typed(folder, "train", *LONG)
    assert said.code == 0, said.err
    return only_run(folder)


def at_step(folder: Path, step: int, process: subprocess.Popen[str]) -> Path:
    """Waits until a run in `folder` has logged `step`; its folder."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        for metrics in folder.rglob("metrics.jsonl"):
            lines = metrics.read_text().splitlines()
            if lines and json.loads(lines[-1])["step"] >= step:
                return metrics.parent
        time.sleep(0.002)
    process.kill()
    raise AssertionError(f"step {step} was not seen: {process.communicate()}")


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_killed_at_a_random_step(whole: Path, tmp_path: Path) -> None:
    process = started(tmp_path, "train", *LONG)
    run = at_step(tmp_path, Random().randrange(8, 45), process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    step = rows(run)[-1]["step"]
    assert step < 60
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 59, "split": "tr')  # a line that the kill cut short
    said = typed(tmp_path, "train", "resume=latest")
    assert said.code == 0, said.err
    assert "resumed at step" in said.out
    assert same_run(run, whole), f"killed at step {step}"


def test_stopped_politely(whole: Path, tmp_path: Path) -> None:
    """By SIGTERM; for a Ctrl-C see test_multirun."""
    process = started(tmp_path, "train", *LONG)
    run = at_step(tmp_path, 13, process)
    process.terminate()
    code, out, err = finish(process)
    assert (code, err) == (143, "")
    assert f"go on with: metarun train resume={run.relative_to(tmp_path)}" in out
    saved = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["step"]
    assert saved >= rows(run)[-1]["step"]
    assert f"stopped at step {saved}" in out
    assert typed(tmp_path, "train", f"resume={run}").code == 0
    assert same_run(run, whole)


def test_killed_before_the_first_checkpoint(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    for name in ("checkpoints/last.pt", "checkpoints/best.pt", "eval.json"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints")
    assert typed(tmp_path, "train", "resume=run").code == 0
    assert same_run(run, whole)


def test_a_finished_run_is_evaluated_again(metarun: Metarun, copied: Path) -> None:
    before = rows(copied)
    (copied / "eval.json").unlink()
    said = metarun("train", "resume=latest")
    assert said.code == 0, said.err
    assert "accuracy" in said.out
    assert json.loads((copied / "eval.json").read_text())["tasks"] == 4
    assert rows(copied) == before


def test_it_may_grow(metarun: Metarun, copied: Path, tmp_path: Path) -> None:
    """Eight steps in two parts are the same as eight at once."""
    assert metarun("train", "resume=latest", "train.iterations=8").code == 0
    assert metarun("train", *TINY, "train.iterations=8", "hydra.run.dir=at-once").code == 0
    assert same_run(copied, tmp_path / "at-once")


def test_where_and_how_it_runs_may_change(metarun: Metarun, copied: Path) -> None:
    free = ("device=cpu", "device.threads=1", "device.chunk=1", "checkpoint.every=1", "logger=none", "seed=0")
    assert metarun("train", "resume=latest", "train.iterations=6", *free, "data.offline=true", "task.way=5").code == 0
    assert runs.read_config(copied)["checkpoint"] == {"every": 1}
    assert runs.read_config(copied)["device"]["chunk"] == 1
    assert runs.read_config(copied)["train"]["iterations"] == 6


MEANING = {
    "seed=1": "seed=1: the run in ",
    "train.lr=0.5": "train.lr=0.5: the run in ",
    "algo=maml": "algo.name=maml: the run in ",
    "model=conv4": "model.name=conv4: the run in ",
    "dataset.seed=1": "dataset.seed=1: the run in ",
    "task.shot=2": "task.shot=2: the run in ",
    "train.schedule=cosine": "train.schedule=cosine: the run in ",
    "train.optimizer_args={weight_decay:0.1}": "train.optimizer_args.weight_decay=0.1: the run in ",
    "eval.episodes=9": "eval.episodes=9: the run in ",
    "experiment=omniglot_maml_5w1s": ": the run in ",
    "train.iterations=3": "train.iterations=3: the run is at step 4 already; give more, or leave it out",
    "train.lr=abc": "train.lr=abc: must be a finite number",
    "train.epochs=3": "train.epochs: no such setting",
}


@pytest.mark.parametrize("word", MEANING)
def test_what_would_make_it_another_run_is_refused(metarun: Metarun, copied: Path, word: str) -> None:
    before = (copied / "config.yaml").read_bytes(), (copied / "metrics.jsonl").read_bytes()
    said = metarun("train", "resume=latest", word)
    assert said.code == 2
    assert MEANING[word] in said.errors[0]
    assert before == ((copied / "config.yaml").read_bytes(), (copied / "metrics.jsonl").read_bytes())


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_ends_with_the_run_does_not_grow(metarun: Metarun, tmp_path: Path, schedule: str) -> None:
    assert metarun("train", *TINY, f"train.schedule={schedule}").code == 0
    said = metarun("train", "resume=latest", "train.iterations=8")
    assert said.code == 2
    assert f"this run's schedule is '{schedule}', which ends at its 4 iterations" in said.errors[0]
    assert metarun("train", "resume=latest", "train.iterations=4").code == 0


def test_two_processes_cannot_train_in_one_folder(metarun: Metarun, copied: Path) -> None:
    held = runs.lock(copied)
    try:
        said = metarun("train", "resume=latest")
    finally:
        held.close()
    assert said.code == 2
    assert "is being trained by another process; wait for it, or stop it first" in said.errors[0]
    assert metarun("train", "resume=latest").code == 0


def test_resume_makes_no_folder_of_its_own(metarun: Metarun, copied: Path, tmp_path: Path) -> None:
    assert metarun("train", "-m", f"resume={copied}", "hydra.sweep.dir=swept").code == 0
    assert not (tmp_path / "swept").exists()
