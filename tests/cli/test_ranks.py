"""Many processes that share a run: the same run as of one, and an end that leaves none of them behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from commandline import Said, only_run, started, typed

from metarun import runs
from metarun.launch import TAKEN

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="there is no /proc to see processes in")

_RUN = (
    "train dataset=glyphs algo=protonet model=mlp model.widths=[8] logger=none device=cpu device.threads=1 "
    "train.meta_batch=5 train.optimizer=SGD train.lr=0.02 train.log_every=5 train.val_every=20 train.val_episodes=25 "
    "eval.episodes=25 device.eval_batch=10 checkpoint.every=10"
)
RUN, LONG = [*_RUN.split(), "train.iterations=40"], [*_RUN.split(), "train.iterations=1000000"]
SHARED = "device.processes=2"


def helpers(of: int) -> list[int]:
    """The processes that a `metarun` has started to share its run."""
    found = []
    for children in Path(f"/proc/{of}/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(OSError):
                if b"metarun\0" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


def wait(until: Callable[[], object], what: str) -> None:
    end = time.monotonic() + 120
    while not until():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def runs_in(folder: Path) -> bool:
    """Whether a run has a checkpoint from which it could go on, and a validation behind it."""
    return any(folder.rglob("best.pt")) and any(folder.rglob("last.pt"))


@contextlib.contextmanager
def once_it_runs(folder: Path, number: signal.Signals) -> Iterator[Future[int]]:
    """Sends a signal to the last rank of this process's own run as soon as there is a checkpoint; that rank."""

    def send() -> int:
        wait(lambda: runs_in(folder), "a checkpoint")
        helper = max(helpers(os.getpid()))
        os.kill(helper, number)
        return helper

    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(send)


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"{which}.pt", weights_only=True)["meta"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("whole")
    said = typed(folder, *RUN)
    assert said.code == 0, said.err
    return only_run(folder)


def test_a_signal_to_any_of_them_stops_all_and_one_alone_goes_on(whole: Path, tmp_path: Path) -> None:
    """To the same weights, up to rounding, as a run that was never shared."""
    with once_it_runs(tmp_path, signal.SIGTERM) as sent:
        said = typed(tmp_path, *LONG, SHARED)
    assert (said.code, said.err) == (143, "")
    run = only_run(tmp_path)
    assert "on 2 processes, each cpu, 1 thread" in said.out
    assert f"go on with: metarun train resume={run.relative_to(tmp_path)}" in said.out
    assert not Path(f"/proc/{sent.result()}").exists()
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    stopped = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["step"]
    assert stopped >= steps[-1]

    alone = typed(tmp_path, *RUN, f"train.iterations={stopped}", "hydra.run.dir=alone")
    assert alone.code == 0, alone.err
    moved = weights(run)
    for name, w in weights(tmp_path / "alone").items():
        assert (moved[name] - w).norm() < 1e-3 * w.norm(), name

    more = typed(tmp_path, "train", f"resume={run}", f"train.iterations={stopped + 5}", "device.processes=1")
    assert more.code == 0, more.err
    assert f"resumed at step {stopped}" in more.out
    assert runs.read_config(run)["device"]["processes"] == 1


def test_a_killed_one_ends_the_run_which_says_how_to_go_on(tmp_path: Path) -> None:
    means = {number: signal.getsignal(number) for number in TAKEN}
    with once_it_runs(tmp_path, signal.SIGKILL):
        said = typed(tmp_path, *LONG, "device.processes=3")
    assert said.code == 1
    assert {number: signal.getsignal(number) for number in TAKEN} == means, "torch's launcher answers signals"
    run = only_run(tmp_path).relative_to(tmp_path)
    assert said.errors == [f"rank 2 of 3 was ended by SIGKILL; go on with: metarun train resume={run}"]
    assert weights(tmp_path / run)
    assert not helpers(os.getpid())


def test_none_is_left_when_the_first_is_killed(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = started(tmp_path, *LONG, SHARED, TMPDIR=str(temporary))
    wait(lambda: runs_in(tmp_path) or process.poll() is not None, "a checkpoint")
    (helper,) = helpers(process.pid)
    process.kill()
    process.communicate()
    wait(lambda: not Path(f"/proc/{helper}").exists(), "the other process's end")
    assert not list(temporary.glob("metarun*"))


def test_torchrun_may_start_them(whole: Path, tmp_path: Path) -> None:
    """As it would: the same words in each process, and who is who in the environment. Evaluation has the same digits
    as the run's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    words = ("eval", f"run={whole}", "device=ddp", "device.threads=1", "device.eval_batch=10", "hydra.run.dir=here")
    both = [started(tmp_path, *words, **where, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    first, other = (Said(p.returncode, *p.communicate()) for p in both)
    assert "accuracy" in first.out
    assert (other.out, [p.returncode for p in both]) == ("", [0, 0]), first.err + other.err
    for name in ("tasks.csv", "confusion.csv"):
        assert (tmp_path / "here" / name).read_bytes() == (whole / name).read_bytes()
