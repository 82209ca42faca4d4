"""What every test can rely on: a cache of its own, and a reason wherever a test is skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

SMALL_TENSORS = ("contract", "engine", "models", "algorithms", "kernels")


@pytest.fixture(scope="session", autouse=True)
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or written to the person's own cache; subprocesses inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tensors as small as these only lose time to threads. They meet the kernels that a run would use."""
    if request.path.parent.name not in SMALL_TENSORS:
        yield
        return
    import torch

    from metarun import cache
    from metarun.kernels import library

    with suppress(OSError):
        library.load(cache.folder())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {"data": _no_data(), "gpu": _no_gpu() if any(i.get_closest_marker("gpu") for i in items) else ""}
    for item in items:
        for mark, reason in reasons.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


def _no_data() -> str:
    return "" if os.environ.get("METARUN_DATA") else "METARUN_DATA is not set"


def _no_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the contract tests have held together: a count of those that passed.

    Each has the property `combination`: [algorithm, model].
    """
    passed = [dict(report.user_properties).get("combination") for report in terminalreporter.getreports("passed")]
    pairs = [pair for pair in passed if isinstance(pair, list)]
    if pairs:
        algorithms, models = (len(set(names)) for names in zip(*pairs))
        terminalreporter.write_line(
            f"contract matrix: {algorithms} algorithms x {models} models: {len(pairs):,} combinations"
        )
