"""wandb may be absent, silent, broken or killed: it never holds a run up for more than 3 s, and never ends one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from metarun.loggers import wandb as ours
from metarun.loggers.sink import RunInfo
from metarun.loggers.wandb import WandbLogger, WandbSink

STALL = 3.0
"""seconds: the promise"""
CONFIG = {"algo": {"name": "maml", "inner_lr": 0.4}, "seed": 3, "data_root": "data"}


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone without a key or settings of their own."""
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@contextmanager
def logged(tmp_path: Path, said: list[str], **settings: Any) -> Iterator[WandbSink]:
    """A run that logs to wandb; whatever is left of its process afterwards is ended."""
    folder = tmp_path / "outputs" / "2026-01-01_00-00-00"
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    sink = WandbLogger(**settings).open(RunInfo(folder, "glyphs-maml-5w1s", ("maml",), CONFIG, False, said.append))
    assert time.monotonic() - began < 1.0
    try:
        yield sink
    finally:
        assert sink._process is not None
        if sink._process.poll() is None:
            os.killpg(sink._process.pid, signal.SIGKILL)
        sink._process.wait(10)


def rows(sink: WandbSink, first: int = 1, last: int = 3) -> None:
    for step in range(first, last + 1):
        sink.log({"step": step, "split": "train", "loss": 1.0 / step})
        sink.log({"step": step, "split": "val", "accuracy": 0.1 * step, "best": True})


def timed(close: Callable[[], object]) -> float:
    began = time.monotonic()
    close()
    return time.monotonic() - began


def end(sink: WandbSink) -> float:
    return timed(lambda: sink.close({"best": 0.3, "best_step": 3, "test/accuracy": 0.25}, 0))


def until(there: Callable[[], Any], seconds: float = 40.0) -> Any:
    ending = time.monotonic() + seconds
    while not (found := there()) and time.monotonic() < ending:
        time.sleep(0.05)
    assert found, "did not come to pass"
    return found


def offline_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "outputs").glob("*/wandb/offline-run-*/run-*.wandb"))


def records(file: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """What is in an offline run, as wandb itself reads it."""
    program = Path(sys.executable).with_name("wandb")
    words = [str(program) if program.exists() else shutil.which("wandb") or "wandb", "leet", "inspect", "--json", file]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    if done.returncode:
        pytest.skip(f"wandb leet inspect does not work here: {done.stderr[-200:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_offline_without_a_key(tmp_path: Path) -> None:
    said: list[str] = []
    with logged(tmp_path, said, tags=["mine"], group="a group") as sink:
        rows(sink)
        until(lambda: said)
        end(sink)
        until(lambda: sink._process is not None and sink._process.poll() is not None)
    assert said[0] == "wandb: offline (no API key; wandb login gives it one)"
    assert len(said) == 1
    (file,) = offline_files(tmp_path)
    found = records(file, tmp_path)
    (run,) = [record["run"] for record in found if record["type"] == "run"]
    assert run["display_name"] == "glyphs-maml-5w1s-2026-01-01_00-00-00"
    assert run["run_group"] == "a group"
    assert run["tags"] == ["maml", "mine"]
    assert run["project"] == "metarun"
    assert run["config"]["update"].items() >= CONFIG.items()
    text = file.read_bytes()
    for word in (b"train/loss", b"val/accuracy", b"best_step", b"test/accuracy"):
        assert word in text
    history = [record for record in found if record["type"] == "history"]
    assert len(history) >= 3


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def mute_server() -> Iterator[int]:
    """Takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield server.getsockname()[1]


@contextmanager
def web_server(get: int, post: int) -> Iterator[int]:
    class Answer(BaseHTTPRequestHandler):
        def answer(self, code: int) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.answer(get)

        def do_POST(self) -> None:
            self.answer(post)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def offline_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> str:
    """Why a run is offline that has a key for a server at `port`; it must not be held up, and lose nothing."""
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    said: list[str] = []
    with logged(tmp_path, said) as sink:
        rows(sink)
        assert end(sink) < STALL
        until(lambda: offline_files(tmp_path))
        until(lambda: sink._process is not None and sink._process.poll() is not None)
    assert b"best_step" in offline_files(tmp_path)[0].read_bytes()
    return said[0]


def test_a_server_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why = offline_at(tmp_path, monkeypatch, closed_port())
    assert why.startswith("wandb: offline (127.0.0.1 cannot be reached: ") or "still busy" in why


def test_a_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mute_server() as port:
        why = offline_at(tmp_path, monkeypatch, port)
    assert why == "wandb: offline (127.0.0.1 did not answer in 1.5 s)" or "still busy" in why


def test_a_server_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server(get=500, post=500) as port:
        why = offline_at(tmp_path, monkeypatch, port)
    assert why.startswith("wandb: offline (127.0.0.1 answers 500") or "still busy" in why


def test_a_server_that_breaks_when_a_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server(get=200, post=404) as port:
        why = offline_at(tmp_path, monkeypatch, port)
    assert "would not start a run" in why or "still busy" in why


def test_the_word_of_the_environment_and_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with logged(tmp_path, said, mode="disabled") as sink:
        until(lambda: said)
        end(sink)
    assert said[0] == "wandb: disabled (logger.mode)"
    assert not offline_files(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    said.clear()
    with logged(tmp_path, said) as sink:
        until(lambda: said)
        end(sink)
    assert said[0] == "wandb: offline (WANDB_MODE)"


def children(of: int) -> list[int]:
    """Processes that a process started, all generations; Linux only."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == of:
                found += [int(stat.parent.name), *children(int(stat.parent.name))]
        except (OSError, IndexError):
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes under /proc")
def test_its_service_is_killed(tmp_path: Path) -> None:
    said: list[str] = []
    with logged(tmp_path, said, mode="offline") as sink:
        rows(sink)
        until(lambda: said)
        assert sink._process is not None
        for pid in until(lambda: children(sink._process.pid)):
            os.kill(pid, signal.SIGKILL)
        rows(sink, 4, 50)
        assert end(sink) < STALL
    assert all(line.startswith("wandb: ") for line in said)
    assert "Traceback" not in "".join(said)


def test_its_process_is_killed(tmp_path: Path) -> None:
    said: list[str] = []
    with logged(tmp_path, said, mode="offline") as sink:
        assert sink._process is not None
        os.killpg(sink._process.pid, signal.SIGKILL)
        sink._process.wait(10)
        rows(sink, 1, 2000)  # more than a pipe holds
        assert end(sink) < STALL
    assert said == ["wandb: its process was ended from outside; the run goes on and metrics.jsonl has every row"]


def test_a_process_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "hangs.py"
    program.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(ours, "PROGRAM", program)
    said: list[str] = []
    with logged(tmp_path, said) as sink:
        rows(sink, 1, 5000)
        assert ours.PATIENCE - 0.1 < end(sink) < STALL
        said_by_then = [*said]
    assert len(said_by_then) == 1
    assert said_by_then[0].startswith("wandb: still busy, goes on by itself; should it not get there: wandb sync ")
    time.sleep(0.2)
    assert said == said_by_then, "nothing may be said after the end"


def test_a_program_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-such-python"))
    said: list[str] = []
    info = RunInfo(tmp_path, "label", (), CONFIG, False, said.append)
    sink = WandbLogger().open(info)
    rows(sink)
    sink.close({}, 0)
    assert said[0].startswith("wandb: not started")


def test_a_resumed_run_keeps_its_id(tmp_path: Path) -> None:
    info = RunInfo(tmp_path, "label", (), CONFIG, True, print)
    one, other = (WandbSink(WandbLogger(), info) for _ in range(2))
    assert one._start()["init"]["id"] == other._start()["init"]["id"]
    for sink in (one, other):
        assert sink._process is not None
        os.killpg(sink._process.pid, signal.SIGKILL)
        sink._process.wait(10)
