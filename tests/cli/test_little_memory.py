"""Runs that must do with little memory."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import TINY, Said

from metarun import memory, run
from metarun.device import keep_memory
from metarun.engine import evaluate
from metarun.types import EpisodeBatch

Metarun = Callable[..., Said]
MAML = [*(word for word in TINY if not word.startswith("algo")), "algo=maml"]
LARGE = [*MAML, "model.widths=[1200]", "train.meta_batch=12", "train.iterations=2"]
HOLDS = r"the memory holds (\d+) of 12 tasks at a time"


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if row["split"] == "train"]


LITTLE = """
import sys
from metarun import cli, memory
memory.free_bytes = lambda device: 40_000_000
sys.exit(cli.dispatch(sys.argv[1:]))
"""
"""Room for a few of the twelve tasks, each of which has 4 MB of weights, their gradient and more."""


def test_a_meta_batch_is_fitted_to_the_memory(metarun: Metarun, tmp_path: Path) -> None:
    words = [sys.executable, "-c", LITTLE, "train", *LARGE, "hydra.run.dir=fitted"]
    # In a process of its own: what this one has had and freed it could take again unseen.
    said = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = re.search(HOLDS, said.stdout)
    assert found and 1 <= int(found[1]) < 12
    whole = metarun("train", *LARGE, "device.chunk=null", "hydra.run.dir=whole")
    assert whole.code == 0 and "tasks at a time" not in whole.out
    assert losses(tmp_path / "fitted") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


def test_a_run_that_goes_on_takes_as_many_tasks_as_before(
    metarun: Metarun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "at_a_time", lambda *what: 3)
    assert metarun("train", *MAML, "train.meta_batch=8", "hydra.run.dir=straight").code == 0
    assert metarun("train", *MAML, "train.meta_batch=8", "train.iterations=2", "hydra.run.dir=stopped").code == 0
    monkeypatch.setattr(run, "at_a_time", lambda *what: None)
    said = metarun("train", "resume=stopped", "train.iterations=4")
    assert said.code == 0 and "the memory holds 3 of 8 tasks at a time" in said.out, said.err
    straight, stopped = (
        torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True) for name in ("straight", "stopped")
    )
    assert all(torch.equal(w, stopped["meta"][name]) for name, w in straight["meta"].items())
    again = metarun("train", "resume=stopped", "train.iterations=5", "device.chunk=null")
    assert again.code == 0 and "tasks at a time" not in again.out, "what is typed counts"


def test_a_validation_and_a_test_that_do_not_fit_end_no_run(
    metarun: Metarun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once in a run, and once in its test."""
    whole = metarun("train", *MAML, "train.val_every=1", "hydra.run.dir=whole")
    assert whole.code == 0, whole.err
    at_once = evaluate.per_task

    def little(f: Callable[..., Any], episodes: EpisodeBatch) -> Any:
        if len(episodes.query_x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return at_once(f, episodes)

    monkeypatch.setattr(evaluate, "per_task", little)
    said = metarun("train", *MAML, "train.val_every=1", "hydra.run.dir=little")
    assert said.code == 0, said.err
    assert said.out.count("going on with 3") + said.out.count("going on with 2") == 2, said.out
    same = [(tmp_path / name / "tasks.csv").read_text() for name in ("whole", "little")]
    assert same[0] == same[1]


def test_inner_steps_are_recomputed_to_the_same_run(metarun: Metarun, tmp_path: Path) -> None:
    for name, more in (("kept", ()), ("again", ("device.checkpoint_inner=true",))):
        said = metarun("train", *MAML, "algo.inner_steps=3", *more, f"hydra.run.dir={name}")
        assert said.code == 0, said.err
    assert losses(tmp_path / "again") == pytest.approx(losses(tmp_path / "kept"), rel=1e-4)
    assert metarun("eval", "run=again").code == 0


@pytest.mark.parametrize("algo", ["protonet", "fomaml", "reptile"])
def test_a_method_without_inner_steps_to_recompute_says_so(metarun: Metarun, tmp_path: Path, algo: str) -> None:
    said = metarun("train", *TINY, f"algo={algo}", "device.checkpoint_inner=true")
    assert said.code == 2
    assert said.errors == [
        f"device.checkpoint_inner=true: of no use to algo={algo}: its meta-gradient goes through no inner steps, of "
        "which something could be kept"
    ]
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("word", ["device.chunk=many", "device.chunk=1.5", "device.chunk=true"])
def test_what_a_chunk_is(metarun: Metarun, word: str) -> None:
    said = metarun("train", *TINY, word)
    assert said.code == 2 and said.errors[0].endswith(": must be a whole number or auto or null")


def test_memory_is_measured() -> None:
    """As `metarun` does it, whose process keeps what it frees."""
    keep_memory()
    cpu, size = torch.device("cpu"), 64 * 2**20
    found = memory.taken(lambda: [torch.ones(size, dtype=torch.uint8)].clear(), cpu)
    if found is None:
        pytest.skip("this system does not say")
    assert 0.9 * size < found < 1.2 * size
    free = memory.free_bytes(cpu)
    assert free is not None and free > 0
    now, most = memory.resident("VmRSS"), memory.peak(cpu)
    assert now is not None and most is not None and now <= most


def test_the_smallest_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container's limit is not the machine's; what the system only keeps for files there is still free."""
    for name, text in (("max", "1000000\n"), ("current", "600000\n"), ("stat", "anon 5\ninactive_file 100000\n")):
        (tmp_path / name).write_text(text)
    ours = tuple(str(tmp_path / name) for name in ("max", "current", "stat"))
    monkeypatch.setattr(memory, "CGROUPS", ((*ours, "inactive_file"),))
    if memory.resident("VmRSS") is not None:
        assert memory.free_bytes(torch.device("cpu")) == 500_000
    (tmp_path / "max").write_text("max\n")
    assert memory.free_bytes(torch.device("cpu")) != 500_000
