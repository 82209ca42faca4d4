"""metarun as it is typed, in a folder of each test's own."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commandline import TINY, Said, only_run, typed

from metarun.sweep.nursery import Nursery


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


class Shared(Nursery):
    """Stays when a sweep is over."""

    def close(self) -> None: ...


class OneForAll:
    """Imports torch once for all the sweeps that are typed in this process, and not 4 seconds for each of them."""

    one: Shared | None = None
    serves = staticmethod(Nursery.serves)

    def __new__(cls) -> Shared:
        if cls.one is None or not cls.one.lives:
            with contextlib.chdir(Path(__file__).parent):  # none of the folders in which tests look for processes
                cls.one = Shared()
        return cls.one


@pytest.fixture(scope="session", autouse=True)
def nursery() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("metarun.sweep.nursery", "metarun.sweep.executor"):
            patch.setattr(f"{module}.Nursery", OneForAll)
        yield
    if OneForAll.one is not None:
        Nursery.close(OneForAll.one)
