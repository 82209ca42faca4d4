"""Kernels are compiled once, never needed, and never the end of a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from metarun import cache, device
from metarun.device import pick
from metarun.kernels import library
from metarun.settings import DeviceSettings
from metarun.types import InputError


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """What a test does to the process is undone."""
    had = library.State.library
    library.unload()
    device._warn.cache_clear()
    yield
    library.State.library = had


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_they_are_compiled_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        library.load(cache.folder())
    except OSError as e:
        pytest.skip(f"the kernels could not be compiled here: {e}")
    assert [path.suffix for path in empty_cache.iterdir()] == [".so"]
    library.unload()
    monkeypatch.setenv("CXX", "/bin/false")
    pick(DeviceSettings(kind="cpu", kernels=True))
    assert library.loaded()


def test_a_library_for_another_processor_is_not_used(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = library._key()
    monkeypatch.setattr(library, "_processor", lambda: b"model name: another")
    assert library._key() != one


@pytest.mark.parametrize(("compiler", "why"), [("/bin/false", "exit code 1"), ("/no/such", "no /no/such")])
def test_without_a_compiler_torch_computes(
    compiler: str, why: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(InputError, match=f"device.kernels=true: .*{why}"):
        pick(DeviceSettings(kind="cpu", kernels=True))
    with pytest.warns(UserWarning, match=why):
        assert pick(DeviceSettings(kind="cpu")) == torch.device("cpu")
    assert not library.loaded()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pick(DeviceSettings(kind="cpu"))  # told once
        pick(DeviceSettings(kind="cpu", kernels=False))


def test_a_damaged_library_is_told_of_and_not_used(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty_cache.mkdir()
    (empty_cache / f"kernels-{library._key()}.so").write_bytes(b"\x7fELF, but not really")
    monkeypatch.setenv("CXX", "/bin/false")
    with pytest.warns(UserWarning, match="kernels"):
        pick(DeviceSettings(kind="cpu"))
    assert not library.loaded()
