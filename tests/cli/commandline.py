"""metarun as it is typed: in this process where that will do, in one of its own where signals or exits count."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hydra.core.global_hydra import GlobalHydra

from metarun import cli
from metarun.registry import known
from metarun.types import REGISTRY

_TINY = (
    "dataset=glyphs algo=protonet model=mlp model.widths=[8] logger=none device=cpu device.threads=1 "
    "train.iterations=4 train.meta_batch=2 train.log_every=2 train.val_every=2 train.val_episodes=4 "
    "eval.episodes=4 checkpoint.every=2"
)
TINY = _TINY.split()
"""A run of half a second."""


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """What was wrong, line by line; each must be marked as such, and nothing else may stand beside them."""
        lines = self.err.splitlines()
        assert all(line.startswith("error: ") for line in lines), self.err
        return [line.removeprefix("error: ") for line in lines]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """In `folder`, as someone who has set none of metarun's variables and has no key for wandb."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in [n for n in os.environ if n.startswith(("WANDB_", "HYDRA_", "METARUN_DATA"))]:
            patch.delenv(name)
        patch.setenv("HOME", str(folder))
        patch.setattr(sys, "path", sys.path.copy())
        # Hydra sets up logging once for each process.
        patch.setattr(logging.root, "handlers", [])
        for name in [*logging.root.manager.loggerDict]:
            patch.setattr(logging.getLogger(name), "disabled", False)
        for kind in REGISTRY:
            patch.setitem(REGISTRY, kind, known(kind).copy())  # a plugin is there for one command only
        yield
    for name, module in [*sys.modules.items()]:
        if str(getattr(module, "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


def typed(folder: Path, *words: str) -> Said:
    """`metarun WORDS...` in `folder`."""
    out, err = io.StringIO(), io.StringIO()
    with inside(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        GlobalHydra.instance().clear()
        code = cli.dispatch(list(words))
    return Said(code, out.getvalue(), err.getvalue())


def only_run(folder: Path) -> Path:
    (config,) = folder.rglob("config.yaml")
    return config.parent


# What a shell starts in the background, tests too, inherits that Ctrl-C is ignored.
AT_A_TERMINAL = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "


def started(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    """`metarun WORDS...` in a process of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HYDRA_", "METARUN_DATA"))}
    return subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL + "from metarun.cli import main; main()", *words],
        cwd=folder,
        env=clean | {"HOME": str(folder)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
