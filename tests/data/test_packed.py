"""Items decoded once: whole or not at all, gone on with, by one process at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metarun.data import packed as module
from metarun.data.chunks import Broken
from metarun.data.packed import packed
from metarun.files import write_atomic
from metarun.types import InputError

ITEM = (2, 3)
SIZE = 6
COUNT = 50


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "CHUNK", 4 * SIZE)
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def item(i: int) -> bytes:
    return bytes((i * 7 + j) % 256 for j in range(SIZE))


def made(decode: Callable[[int], bytes] = item, key: str = "k", **more: bool | int) -> list[bytes]:
    items = packed("things", key, range(COUNT), ITEM, decode, **more).items  # type: ignore[arg-type]
    return [bytes(row.flatten().tolist()) for row in items]


def kept(tmp_path: Path) -> list[str]:
    return sorted(path.suffix for path in (tmp_path / "cache").glob("*"))


WHOLE = [item(i) for i in range(COUNT)]


@pytest.mark.parametrize("workers", [1, 3])
def test_items_come_back_in_order(workers: int) -> None:
    assert made(workers=workers) == WHOLE


def test_a_second_start_decodes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made()
    assert kept(tmp_path) == [".bin", ".json"]
    assert capsys.readouterr().err == f"preparing things: {COUNT} items, once\n"
    assert made(lambda i: pytest.fail("decoded again")) == WHOLE
    assert capsys.readouterr().err == ""


def test_another_key_is_another_file() -> None:
    made()
    other = made(lambda i: item(i + 1), key="other")
    assert other == [item(i + 1) for i in range(COUNT)]
    assert made() == WHOLE


def test_the_checksum_is_of_the_bytes() -> None:
    sums = {packed("things", key, range(COUNT), ITEM, decode).checksum for key, decode in (("a", item), ("b", item))}
    assert len(sums) == 1
    assert packed("things", "c", range(COUNT), ITEM, lambda i: item(i + 1)).checksum not in sums


def test_a_file_cut_short_is_made_again(tmp_path: Path) -> None:
    made()
    (path,) = (tmp_path / "cache").glob("*.bin")
    path.write_bytes(path.read_bytes()[:-1])
    assert made() == WHOLE


@pytest.mark.parametrize("mark", ["", "{}", "[]", '{"key": 3}', "\xff"])
def test_a_damaged_mark_is_made_again(tmp_path: Path, mark: str) -> None:
    made()
    (path,) = (tmp_path / "cache").glob("*.json")
    path.write_text(mark)
    assert made() == WHOLE


def broken_at(*numbers: int) -> Callable[[int], bytes]:
    def decode(i: int) -> bytes:
        if i in numbers:
            raise Broken(f"item {i} is no image")
        return item(i)

    return decode


def test_a_broken_item_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"item 17 is no image.*data.skip_broken=true"):
        made(broken_at(17))
    assert kept(tmp_path) == []
    assert made() == WHOLE


@pytest.mark.parametrize("broken", [[0], [COUNT - 1], [0, 1, 2, 3, 4], [3, 17, 18, 40], list(range(1, COUNT))])
def test_broken_items_are_left_out_where_that_is_asked_for(
    broken: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    found = packed("things", "k", range(COUNT), ITEM, broken_at(*broken), skip_broken=True)
    assert list(found.left_out) == broken
    assert [bytes(row.flatten().tolist()) for row in found.items] == [w for i, w in enumerate(WHOLE) if i not in broken]
    assert f"{len(broken)} of {COUNT} items do not decode" in capsys.readouterr().err
    again = packed("things", "k", range(COUNT), ITEM, lambda i: pytest.fail("decoded again"), skip_broken=True)
    assert again.left_out == found.left_out


def stop_at_thirty() -> None:
    def stopped(i: int) -> bytes:
        if i == 30:
            raise KeyboardInterrupt
        return item(i)

    with pytest.raises(KeyboardInterrupt):
        made(stopped, workers=1)


def test_what_was_stopped_is_gone_on_with(tmp_path: Path) -> None:
    stop_at_thirty()
    assert ".part" in kept(tmp_path) and ".bin" not in kept(tmp_path)
    decoded: list[int] = []
    assert made(lambda i: decoded.append(i) or item(i)) == WHOLE
    assert 0 < len(decoded) < COUNT
    assert 0 not in decoded and 30 in decoded
    assert kept(tmp_path) == [".bin", ".json"]


def test_a_chunk_that_did_not_reach_the_disk_is_decoded_again(tmp_path: Path) -> None:
    """As after a power cut: the list says more than the file holds."""
    stop_at_thirty()
    (part,) = (tmp_path / "cache").glob("*.part")
    with part.open("r+b") as file:
        file.write(bytes(2 * SIZE))
    (marks,) = (tmp_path / "cache").glob("*.chunks")
    marks.write_text(marks.read_text() + '{"first": 9')
    assert made() == WHOLE


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot hold things, 0 MB .*METARUN_CACHE"):
        made()


def test_of_two_at_once_one_waits_for_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    decoded: list[int] = []

    def slow(i: int) -> bytes:
        time.sleep(0.004)
        decoded.append(i)
        return item(i)

    found: list[list[bytes]] = []
    threads = [threading.Thread(target=lambda: found.append(made(slow, workers=1))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [WHOLE] * 3
    assert sorted(decoded) == list(range(COUNT))
    assert "prepared by another process" in capsys.readouterr().err


KILLED = """
import os, sys, time
from metarun.data import packed
packed.CHUNK = 24
def decode(i):
    if i == 30:
        time.sleep(0.5)  # while what is done is noted down
        print("here", flush=True)
        time.sleep(60)
    return bytes((i * 7 + j) % 256 for j in range(6))
packed.packed("things", "k", range(50), (2, 3), decode, workers=1)
"""


def test_a_killed_preparation_blocks_nobody_and_is_gone_on_with() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", KILLED], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    decoded: list[int] = []
    assert made(lambda i: decoded.append(i) or item(i)) == WHOLE
    assert 0 < len(decoded) < COUNT


# More processes than one, once it takes a while


def long(tmp_path: Path, broken: int | None = None, fatal: bool = False) -> Callable[[int], bytes]:
    """Takes 1 s for all, and notes which process decodes what. Half-way the first one waits for what the others do,
    however long they take to start. `fatal`: any other one ends at its first item.
    """
    first = os.getpid()

    def decode(i: int) -> bytes:
        time.sleep(1 / COUNT)
        write_atomic(tmp_path / f"by-{i}", lambda file: file.write(str(os.getpid()).encode()))
        if fatal and os.getpid() != first:
            os._exit(1)
        if i == COUNT // 2 and os.getpid() == first:
            until = time.monotonic() + 60
            while sum(pid != first for pid in by(tmp_path)) < (1 if fatal else 5) and time.monotonic() < until:
                time.sleep(0.01)
        if i == broken:
            raise Broken(f"item {i} is no image")
        return bytes((i * 7 + j) % 256 for j in range(6))

    return decode


def by(tmp_path: Path) -> list[int]:
    """The processes that decoded, item by item as far as they are."""
    return [int(path.read_text()) for i in range(COUNT) if (path := tmp_path / f"by-{i}").exists()]


def test_what_takes_long_is_decoded_by_several_processes(tmp_path: Path) -> None:
    assert made(long(tmp_path), workers=2) == WHOLE
    assert by(tmp_path)[0] == os.getpid(), "who starts others goes on working"
    assert len(set(by(tmp_path))) == 2 and sum(pid != os.getpid() for pid in by(tmp_path)) >= 5
    assert kept(tmp_path) == [".bin", ".json"]


def test_what_is_broken_in_another_process_is_named_or_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"item 44 is no image.*data.skip_broken=true"):
        made(long(tmp_path, broken=44), workers=2)
    assert kept(tmp_path) == []
    assert made(long(tmp_path, broken=44), workers=2, skip_broken=True) == WHOLE[:44] + WHOLE[45:]


def test_a_process_that_is_ended_from_outside_costs_only_what_it_had_at_hand(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ended from outside.*memory.*goes on from there"):
        made(long(tmp_path, fatal=True), workers=2)
    assert kept(tmp_path) == [".chunks", ".part"]
    decoded: list[int] = []
    assert made(lambda i: decoded.append(i) or item(i)) == WHOLE
    assert decoded[-1] == COUNT - 1 and 0 not in decoded


def test_a_process_that_decodes_images_needs_no_torch() -> None:
    script = "import sys, metarun.data.pixels, metarun.data.strokes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
