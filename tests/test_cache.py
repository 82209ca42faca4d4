"""A cache is only worth having if it is never wrong, never half there and never in the way."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from metarun import cache
from metarun.cache import cached
from metarun.files import write_atomic
from metarun.types import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Makes the same thing every time and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> dict[str, Any]:
        self.calls += 1
        return {"items": torch.arange(50_000), "names": ["a", "b"], "side": 28}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and torch.equal(one["items"], other["items"]) and one["names"] == other["names"]


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_made_once_and_then_read(folder: Path) -> None:
    make = Maker()
    first, second = cached("x", "key", make), cached("x", "key", make)
    assert make.calls == 1
    assert same(first, second)
    assert same(first, Maker()())
    assert only_file(folder).name.startswith("x-")


def test_each_key_and_each_name_has_a_file_of_its_own(folder: Path) -> None:
    make = Maker()
    for name, key in (("x", "1"), ("x", "2"), ("y", "1")):
        cached(name, key, make)
    assert make.calls == 3
    assert len(list(folder.iterdir())) == 3


def test_a_file_made_for_another_key_is_not_taken(folder: Path) -> None:
    cached("x", "one", Maker())
    one = only_file(folder).read_bytes()
    only_file(folder).unlink()
    cached("x", "two", Maker())
    only_file(folder).write_bytes(one)
    make = Maker()
    cached("x", "two", make)
    assert make.calls == 1


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    """One bit, in the middle of the tensor."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flip, lambda data: b"", lambda data: b"not a cache at all"])
def test_a_damaged_file_is_made_again(folder: Path, damage: Any) -> None:
    cached("x", "key", Maker())
    whole = only_file(folder).read_bytes()
    only_file(folder).write_bytes(damage(whole))
    make = Maker()
    assert same(cached("x", "key", make), Maker()())
    assert make.calls == 1
    assert same(cached("x", "key", make), Maker()())
    assert make.calls == 1


class Trap:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_file_is_data_and_never_code(folder: Path, tmp_path: Path) -> None:
    cached("x", "key", Maker())
    torch.save({"key": "key", "value": Trap(tmp_path / "sprung")}, only_file(folder))
    make = Maker()
    cached("x", "key", make)
    assert make.calls == 1
    assert not (tmp_path / "sprung").exists()


def test_what_fails_to_be_made_leaves_nothing(folder: Path) -> None:
    def fail() -> dict[str, Any]:
        raise InputError("no such data")

    with pytest.raises(InputError, match="no such data"):
        cached("x", "key", fail)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="cannot be written.*METARUN_CACHE") as caught:
        made = cached("x", "key", Maker())
    assert same(made, Maker()())
    assert len(caught) == 1


def test_writing_to_what_was_read_does_not_reach_the_file(folder: Path) -> None:
    cached("x", "key", Maker())
    cached("x", "key", Maker())["items"].zero_()
    assert same(cached("x", "key", Maker()), Maker()())


def test_what_was_read_outlives_its_file(folder: Path) -> None:
    cached("x", "key", Maker())
    kept = cached("x", "key", Maker())
    write_atomic(only_file(folder), lambda file: file.write(b"something else"))
    assert same(kept, Maker()())


def test_many_at_once_do_no_harm(folder: Path) -> None:
    """Threads stand for processes: neither shares anything but the folder."""
    start = threading.Barrier(8)
    results: list[dict[str, Any]] = []

    def work() -> None:
        start.wait()
        results.append(cached("x", "key", Maker()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert all(same(result, Maker()()) for result in results)
    assert only_file(folder).suffix == ".pt"


def test_where_the_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.folder() == tmp_path / "cache"
    monkeypatch.setenv("METARUN_CACHE", "~/mine")
    assert cache.folder() == tmp_path / "home" / "mine"
    monkeypatch.delenv("METARUN_CACHE")
    assert cache.folder() == tmp_path / "xdg" / "metarun"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.folder() == tmp_path / "home" / ".cache" / "metarun"


# write_atomic, on which the above stands


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half of the n")
        raise error

    path = tmp_path / "x"
    for there in ([], [path]):
        with pytest.raises(type(error)):
            write_atomic(path, fail)
        assert [file for file in tmp_path.iterdir() if file.is_file()] == there
        path.write_bytes(b"old")
    assert path.read_bytes() == b"old"


def test_a_failed_rename_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError):
        write_atomic(tmp_path / "x", lambda file: file.write(b"new"))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_is_called_so(tmp_path: Path) -> None:
    """`torch.save` raises "unexpected pos" while it handles the OSError that says what is wrong."""

    def save(file: BinaryIO) -> None:
        with Path("/dev/full").open("wb") as full:
            torch.save(torch.zeros(1_000_000), full)

    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "x", save)
    assert not list(tmp_path.iterdir())


def test_a_written_file_has_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    write_atomic(tmp_path / "x", lambda file: file.write(b"new"))
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_cache_hit_warns_of_nothing(folder: Path) -> None:
    cached("x", "key", Maker())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached("x", "key", Maker())
