"""What a helper of a shared run does with what goes wrong in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from metarun import company
from metarun.engine.distributed import Ranks
from metarun.engine.memory import NoMemory
from metarun.types import TrainingError
from metarun.world import World


class Called(Ranks):
    """A rank that is called for one job, and is then dismissed with code 7."""

    calls = 0

    def shared(self, own: Any) -> Any:
        type(self).calls += 1
        return {"job": "train"} if self.calls == 1 else {"job": None, "code": 7}

    def gathered(self, mine: Any) -> list[Any]:
        return [mine]


@pytest.mark.parametrize(
    "error, code",
    [
        (TrainingError("training diverged"), 7),  # which all ranks meet: this one waits to be called again
        (NoMemory("one task is too much"), company.OUT_OF_MEMORY),  # which others wait for in vain
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), company.OUT_OF_MEMORY),
        (MemoryError(), company.OUT_OF_MEMORY),
    ],
)
def test_a_helper_ends_with_what_the_others_do_not_meet(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def fails() -> None:
        raise error

    def job(ranks: Ranks, **what: Any) -> Callable[[], None]:
        return fails

    monkeypatch.setattr(Called, "calls", 0)
    monkeypatch.setattr(company, "connect", lambda world: None)
    monkeypatch.setattr(company, "Ranks", Called)
    monkeypatch.setattr(company.os, "dup2", lambda *fds: None)
    monkeypatch.setattr(company.signal, "signal", lambda *what: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    assert company.serve(World(1, 2, 1, None), {}, {"train": job}) == code
