"""Archives are unpacked whole or not at all, and never elsewhere."""

from __future__ import annotations

import io
import json
import stat
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metarun.data import archive
from metarun.data.archive import MARK, unpacked
from metarun.types import InputError

FILES = {"a/b/1.bin": Random(1).randbytes(5000), "a/2.txt": b"two", "c": b"", "a/.hidden": b"h" * 3000}
KINDS = {"zip": "", "tar": "", "tar.gz": "gz", "tgz": "gz", "tar.bz2": "bz2", "tar.xz": "xz"}


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return path


def write_tar(path: Path, files: dict[str, bytes], mode: str = "") -> Path:
    with tarfile.open(path, f"w:{mode}") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            file.addfile(info, io.BytesIO(data))
    return path


def write(folder: Path, kind: str, files: dict[str, bytes] = FILES) -> Path:
    path = folder / f"data.{kind}"
    return write_zip(path, files) if kind == "zip" else write_tar(path, files, KINDS[kind])


def inside(folder: Path) -> dict[str, bytes]:
    """Its files, without the mark."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert json.loads(found.pop(MARK))
    return found


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refusal(path: Path, into: Path) -> str:
    """And nothing is left."""
    before = everything(path.parent)
    with pytest.raises(InputError) as caught:
        unpacked(path, into)
    assert everything(path.parent) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is unpacked


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_unpacked_alike(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind, FILES | {"a/": b"", "./d/": b"", "./e/./f": b"6"})
    into = tmp_path / "deep" / "data"
    assert unpacked(path, into) == into
    assert inside(into) == FILES | {"e/f": b"6"}
    assert (into / "d").is_dir()
    assert everything(tmp_path / "deep") == {f"data/{name}" for name in everything(into)} | {"data"}


def test_once_and_again_when_the_archive_changes(tmp_path: Path) -> None:
    path, into = write(tmp_path, "zip"), tmp_path / "data"
    unpacked(path, into)
    (into / "c").write_bytes(b"changed")
    unpacked(path, into)
    assert inside(into)["c"] == b"changed"
    write(tmp_path, "zip", {"new": b"1"})
    unpacked(path, into)
    assert inside(into) == {"new": b"1"}
    path.unlink()
    assert unpacked(path, into) == into, "what was unpacked needs its archive no more"


def test_of_two_at_once_one_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, into = write(tmp_path, "zip"), tmp_path / "data"
    times = []
    unpack = archive._unpack
    monkeypatch.setattr(archive, "_unpack", lambda *args: (times.append(1), unpack(*args)))
    threads = [threading.Thread(target=unpacked, args=(path, into)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 1
    assert inside(into) == FILES
    assert everything(tmp_path) == {"data", "data.zip"} | {f"data/{name}" for name in everything(into)}


def test_modes_are_not_taken(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        info = tarfile.TarInfo("run.sh")
        info.mode = 0o4777
        file.addfile(info)
    unpacked(tmp_path / "x.tar", tmp_path / "x")
    assert not (tmp_path / "x/run.sh").stat().st_mode & (stat.S_ISUID | stat.S_IXUSR)


# What is refused


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
@pytest.mark.parametrize(
    "name",
    ["../evil", "/evil", "a/../../evil", "a/..", "..", "..\\evil", "C:\\evil", "\\evil", "//evil", "a\\..\\..\\b"],
)
def test_a_member_that_would_be_elsewhere_is_named(tmp_path: Path, kind: str, name: str) -> None:
    path = write(tmp_path, kind, {"fine": b"1", name: b"evil", "also": b"2"})
    message = refusal(path, tmp_path / "data")
    assert f"{path}: {name!r} would be written outside its folder" in message


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_a_tar_is_named(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        file.addfile(tarfile.TarInfo("fine"))
        info = tarfile.TarInfo("odd")
        info.type, info.linkname = kind, "fine"
        file.addfile(info)
    assert "'odd' is a link or a device" in refusal(tmp_path / "x.tar", tmp_path / "x")


def test_a_link_in_a_zip_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        info = zipfile.ZipInfo("odd")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    assert "'odd' is a link or a device" in refusal(tmp_path / "x.zip", tmp_path / "x")


@pytest.mark.parametrize("kind", ["zip", "tgz"])
@pytest.mark.parametrize(
    "files", [{"zeros": bytes(3_000_000)}, {f"{i}": b"" for i in range(3000)}], ids=["long", "many"]
)
def test_what_grows_beyond_measure_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, files: dict[str, bytes]
) -> None:
    monkeypatch.setattr(archive, "SLACK", 1000)
    monkeypatch.setattr(archive, "RATIO", 4)
    path = write(tmp_path, kind, files)
    assert f"{path}: with " in refusal(path, tmp_path / "data")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0, 0.1, 0.3, 0.5])
def test_a_cut_archive_leaves_nothing(tmp_path: Path, kind: str, part: float) -> None:
    path = write(tmp_path, kind)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert f"{path} is" in refusal(path, tmp_path / "data")


def test_a_flipped_bit_in_a_zip_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path, "zip", {"a": FILES["a/b/1.bin"]})
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    assert "cut short or damaged" in refusal(path, tmp_path / "data")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "zip", {"a": b"1"})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in refusal(path, tmp_path / "data")


def test_a_folder_that_somebody_else_made_is_left_alone(tmp_path: Path) -> None:
    path, into = write(tmp_path, "zip"), tmp_path / "data"
    into.mkdir()
    (into / "mine").write_text("1")
    assert f"{into} is there, but was not unpacked from data.zip" in refusal(path, into)


def test_an_archive_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no.zip'} cannot be read" in refusal(tmp_path / "no.zip", tmp_path / "data")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "zip")
    (tmp_path / "file").write_text("in the way")
    assert f"{tmp_path / 'file' / 'data'} cannot be made" in refusal(path, tmp_path / "file" / "data")


def test_members_that_get_in_each_other_s_way_are_refused(tmp_path: Path) -> None:
    assert "cannot be made" in refusal(write(tmp_path, "zip", {"a": b"1", "a/b": b"2"}), tmp_path / "data")


# Anything at all


def attempt(fill: Callable[[Path], object]) -> None:
    """What `fill` writes is unpacked, or refused by name; nothing is written beside the folder."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "data").mkdir()
        path = root / "x.zip"
        fill(path)
        try:
            unpacked(path, root / "data" / "into")
        except InputError:
            assert everything(root / "data") == set()
        assert {p.name for p in root.iterdir()} == {"x.zip", "data"}
        assert {p.name for p in (root / "data").iterdir()} <= {"into"}


def archives() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as temporary:
        return {kind: write(Path(temporary), kind).read_bytes() for kind in ("zip", "tar", "tgz")}


WHOLE = archives()


@given(st.binary(max_size=2000))
@settings(max_examples=60, deadline=None)
def test_any_bytes(data: bytes) -> None:
    attempt(lambda path: path.write_bytes(data))


@given(st.sampled_from(sorted(WHOLE)), st.data())
@settings(max_examples=60, deadline=None)
def test_any_cut_or_change(kind: str, data: st.DataObject) -> None:
    whole = WHOLE[kind]
    at = data.draw(st.integers(0, len(whole)))
    change = data.draw(st.binary(max_size=8))
    until = data.draw(st.sampled_from([len(whole), at + len(change)]))
    attempt(lambda path: path.write_bytes((whole[:at] + change + whole[at + len(change) :])[:until]))


@given(st.lists(st.text(st.sampled_from("./\\ab:~ \0é\udc80"), max_size=6), max_size=4), st.booleans())
@example(["/"], False)
@settings(max_examples=60, deadline=None)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_any_names(names: list[str], tar: bool) -> None:
    files = {name: b"x" for name in names if tar or "\udc80" not in name}
    attempt(lambda path: (write_tar if tar else write_zip)(path, files))
