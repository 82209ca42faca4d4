"""mini-ImageNet on small made-up copies, in both layouts."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

from metarun.data import mini_imagenet
from metarun.data.bank import ClassBank
from metarun.data.mini_imagenet import MiniImageNet
from metarun.types import SPLITS, InputError, Place

CLASSES = {"train": ["n01", "n02", "n05"], "val": ["n03"], "test": ["n04", "n06"]}
IMAGES = 3


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and mini-ImageNet is as small as CLASSES."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mini_imagenet, "CLASSES", {split: len(names) for split, names in CLASSES.items()})
    monkeypatch.setattr(mini_imagenet, "IMAGES", IMAGES)


def picture(seed: str, size: tuple[int, int] = (84, 84), mode: str = "RGB") -> Image.Image:
    small = Image.frombytes("RGB", (5, 4), Random(seed).randbytes(60))
    return small.resize(size).convert(mode)


def write_folders(data_root: Path, name: str = "mini-imagenet") -> Path:
    for split, classes in CLASSES.items():
        for label in classes:
            (data_root / name / split / label).mkdir(parents=True)
            for i in range(IMAGES):
                picture(f"{label} {i}").save(data_root / name / split / label / f"{label}_{i}.png")
    return data_root / name


def write_csv(data_root: Path) -> Path:
    folder = data_root / "mini-imagenet"
    (folder / "images").mkdir(parents=True)
    for split, classes in CLASSES.items():
        rows = [f"{label}_{i}.png,{label}" for label in classes for i in range(IMAGES)]
        (folder / f"{split}.csv").write_text("\n".join(["filename,label", *reversed(rows), ""]))
        for row in rows:
            file, label = row.split(",")
            picture(f"{label} {file.removesuffix('.png')[-1]}").save(folder / "images" / file)
    return folder


def load(data_root: Path, split: str = "train") -> ClassBank:
    return MiniImageNet().load(split, Place(data_root))


def equal(one: ClassBank, other: ClassBank) -> bool:
    return one.names == other.names and torch.equal(one.items, other.items) and torch.equal(one.offsets, other.offsets)


def packed(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").glob("*.bin"))


# What is in a bank


def test_both_layouts_give_equal_banks(tmp_path: Path) -> None:
    write_folders(tmp_path / "folders")
    write_csv(tmp_path / "csv")
    for split in SPLITS:
        bank = load(tmp_path / "folders", split)
        assert equal(bank, load(tmp_path / "csv", split))
        assert bank.names == tuple(CLASSES[split])
        assert bank.sizes.tolist() == [IMAGES] * len(CLASSES[split])
        assert (bank.item_shape, bank.items.dtype) == ((3, 84, 84), torch.uint8)


def test_an_item_is_its_image_channel_by_channel(tmp_path: Path) -> None:
    write_folders(tmp_path)
    bank = load(tmp_path)
    image = picture("n02 1")
    for x, y in ((0, 0), (83, 0), (10, 70)):
        assert tuple(bank.items[IMAGES + 1][:, y, x].tolist()) == image.getpixel((x, y))


def test_any_size_and_format_is_shrunk_to_rgb(tmp_path: Path) -> None:
    folder = write_folders(tmp_path)
    place = folder / "train" / "n01"
    for file in place.iterdir():
        file.unlink()
    large, grey = picture("large", (120, 90)), picture("grey", (84, 84), "L")
    large.save(place / "0.bmp")
    grey.save(place / "1.PNG")
    picture("lossy").save(place / "2.JPEG")
    (place / "notes.txt").write_text("no image")
    (place / ".hidden.png").write_text("no image")
    bank = load(tmp_path)
    assert bank.sizes.tolist() == [3, IMAGES, IMAGES]
    shrunk = large.resize((84, 84), Image.Resampling.LANCZOS)
    assert tuple(bank.items[0][:, 33, 21].tolist()) == shrunk.getpixel((21, 33))
    assert bank.items[1][:, 5, 6].tolist() == [grey.getpixel((6, 5))] * 3


def test_images_of_another_size_are_packed_for_themselves(tmp_path: Path) -> None:
    folder = write_folders(tmp_path)
    large = picture("large", (224, 224))
    large.save(folder / "test/n04/n04_0.png")
    small, bank = load(tmp_path, "test"), MiniImageNet(image_size=224).load("test", Place(tmp_path))
    assert (small.item_shape, bank.item_shape) == ((3, 84, 84), (3, 224, 224))
    assert tuple(bank.items[0][:, 200, 7].tolist()) == large.getpixel((7, 200))
    assert len(packed(tmp_path)) == 2


def test_classes_may_differ_in_size(tmp_path: Path) -> None:
    folder = write_folders(tmp_path)
    (folder / "train/n02/n02_0.png").unlink()
    with pytest.warns(UserWarning, match=r"has 2 images of 'n02' in train; published numbers are for 3 / 1 / 2"):
        bank = load(tmp_path)
    assert bank.sizes.tolist() == [3, 2, 3]
    assert equal(bank, bank.to("cpu"))


def test_more_or_fewer_classes_are_a_warning(tmp_path: Path) -> None:
    folder = write_folders(tmp_path)
    shutil.rmtree(folder / "test/n06")
    with pytest.warns(UserWarning, match="has 1 classes in test"):
        assert load(tmp_path, "test").names == ("n04",)
    with warnings.catch_warnings(action="error"):
        load(tmp_path, "train")


def test_the_other_name_of_the_folder(tmp_path: Path) -> None:
    write_folders(tmp_path, "mini_imagenet")
    assert load(tmp_path).names == tuple(CLASSES["train"])
    (tmp_path / "mini-imagenet").mkdir()
    assert load(tmp_path).names == tuple(CLASSES["train"]), "an empty one is passed over"


def test_csv_with_a_folder_for_each_class(tmp_path: Path) -> None:
    folder = write_csv(tmp_path / "nested")
    for file in list((folder / "images").iterdir()):
        place = folder / "images" / file.name.partition("_")[0]
        place.mkdir(exist_ok=True)
        file.rename(place / file.name)
    write_csv(tmp_path / "flat")
    assert equal(load(tmp_path / "nested"), load(tmp_path / "flat"))


# The cache


def test_packed_once_and_again_when_an_image_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folders(tmp_path)
    before = load(tmp_path)
    assert equal(before, load(tmp_path))
    assert capsys.readouterr().err == "preparing mini_imagenet-train: 9 items, once\n"
    picture("another").save(folder / "train/n01/n01_0.png")
    after = load(tmp_path)
    assert not torch.equal(before.items[0], after.items[0])
    assert torch.equal(before.items[1:], after.items[1:])
    assert len(packed(tmp_path)) == 2


def test_a_renamed_class_is_another_bank(tmp_path: Path) -> None:
    folder = write_folders(tmp_path)
    load(tmp_path)
    (folder / "train/n01").rename(folder / "train/n09")
    assert load(tmp_path).names == ("n02", "n05", "n09")


def test_every_image_is_packed_where_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when they do not divide evenly among the threads."""
    write_folders(tmp_path)
    whole = load(tmp_path)
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr("metarun.data.packed.CHUNK", 2 * 3 * 84 * 84)
    assert equal(whole, load(tmp_path))


# Bad input: one message, and no cache is left


def refusal(tmp_path: Path, split: str = "train") -> str:
    with pytest.raises(InputError) as caught:
        load(tmp_path, split)
    assert not [*(tmp_path / "cache").glob("*")]
    return str(caught.value)


def test_nothing_there_says_what_to_put_where(tmp_path: Path) -> None:
    message = refusal(tmp_path)
    parts = ("mini-imagenet is not there", "train/, val/ and test/", "images/", "train.csv", "METARUN_DATA", "glyphs")
    assert all(part in message for part in parts)
    assert str(tmp_path) in message


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_csv(tmp_path / "csv")
    (folder / "val.csv").unlink()
    assert f"{folder} lacks val.csv. " in refusal(tmp_path / "csv")
    folder = write_folders(tmp_path / "folders")
    shutil.rmtree(folder / "test")
    assert f"{folder} lacks test. " in refusal(tmp_path / "folders", "train")


@pytest.mark.parametrize("broken", [b"", b"no image", "cut short"])
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, broken: Any) -> None:
    path = write_folders(tmp_path) / "train/n05/n05_1.png"
    path.write_bytes(path.read_bytes()[:200] if broken == "cut short" else broken)
    assert f"{path} does not decode" in refusal(tmp_path)


@pytest.mark.parametrize("split", SPLITS)
def test_a_class_in_two_splits_is_refused(tmp_path: Path, split: str) -> None:
    """Whichever split is asked for."""
    folder = write_folders(tmp_path)
    shutil.copytree(folder / "train/n02", folder / "test/n02")
    assert "class 'n02' is in both train and test" in refusal(tmp_path, split)


def test_an_image_listed_twice_is_refused(tmp_path: Path) -> None:
    """Within a split it could be asked about in the task that shows it, in two it would be training on the test."""
    folder = write_csv(tmp_path)
    with (folder / "test.csv").open("a") as file:
        file.write("n01_0.png,n04\n")
    assert "n01_0.png is named 2 times" in refusal(tmp_path)


def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path) / "images" / "n05_2.png"
    path.unlink()
    assert f"{path} is not there" in refusal(tmp_path)


TABLES = {
    "file,class\na.png,n01\n": " has no column 'filename'; did you mean file?",
    "filename,label\nn01_0.png\n": ", line 2: 1 cells, where the header has 2",
    "filename,label\n": " names no images",
    "": " has no column 'filename'; it is empty",
    "filename,label\n,n01\n": " has lines without an image or a class",
}


@pytest.mark.parametrize("text", TABLES)
def test_a_csv_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    path = write_csv(tmp_path) / "train.csv"
    path.write_text(text)
    assert f"{path}{TABLES[text]}" in refusal(tmp_path)


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    folder = write_folders(tmp_path)
    (folder / "train/n08").mkdir()
    assert f"{folder / 'train/n08'} holds no images" in refusal(tmp_path)
    shutil.rmtree(folder / "val/n03")
    assert f"{folder / 'val'} holds no folders" in refusal(tmp_path)
