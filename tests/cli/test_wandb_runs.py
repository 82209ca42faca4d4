"""A run with wandb is the run without it, and ends as promptly."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import yaml
from commandline import TINY, only_run, started
from test_resume import finish, same_run

WORDS = [word for word in TINY if not word.startswith("logger=")]


@pytest.fixture(params=["no key", "a server that never answers"])
def setting(request: pytest.FixtureRequest) -> object:
    if request.param == "no key":
        yield {}
        return
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        yield {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": url, "NO_PROXY": "127.0.0.1"}


def test_the_run_is_the_same_and_its_process_ends(made: Path, tmp_path: Path, setting: dict[str, str]) -> None:
    process = started(tmp_path, "train", *WORDS, **setting)
    metrics = tmp_path / "outputs" / "train"
    while process.poll() is None and not list(metrics.glob("*/*/eval.json")):
        time.sleep(0.01)
    trained = time.monotonic()
    code, out, err = finish(process)  # also: nobody else holds the run's output open
    assert time.monotonic() - trained < 3.0 + 1.5  # Python takes its time to go
    assert (code, err) == (0, "")
    assert sum(line.startswith("wandb: ") for line in out.splitlines()) <= 2
    assert same_run(only_run(tmp_path), made)


def test_the_trials_of_a_sweep_are_one_group_with_their_objectives(tmp_path: Path) -> None:
    process = started(tmp_path, "sweep", *WORDS, "train.lr=1e-3,1e-2", "sweep=grid", "sweep.name=a-sweep")
    code, _, err = finish(process)
    assert (code, err) == (0, "")
    for number in (0, 1):
        run = tmp_path / "outputs" / "sweep" / "a-sweep" / str(number)
        config = yaml.safe_load((run / "config.yaml").read_text())["logger"]
        assert (config["group"], config["job_type"]) == ("a-sweep", "trial")
        (written,) = run.glob("wandb/offline-run-*/*.wandb")
        end = time.monotonic() + 60  # it may go on writing when the run has ended
        while b"objective" not in written.read_bytes() and time.monotonic() < end:
            time.sleep(0.1)
        said = written.read_bytes()
        for word in (b"a-sweep", b"trial", b"objective", b"state", b"complete"):
            assert word in said
