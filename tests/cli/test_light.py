"""What must answer at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest
from commandline import Said, files, started, typed

from metarun import __version__, cli

Metarun = Callable[..., Said]
PROGRAM = "from metarun.cli import main; main()"


def seconds(folder: Path, *words: str) -> float:
    """The best of five."""
    best = float("inf")
    for _ in range(5):
        start = perf_counter()
        done = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=folder, capture_output=True, timeout=30)
        best = min(best, perf_counter() - start)
        assert done.returncode == 0
    return best


@pytest.mark.parametrize("word", ["--help", "--version", "list"])
def test_answers_in_a_fifth_of_a_second(tmp_path: Path, word: str) -> None:
    assert seconds(tmp_path, word) < 0.2
    assert files(tmp_path) == set()


def test_help_and_version(metarun: Metarun) -> None:
    for word in ("-h", "--help"):
        said = metarun(word)
        assert (said.code, said.err) == (0, "")
        assert all(f"\n  {command} " in said.out for command in cli.COMMANDS)
        assert max(map(len, said.out.splitlines())) <= 80
    for words in (["-V"], ["--version"], ["train", "--version"]):
        assert metarun(*words) == Said(0, f"metarun {__version__}\n", "")


def test_nothing_typed(metarun: Metarun) -> None:
    said = metarun()
    assert (said.code, said.out) == (2, "")
    assert said.err == metarun("--help").out


def test_list_has_a_line_about_everything(metarun: Metarun) -> None:
    said = metarun("list")
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    for group in cli.GROUPS:
        options = [file.stem for file in (cli.conf_dir() / group).glob("*.yaml")]
        alone = metarun("list", group)
        assert alone.code == 0
        lines = [line for line in alone.out.splitlines() if not line.startswith("    ")]
        assert [line.split()[0] for line in lines] == sorted(options)
        assert all(len(line.split()) > 1 for line in lines), "a first comment line in its yaml"
        assert f"{group}=\n{alone.out}" in said.out
    assert metarun("list", "algo", "model").out.startswith("algo=\n")
    assert metarun("list", "--help").out.startswith("usage: metarun list [algo|")


def test_whoever_reads_may_go(tmp_path: Path) -> None:
    """`metarun list | head -1`"""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, "list"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 141


def test_a_terminal_that_knows_only_ascii(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "list", "experiment"],
        cwd=tmp_path,
        env={"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_ctrl_c_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(words: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "dispatch", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_ctrl_c_while_torch_is_imported(tmp_path: Path) -> None:
    """Somewhere in there an exception may be caught and forgotten."""
    process = started(tmp_path, "train", "logger=none", "train.iterations=1000000")
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in out + err


def test_typed_is_what_a_shell_runs(tmp_path: Path) -> None:
    """The other tests type within this process; here is one that does not."""
    words = ("train", "algo=mamll", "--cfg", "job")
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True)
    assert Said(done.returncode, done.stdout, done.stderr) == typed(tmp_path, *words)
