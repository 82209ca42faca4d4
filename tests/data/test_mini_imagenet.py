"""mini-ImageNet on small made-up copies, in every layout."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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


def pixels(split: str, side: int = 84) -> np.ndarray:
    """(n, side, side, 3) class by class"""
    every = [picture(f"{label} {i}", (side, side)) for label in CLASSES[split] for i in range(IMAGES)]
    return np.stack([np.asarray(image) for image in every])


def numbered(split: str) -> list[int]:
    """Labels count on from split to split, as in the published files."""
    first = {"train": 0, "val": 3, "test": 4}[split]
    return [first + c for c in range(len(CLASSES[split])) for _ in range(IMAGES)]


def by_class(split: str, side: int = 84) -> dict[str, Any]:
    rows = {label: list(range(c * IMAGES, (c + 1) * IMAGES)) for c, label in enumerate(CLASSES[split])}
    return {"image_data": pixels(split, side), "class_dict": dict(reversed(rows.items()))}


def by_label(split: str) -> dict[str, Any]:
    labels = numbered(split)
    return {
        "data": pixels(split),
        "labels": labels,
        "catname2label": dict(zip(CLASSES[split], sorted(set(labels)))),
        "label2catname": {},
    }


def bare(split: str) -> dict[str, Any]:
    return {"images": pixels(split).transpose(0, 3, 1, 2), "labels": np.array(numbered(split))}


CACHES = {
    "mini-imagenet-cache-{}.pkl": by_class,
    "miniImageNet_category_split_{}.pickle": by_label,
    "{}.npz": bare,
    "{}.pkl": bare,
}


def write_caches(data_root: Path, pattern: str = "mini-imagenet-cache-{}.pkl") -> Path:
    folder = data_root / "mini-imagenet"
    folder.mkdir(parents=True)
    for split in SPLITS:
        write_cache(folder, pattern, split, CACHES[pattern](split))
    return folder


def write_cache(folder: Path, pattern: str, split: str, content: dict[str, Any]) -> None:
    name = pattern.format("train_phase_train" if "category" in pattern and split == "train" else split)
    if name.endswith("npz"):
        np.savez(folder / name, **content)
    else:
        (folder / name).write_bytes(pickle.dumps(content, 2))


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


# Caches that people pass around


@pytest.mark.parametrize("pattern", CACHES)
def test_caches_give_the_banks_of_their_images(tmp_path: Path, pattern: str) -> None:
    write_folders(tmp_path / "folders")
    write_caches(tmp_path / "caches", pattern)
    for split in SPLITS:
        wanted, bank = load(tmp_path / "folders", split), load(tmp_path / "caches", split)
        if CACHES[pattern] is bare:
            assert bank.names == tuple(f"{split}{number:03d}" for number in sorted(set(numbered(split))))
        else:
            assert bank.names == wanted.names
        assert torch.equal(bank.items, wanted.items)
        assert torch.equal(bank.offsets, wanted.offsets)


def test_a_cache_of_another_size_is_shrunk_like_files_are(tmp_path: Path) -> None:
    folder = write_caches(tmp_path / "caches")
    write_cache(folder, "mini-imagenet-cache-{}.pkl", "test", by_class("test", 100))
    bank = load(tmp_path / "caches", "test")
    large = picture("n06 2", (100, 100)).resize((84, 84), Image.Resampling.LANCZOS)
    assert torch.equal(bank.items[-1], torch.from_numpy(np.array(large)).permute(2, 0, 1))
    assert MiniImageNet(image_size=28).load("test", Place(tmp_path / "caches")).item_shape == (3, 28, 28)


def test_a_cache_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_caches(tmp_path)
    first = load(tmp_path)
    monkeypatch.setattr(mini_imagenet, "read_pickle", lambda path: pytest.fail(f"{path} is read again"))
    assert equal(first, load(tmp_path))


def test_a_part_of_a_cache_is_a_warning(tmp_path: Path) -> None:
    folder = write_caches(tmp_path)
    content = by_class("train")
    content["class_dict"]["n02"].pop()
    write_cache(folder, "mini-imagenet-cache-{}.pkl", "train", content)
    with pytest.warns(UserWarning, match="has 2 images of 'n02' in train"):
        assert load(tmp_path).sizes.tolist() == [3, 2, 3]


# The cache of our own


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


def test_a_cache_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = write_caches(tmp_path)
    (folder / "mini-imagenet-cache-val.pkl").unlink()
    assert f"{folder} lacks a cache of val. " in refusal(tmp_path)


class Trap:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


WRONG = {
    "holds no images: it has none of image_data, data, images": {"class_dict": {}},
    "its images must be a uint8 array": {"image_data": [1, 2], "class_dict": {"a": [0]}},
    "its images must be a uint8 array of": {"image_data": np.zeros((2, 4, 4, 3)), "class_dict": {"a": [0]}},
    "its images are of shape": {"image_data": np.zeros((2, 4, 4, 1), np.uint8), "class_dict": {"a": [0]}},
    "names no classes: it lacks class_dict": {"image_data": pixels("val")},
    "has a class without images": {"image_data": pixels("val"), "class_dict": {"a": [0], "b": []}},
    "name image 3 1 times, and there are 3": {"image_data": pixels("val"), "class_dict": {"a": [0, 3]}},
    "name image -1 1 times": {"image_data": pixels("val"), "class_dict": {"a": [0, -1]}},
    "name image 1 2 times, and only once": {"image_data": pixels("val"), "class_dict": {"a": [0, 1], "b": [1]}},
    "class_dict must hold lists of whole numbers": {"image_data": pixels("val"), "class_dict": {"a": ["x"]}},
    "labels must hold lists of whole": {"image_data": pixels("val"), "labels": [[0], [0, 1], []]},
    "has 2 labels for 3 images": {"image_data": pixels("val"), "labels": [0, 1]},
    "is no cache of images": ["a list"],
    "it would run": {"image_data": Trap(Path("sprung"))},
}


@pytest.mark.parametrize("why", WRONG)
def test_a_cache_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_caches(tmp_path)
    path = folder / "mini-imagenet-cache-train.pkl"
    path.write_bytes(pickle.dumps(WRONG[why], 2))
    message = refusal(tmp_path)
    assert str(path) in message
    assert why in message
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("pattern", CACHES)
def test_a_cache_cut_short_is_named(tmp_path: Path, pattern: str) -> None:
    path = next(p for p in write_caches(tmp_path, pattern).iterdir() if "train" in p.name)
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{path} is no whole " in refusal(tmp_path)


def test_a_class_in_two_caches_is_refused(tmp_path: Path) -> None:
    folder = write_caches(tmp_path)
    write_cache(folder, "mini-imagenet-cache-{}.pkl", "test", by_class("val"))
    with pytest.raises(InputError, match="class 'n03' is in both val and test"):
        load(tmp_path)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.just(np.zeros((2, 2, 2, 3), np.uint8)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["image_data", "class_dict", "labels", "catname2label"]), VALUES))
@settings(max_examples=60, deadline=None)
def test_any_cache_is_a_bank_or_refused(content: dict[str, Any]) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(action="ignore"),
    ):
        patch.setenv("METARUN_CACHE", f"{folder}/cache")
        (Path(folder) / "mini-imagenet").mkdir()
        for split in SPLITS:
            whole = {"images": np.zeros((1, 2, 2, 3), np.uint8), "labels": [0]}
            write_cache(Path(folder) / "mini-imagenet", "{}.pkl", split, content if split == "train" else whole)
        try:
            bank = MiniImageNet(image_size=2).load("train", Place(Path(folder)))
        except InputError as error:
            assert "train" in str(error)
        else:
            assert len(bank.items) == int(bank.offsets[-1]) > 0
        assert {path.name for path in Path(folder).iterdir()} <= {"cache", "mini-imagenet"}
