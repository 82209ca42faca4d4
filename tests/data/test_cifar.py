"""CIFAR-FS and FC100 on small made-up copies of CIFAR-100, in every layout that is read."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import warnings
import zipfile
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from metarun.data import cifar
from metarun.data.bank import ClassBank
from metarun.data.cifar import ARCHIVE, FC100, ROW, CifarFS
from metarun.data.splits import published
from metarun.types import SPLITS, InputError, Place

NAMES = sorted(name for split in SPLITS for name in published("cifar_fs")[split])
EACH = 2
BINARY = "cifar-100-binary"
AS_OFTEN = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
pytestmark = pytest.mark.filterwarnings("ignore:.*published numbers are for 600")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def pixels(name: str, i: int) -> bytes:
    """(32, 32, 3), another for each image"""
    return Random(f"{name} {i}").randbytes(4) * (32 * 32 * 3 // 4)


def png(name: str, i: int) -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (32, 32), pixels(name, i)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def write_folders(folder: Path) -> None:
    """The first image of each class below part0/, the second below part1/."""
    for name in NAMES:
        for i in range(EACH):
            place = folder / f"part{i}" / name
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i}.png").write_bytes(png(name, i))


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in NAMES:
            for i in range(EACH):
                file.writestr(f"cifar100/data/{name}/{i}.png", png(name, i))


def binary() -> dict[str, bytes]:
    """The files of the binary version, images of classes in turn."""

    def rows(i: int) -> bytes:
        planes = [
            bytes([0, c]) + b"".join(pixels(name, i)[band::3] for band in range(3)) for c, name in enumerate(NAMES)
        ]
        return b"".join(reversed(planes))

    return {"train.bin": rows(0), "test.bin": rows(1), "fine_label_names.txt": "\n".join([*NAMES, ""]).encode()}


def write_binary(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, data in binary().items():
        (folder / name).write_bytes(data)


def packed_up() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz", compresslevel=1) as archive:
        for name, content in binary().items():
            member = tarfile.TarInfo(f"{BINARY}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return data.getvalue()


PACKED = packed_up()
LAYOUTS = {
    "folder": lambda root: write_folders(root / "cifar-fs"),
    "zip": lambda root: write_zip(root / "cifar100-subset.zip"),
    "binary": lambda root: write_binary(root / BINARY),
    "tar": lambda root: (root / f"{BINARY}.tar.gz").write_bytes(PACKED),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dataset", "lists"), [(CifarFS(), "cifar_fs"), (FC100(), "fc100")], ids=["cifar_fs", "fc100"])
def test_every_layout_gives_the_published_classes_and_their_images(
    tmp_path: Path, layout: str, dataset: CifarFS, lists: str
) -> None:
    LAYOUTS[layout](tmp_path)
    split = "val"
    for again in range(2):
        bank = dataset.load(split, Place(tmp_path))
        assert bank.names == tuple(sorted(published(lists)[split])), again
        assert bank.sizes.tolist() == [EACH] * len(bank.names)
        assert (bank.item_shape, bank.items.dtype) == ((3, 32, 32), torch.uint8)
        for c in (0, 7):
            for i in range(EACH):
                wanted = torch.frombuffer(bytearray(pixels(bank.names[c], i)), dtype=torch.uint8).view(32, 32, 3)
                assert torch.equal(bank.items[EACH * c + i], wanted.permute(2, 0, 1))


def test_splits_have_the_published_sizes_and_share_no_class(tmp_path: Path) -> None:
    write_binary(tmp_path / BINARY)
    for dataset, sizes in ((CifarFS(), [64, 16, 20]), (FC100(), [60, 20, 20])):
        banks = [dataset.load(split, Place(tmp_path)) for split in SPLITS]
        assert [len(bank) for bank in banks] == sizes
        assert len({name for bank in banks for name in bank.names}) == 100


@pytest.mark.filterwarnings("default")
def test_fewer_images_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_binary(tmp_path / BINARY)
    with pytest.warns(
        UserWarning, match=r"cifar-100-binary has 2 images of '\w+'; published numbers are for 600 a class"
    ):
        CifarFS().load("val", Place(tmp_path))
    monkeypatch.setattr(cifar, "IMAGES", EACH)
    with warnings.catch_warnings(action="error"):
        CifarFS().load("val", Place(tmp_path))


def test_a_folder_comes_before_the_binary_version(tmp_path: Path) -> None:
    write_binary(tmp_path / BINARY)
    write_folders(tmp_path / "cifar100")
    (tmp_path / "cifar100/part0/beaver/extra.png").write_bytes(png("extra", 0))
    (tmp_path / "cifar100/.hidden/beaver").mkdir(parents=True)
    (tmp_path / "cifar100/.hidden/beaver/extra.png").write_bytes(b"no image")
    bank = CifarFS().load("val", Place(tmp_path))
    assert bank.sizes[bank.names.index("beaver")] == EACH + 1


def test_a_new_copy_is_read_anew(tmp_path: Path) -> None:
    write_binary(tmp_path / BINARY)
    before = CifarFS().load("val", Place(tmp_path)).items.clone()
    (tmp_path / BINARY / "train.bin").write_bytes(binary()["train.bin"] * 2)
    assert len(CifarFS().load("val", Place(tmp_path)).items) == len(before) * 3 // 2


# Refused


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no CIFAR-100 in .*: put cifar-fs there, .* or cifar-100-binary\.tar\.gz"):
        CifarFS().load("train", Place(tmp_path, offline=True))
    with pytest.raises(InputError, match="no CIFAR-100 in"):
        CifarFS().load("train", Place(tmp_path / "nowhere", offline=True))


def test_what_is_missing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_binary(tmp_path / "published" / BINARY)
    with tarfile.open(tmp_path / ARCHIVE.name, "w:gz") as archive:
        archive.add(tmp_path / "published" / BINARY, BINARY)
    root, asked = tmp_path / "data", []

    def fetch(name: str, urls: tuple[str, ...], checksum: str, into: Path, place: Place) -> Path:
        asked.append((name, urls, checksum))
        into.mkdir()
        return Path(shutil.copy(tmp_path / name, into / name))

    monkeypatch.setattr(cifar, "fetch", fetch)
    banks = [FC100().load("val", Place(folder)) for folder in (root, root, tmp_path / "published")]
    assert torch.equal(banks[0].items, banks[2].items) and torch.equal(banks[1].items, banks[2].items)
    assert asked == [ARCHIVE]


def test_a_class_that_is_missing_is_told(tmp_path: Path) -> None:
    write_folders(tmp_path / "cifar-fs")
    for part in ("part0", "part1"):
        os.rename(tmp_path / f"cifar-fs/{part}/beaver", tmp_path / f"cifar-fs/{part}/bever")  # noqa: PTH104
    with pytest.raises(InputError, match="class 'beaver' of val is not in the data"):
        CifarFS().load("train", Place(tmp_path))


DAMAGE = {
    "half an image": ("train.bin", lambda data: data[:-1], r"train\.bin is cut short"),
    "nothing": ("test.bin", lambda data: b"", r"test\.bin is cut short"),
    "a class too many": ("test.bin", lambda data: b"\0\x64" + data[2:], r"test\.bin has an image of class 100, of 100"),
    "too much": ("test.bin", lambda data: bytes(10_001 * ROW), r"test\.bin is larger than CIFAR-100's"),
    "another list": ("fine_label_names.txt", lambda data: data[6:], "class 'apple' of train is not in the data"),
    "no text": ("fine_label_names.txt", lambda data: b"\xff" + data, "damaged"),
}


@pytest.mark.parametrize(("name", "change", "said"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_binary_version_is_told(tmp_path: Path, name: str, change, said: str) -> None:
    write_binary(tmp_path / BINARY)
    (tmp_path / BINARY / name).write_bytes(change(binary()[name]))
    with pytest.raises(InputError, match=said):
        CifarFS().load("val", Place(tmp_path))


def test_a_lacking_file_is_told(tmp_path: Path) -> None:
    write_binary(tmp_path / BINARY)
    (tmp_path / BINARY / "test.bin").unlink()
    with pytest.raises(InputError, match=r"cifar-100-binary/test\.bin cannot be read"):
        CifarFS().load("val", Place(tmp_path))


def outside_the_cache(root: Path) -> dict[str, int]:
    return {str(p): p.stat().st_size for p in root.rglob("*") if "cache" not in p.relative_to(root).parts[:1]}


def a_bank_or_why(root: Path) -> None:
    before = outside_the_cache(root)
    try:
        assert isinstance(CifarFS().load("val", Place(root)), ClassBank)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    assert outside_the_cache(root) == before


@AS_OFTEN
@given(st.integers(0, len(PACKED)), st.binary(max_size=40), st.integers(0, 40))
def test_no_archive_is_too_strange(tmp_path: Path, at: int, new: bytes, gone: int) -> None:
    """Cut short, or with some bytes replaced by others."""
    path = tmp_path / f"{BINARY}.tar.gz"
    path.write_bytes(PACKED[:at] + new + (PACKED[at + gone :] if gone else b""))
    a_bank_or_why(tmp_path)


@AS_OFTEN
@given(st.sampled_from(sorted(binary())), st.binary(max_size=200), st.integers(0, 2 * ROW))
def test_no_binary_file_is_too_strange(tmp_path: Path, name: str, new: bytes, kept: int) -> None:
    if not (tmp_path / BINARY).exists():
        write_binary(tmp_path / BINARY)
    whole = binary()[name]
    (tmp_path / BINARY / name).write_bytes(whole[:kept] + new)
    a_bank_or_why(tmp_path)
    (tmp_path / BINARY / name).write_bytes(whole)


# The real thing


@pytest.mark.data
@pytest.mark.parametrize(("dataset", "classes"), [(CifarFS(), 16), (FC100(), 20)], ids=["cifar_fs", "fc100"])
def test_real_images(dataset: CifarFS, classes: int) -> None:
    bank = dataset.load("val", Place(Path(os.environ["METARUN_DATA"])))
    assert len(bank) == classes
    assert bank.sizes.unique().tolist() in ([100], [600])
    assert 90 < bank.items.float().mean() < 160
