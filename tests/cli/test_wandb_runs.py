"""A run with wandb is the run without it, and ends as promptly."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
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
