"""metarun as it is typed, in a folder of each test's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import TINY, Said, only_run, typed


@pytest.fixture
def metarun(tmp_path: Path) -> Callable[..., Said]:
    """`metarun("train", "seed=1")`: in this test's own folder."""
    return lambda *words: typed(tmp_path, *words)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny run. Not to be changed: `copied` is."""
    folder = tmp_path_factory.mktemp("made")
    said = typed(folder, "train", *TINY)
    assert said.code == 0, said.err
    return only_run(folder)


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The finished tiny run in this test's own `outputs/`."""
    return Path(shutil.copytree(made, tmp_path / "outputs" / "train" / "label" / made.name))
