"""The benchmarks that come as folders, on small made-up copies of each layout."""

from __future__ import annotations

import hashlib
import shutil
import struct
import tarfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from metarun.data import benchmark, vgg_flowers
from metarun.data.aircraft import Aircraft
from metarun.data.bank import ClassBank
from metarun.data.benchmark import Benchmark, below, boxes, lines
from metarun.data.cub import Cub
from metarun.data.download import Published
from metarun.data.dtd import Dtd
from metarun.data.gtsrb import Gtsrb
from metarun.data.images import Classes
from metarun.data.tiered_imagenet import TieredImageNet
from metarun.data.vgg_flowers import VggFlowers
from metarun.types import SPLITS, InputError, Place

FEWER = "ignore:.*published numbers are for"
pytestmark = pytest.mark.filterwarnings(FEWER)
AS_OFTEN = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def picture(path: Path, left: tuple[int, ...] | None = None, right: tuple[int, ...] = BLUE) -> None:
    """20 x 10: noise of its own, or the left and the right half of one colour each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if left is None:
        image = Image.frombytes("RGB", (20, 10), Random(str(path)).randbytes(600))
    else:
        image = Image.new("RGB", (20, 10), left)
        image.paste(right, (10, 0, 20, 10))
    image.save(path, "PNG")  # whatever it is called: what counts is inside


def write_tiered(root: Path) -> None:
    for split, names in {"train": ("n1", "n2", "n3"), "val": ("n4",), "test": ("n5", "n6")}.items():
        for name in names:
            for i in range(2):
                picture(root / "tiered-imagenet" / split / name / f"{i}.jpg")


BIRDS = [f"{n:03}.Bird_{n}" for n in range(1, 9)]


def write_cub(root: Path) -> None:
    folder, listed, box = root / "CUB_200_2011", [], []
    for bird in BIRDS:
        for i in range(2):
            picture(folder / "images" / bird / f"{bird}_{i}.jpg", RED)
            listed.append(f"{len(listed) + 1} {bird}/{bird}_{i}.jpg")
            box.append(f"{len(listed)} 10.0 0.0 10.0 5.0")
    (folder / "images.txt").write_text("\n".join([*listed, ""]))
    (folder / "bounding_boxes.txt").write_text("\n".join([*box, ""]))


VARIANTS = ["707-320", "Cessna 172", "DR-400", "F/A-18", "Metroliner"]


def write_aircraft(root: Path) -> None:
    data, box = root / "fgvc-aircraft-2013b/data", []
    for part, first in (("trainval", 0), ("test", 100)):
        rows = [f"{first + c:07} {variant}" for c, variant in enumerate(VARIANTS)]
        for row in rows:
            image = row.split()[0]
            picture(data / "images" / f"{image}.jpg", RED)
            box.append(f"{image} 11 1 20 10")
        (data / f"images_variant_{part}.txt").write_text("\n".join([*rows, ""]))
    (data / "images_box.txt").write_text("\n".join([*box, ""]))


def write_dtd(root: Path) -> None:
    for name in ("banded", "dotted", "knitted", "woven"):
        for i in range(2):
            picture(root / "dtd/images" / name / f"{name}_{i}.jpg")


def write_gtsrb(root: Path) -> None:
    """3 tracks of 3 frames for each sign."""
    for sign in ("00000", "00001", "00002"):
        folder = root / "GTSRB/Final_Training/Images" / sign
        rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
        for track in range(3):
            for frame in range(3):
                picture(folder / f"{track:05}_{frame:05}.ppm", RED)
                rows.append(f"{track:05}_{frame:05}.ppm;20;10;10;0;19;9;{int(sign)}")
        (folder / f"GT-{sign}.csv").write_text("\r\n".join([*rows, ""]))


FLOWERS = [3, 1, 2, 2, 3, 1, 1, 4]


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(numbers: Sequence[int]) -> bytes:
    """A MATLAB file of one row of bytes, put together by hand; `name` is a small element."""
    parts = [
        element(6, struct.pack("<II", 9, 0)),
        element(5, struct.pack("<ii", 1, len(numbers))),
        struct.pack("<HH4s", 1, 4, b"labe"),
        element(2, bytes(numbers)),
    ]
    return bytes(128) + element(14, b"".join(parts))


def write_flowers(root: Path) -> None:
    for i in range(len(FLOWERS)):
        picture(root / "vgg_flowers/jpg" / f"image_{i + 1:05}.jpg")
    (root / "vgg_flowers/imagelabels.mat").write_bytes(matrix(FLOWERS))


SMALL: dict[str, tuple[Any, Any, int, str]] = {
    "tiered_imagenet": (TieredImageNet(), write_tiered, 6, "tiered-imagenet/train"),
    "cub": (Cub(), write_cub, 8, "CUB_200_2011/images"),
    "aircraft": (Aircraft(), write_aircraft, 5, "fgvc-aircraft-2013b/data/images"),
    "dtd": (Dtd(), write_dtd, 4, "dtd/images"),
    "gtsrb": (Gtsrb(), write_gtsrb, 3, "GTSRB/Final_Training/Images"),
    "vgg_flowers": (VggFlowers(), write_flowers, 4, "vgg_flowers/jpg"),
}
"""The dataset, what writes a small copy, how many classes that has, and a folder that it cannot do without"""


def boxes_of(classes: Classes) -> set[Any]:
    return {ref.box for refs in classes.values() for ref in refs}


def is_blue(bank: ClassBank) -> bool:
    """In the middle: the left half of an uncut picture is red."""
    return bool((bank.items[:, :, 42, 20:64] == torch.tensor(BLUE, dtype=torch.uint8)[:, None]).all())


def load(dataset: Benchmark, root: Path, split: str = "train") -> ClassBank:
    return dataset.load(split, Place(root, offline=True))


# What they share


@pytest.mark.parametrize(("dataset", "write", "classes", "_needed"), SMALL.values(), ids=SMALL)
def test_every_class_is_in_one_split_with_all_its_images(
    tmp_path: Path, dataset: Benchmark, write: Any, classes: int, _needed: str
) -> None:
    write(tmp_path)
    banks = [load(dataset, tmp_path, split) for split in SPLITS]
    assert all(len(bank) for bank in banks)
    names = [name for bank in banks for name in bank.names]
    assert len(names) == len(set(names)) == classes
    files = [f for f in tmp_path.rglob("*") if f.suffix in (".jpg", ".ppm")]
    assert sum(len(bank.items) for bank in banks) == len(files)
    for bank, split in zip(banks, SPLITS):
        assert (bank.item_shape, bank.items.dtype) == ((3, 84, 84), torch.uint8)
        assert list(bank.names) == sorted(bank.names)
        assert torch.equal(load(dataset, tmp_path, split).items, bank.items)


@pytest.mark.parametrize(("dataset", "write", "_classes", "needed"), SMALL.values(), ids=SMALL)
def test_what_is_missing_says_what_to_put_where(
    tmp_path: Path, dataset: Benchmark, write: Any, _classes: int, needed: str
) -> None:
    said = r"{} is not there\. Put .* there,.* or set METARUN_DATA or data_root"
    with pytest.raises(InputError, match=said.format(dataset.places[0])):
        load(dataset, tmp_path)
    write(tmp_path)
    (tmp_path / needed).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"\. Put .* there,.* or set METARUN_DATA|lacks"):
        load(dataset, tmp_path)


@pytest.mark.filterwarnings("default")
def test_fewer_classes_are_a_warning(tmp_path: Path) -> None:
    write_dtd(tmp_path)
    with pytest.warns(UserWarning, match="dtd has 2 classes in train; published numbers are for 33"):
        load(Dtd(), tmp_path)


def test_the_seed_decides_which_classes_are_in_which_split(tmp_path: Path) -> None:
    write_dtd(tmp_path)
    tests = {load(Dtd(split_seed=seed), tmp_path, "test").names for seed in range(8)}
    assert len(tests) > 1
    assert load(Dtd(split_seed=3), tmp_path, "test").names == load(Dtd(split_seed=3), tmp_path, "test").names


@pytest.mark.parametrize(
    ("dataset", "counts"), [(Dtd(), (33, 7, 7)), (Aircraft(), (70, 15, 15)), (Gtsrb(), (27, 8, 8))]
)
def test_a_whole_copy_is_split_as_published(dataset: Any, counts: tuple[int, int, int], monkeypatch: Any) -> None:
    every = {f"{c:03}": [] for c in range(sum(counts))}
    monkeypatch.setattr(type(dataset), "every", lambda self, folder: every)
    assert tuple(len(dataset.classes(Path("x"), split)) for split in SPLITS) == counts


def packed_dtd(tmp_path: Path) -> Path:
    write_dtd(tmp_path / "whole")
    with tarfile.open(tmp_path / "dtd-r1.0.1.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "whole/dtd", "dtd")
    return tmp_path / "dtd-r1.0.1.tar.gz"


def test_the_archive_will_do_in_the_folders_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed_dtd(tmp_path)
    with pytest.raises(InputError, match=r"is not the published file: its md5 is \w{32}, not fff73e5086ae6bd"):
        load(Dtd(), tmp_path)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(Dtd, "archive", Published(path.name, ("http://nowhere",), md5))
    for split in SPLITS:
        one, other = load(Dtd(), tmp_path, split), load(Dtd(), tmp_path / "whole", split)
        assert one.names == other.names
        assert torch.equal(one.items, other.items)
    assert (tmp_path / "dtd-r1-unpacked/dtd/images").is_dir()
    path.unlink()
    assert len(load(Dtd(), tmp_path)), "what is unpacked needs its archive no more"


@pytest.mark.parametrize(
    ("dataset", "write", "inside"),
    [(Dtd(), write_dtd, "."), (VggFlowers(), write_flowers, "vgg_flowers")],
    ids=["a folder in an archive", "files beside a list"],
)
def test_what_is_not_there_is_downloaded_unless_that_is_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: Benchmark, write: Any, inside: str
) -> None:
    assert dataset.archive
    published, root, asked = tmp_path / "published", tmp_path / "data", []
    write(published)
    with tarfile.open(published / inside / dataset.archive.name, "w:gz") as archive:
        for name in ("dtd", "jpg"):
            if (published / inside / name).is_dir():
                archive.add(published / inside / name, name)

    def fetch(name: str, urls: tuple[str, ...], checksum: str, into: Path, place: Place) -> Path:
        if not (into / name).exists():
            asked.append((name, urls, checksum))
            into.mkdir(exist_ok=True)
            shutil.copy(published / inside / name, into / name)
        return into / name

    monkeypatch.setattr(benchmark, "fetch", fetch)
    with pytest.raises(InputError, match=r"is not there\. Put .* there, or .*gz into .*\(from https://www\.robots"):
        dataset.load("train", Place(root, offline=True))
    assert not asked
    for split in SPLITS:
        one, other = dataset.load(split, Place(root)), load(dataset, published, split)
        assert one.names == other.names and torch.equal(one.items, other.items)
    assert asked == [dataset.archive, *dataset.beside]


def test_size_and_fit(tmp_path: Path) -> None:
    write_cub(tmp_path)
    bank = load(Cub(image_size=10, fit="crop"), tmp_path, "val")
    assert bank.item_shape == (3, 10, 10)
    assert bank.items[0, :, 5, 0].tolist() == list(RED)
    assert bank.items[0, :, 5, 9].tolist() == list(BLUE)


def test_two_classes_cannot_be_split(tmp_path: Path) -> None:
    picture(tmp_path / "dtd/images/banded/1.jpg")
    with pytest.raises(InputError, match=r"dtd: 1 classes cannot be split .* put images/ with its 47 folders there"):
        load(Dtd(), tmp_path)


# Each its own


def test_tiered_splits_are_as_the_folders_have_them(tmp_path: Path) -> None:
    write_tiered(tmp_path)
    assert load(TieredImageNet(), tmp_path, "test").names == ("n5", "n6")
    picture(tmp_path / "tiered-imagenet/val/n1/0.jpg")
    with pytest.raises(InputError, match="class 'n1' is in both train and val"):
        load(TieredImageNet(), tmp_path, "test")


def test_cub_is_split_by_number(tmp_path: Path) -> None:
    write_cub(tmp_path)
    numbers = {split: [int(name[:3]) for name in load(Cub(), tmp_path, split).names] for split in SPLITS}
    assert numbers == {"train": [1, 3, 5, 7], "val": [2, 6], "test": [4, 8]}
    picture(tmp_path / "CUB_200_2011/images/Albatross/1.jpg")
    with pytest.raises(InputError, match=r"images/Albatross: CUB's folders are called 001\."):
        load(Cub(), tmp_path)


def test_cub_cut_to_the_bird(tmp_path: Path) -> None:
    write_cub(tmp_path)
    assert not is_blue(load(Cub(), tmp_path))
    assert is_blue(load(Cub(crop=True), tmp_path))
    assert boxes_of(Cub(crop=True).classes(tmp_path / "CUB_200_2011", "val")) == {(10, 0, 20, 5)}
    path = tmp_path / "CUB_200_2011/bounding_boxes.txt"
    path.write_text(path.read_text().split("\n", 1)[1])
    with pytest.raises(InputError, match=r"bounding_boxes\.txt has no box for 1"):
        load(Cub(crop=True), tmp_path)


def test_aircraft_boxes_count_from_1_and_include_their_last_pixel(tmp_path: Path) -> None:
    write_aircraft(tmp_path)
    assert is_blue(load(Aircraft(), tmp_path))
    assert not is_blue(load(Aircraft(crop=False), tmp_path))
    assert boxes_of(Aircraft().every(tmp_path / "fgvc-aircraft-2013b")) == {(10, 0, 20, 10)}
    names = {name for split in SPLITS for name in load(Aircraft(), tmp_path, split).names}
    assert names == set(VARIANTS)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("images_box.txt", "0000000 11 1 20\n", r"images_box\.txt, line 1: has 4 words, where 5 are wanted"),
        ("images_box.txt", "0000000 11 1 20 x\n", r"images_box\.txt, line 1: a box is 'x', where a finite number"),
        ("images_box.txt", "0000001 11 1 20 10\n", r"images_box\.txt has no box for 0000000.*dataset\.crop=false"),
        ("images_variant_test.txt", "0000100\n", r"images_variant_test\.txt, line 1: has 1 words"),
        ("images_variant_test.txt", b"\xff\xfe", r"images_variant_test\.txt is cut short or damaged"),
    ],
)
def test_damaged_lists_are_told_with_their_line(tmp_path: Path, file: str, text: str | bytes, said: str) -> None:
    write_aircraft(tmp_path)
    (tmp_path / "fgvc-aircraft-2013b/data" / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=said):
        load(Aircraft(), tmp_path)


def test_gtsrb_frames_of_one_track_are_never_support_and_query_at_once(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    bank = load(Gtsrb(), tmp_path)
    assert bank.groups is not None
    assert bank.groups.tolist() == [c * 3 + track for c in range(len(bank)) for track in range(3) for _ in range(3)]
    picture(tmp_path / "GTSRB/Final_Training/Images/00003/00000_00000.ppm")
    with pytest.raises(InputError, match=r"00003/GT-00003\.csv cannot be read"):
        load(Gtsrb(), tmp_path)


def test_gtsrb_cut_to_the_sign(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    assert not is_blue(load(Gtsrb(), tmp_path))
    assert is_blue(load(Gtsrb(crop=True), tmp_path))
    assert boxes_of(Gtsrb(crop=True).every(tmp_path / "GTSRB/Final_Training/Images")) == {(10, 0, 20, 10)}


def test_flowers_are_of_the_class_that_the_list_says(tmp_path: Path) -> None:
    write_flowers(tmp_path)
    every = VggFlowers().every(tmp_path / "vgg_flowers")
    assert {name: [int(ref.path[-9:-4]) for ref in refs] for name, refs in every.items()} == {
        "001": [2, 6, 7], "002": [3, 4], "003": [1, 5], "004": [8]
    }  # fmt: skip


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "int32", "float64", "uint16"])
def test_labels_as_another_program_writes_them(tmp_path: Path, compressed: bool, dtype: str) -> None:
    wanted = [1 + i % 102 for i in range(8189)]
    path = tmp_path / "imagelabels.mat"
    savemat(path, {"labels": np.array([wanted], dtype=dtype)}, do_compression=compressed)
    assert vgg_flowers.labels(path) == wanted
    savemat(path, {"l": np.array([[3, 2, 1]], dtype=dtype)})
    assert vgg_flowers.labels(path) == [3, 2, 1]


@pytest.mark.parametrize("content", [b"", b"MATLAB", bytes(400), matrix(FLOWERS)[:-20], matrix([])])
def test_what_is_no_list_of_labels_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.mat is not the list of labels as published"):
        vgg_flowers.labels(tmp_path / "x.mat")


# Strange files


@AS_OFTEN
@given(st.binary(max_size=60), st.integers(0, 240), st.integers(0, 60))
def test_no_list_of_labels_is_too_strange(tmp_path: Path, new: bytes, at: int, gone: int) -> None:
    whole = matrix(FLOWERS)
    path = tmp_path / "x.mat"
    path.write_bytes(whole[:at] + new + whole[at + gone :])
    try:
        assert all(0 <= label < 1000 for label in vgg_flowers.labels(path))
    except InputError as error:
        assert "x.mat" in str(error)


WORDS = st.one_of(st.binary(max_size=80), st.text("0123456789. -\r\nxe;_\u2028\x00", max_size=80).map(str.encode))


@AS_OFTEN
@given(WORDS)
def test_no_list_of_boxes_is_too_strange(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    for read in (lambda path: list(lines(path, 2)), boxes):
        try:
            read(tmp_path / "x.txt")
        except InputError as error:
            assert "x.txt" in str(error)


@AS_OFTEN
@given(st.lists(WORDS, min_size=1, max_size=3))
def test_no_table_of_signs_is_too_strange(tmp_path: Path, parts: list[bytes]) -> None:
    if not (tmp_path / "GTSRB").exists():
        write_gtsrb(tmp_path)
    path = tmp_path / "GTSRB/Final_Training/Images/00001/GT-00001.csv"
    head = b"Filename;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2\n00000_00000.ppm;1;1;5;5\n"
    path.write_bytes(head + b";".join(parts))
    before = {p for p in tmp_path.rglob("*") if "cache" not in p.parts}
    for split in SPLITS:
        try:
            load(Gtsrb(crop=True, image_size=8), tmp_path, split)
        except InputError as error:
            assert str(error)
    assert {p for p in tmp_path.rglob("*") if "cache" not in p.parts} == before


def test_classes_anywhere_below_a_folder(tmp_path: Path) -> None:
    for path in ("a/x/1.png", "b/c/x/2.png", "y/1.jpg", ".z/w/1.png", "a/notes.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    found = {name: [ref.path.removeprefix(f"{tmp_path}/") for ref in refs] for name, refs in below(tmp_path).items()}
    assert found == {"x": ["a/x/1.png", "b/c/x/2.png"], "y": ["y/1.jpg"]}
    assert all(one <= other for one, other in pairwise(found))
    with pytest.raises(InputError, match="cannot be read"):
        below(tmp_path / "nowhere")
