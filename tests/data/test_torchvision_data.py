"""torchvision's datasets by name, from small files in the formats that torchvision reads."""

from __future__ import annotations

import gzip
import inspect
import json
import os
import pickle
import struct
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import datasets

from metarun.data import torchvision as module
from metarun.data.bank import ClassBank
from metarun.data.torchvision import KNOWN, _labels
from metarun.types import REGISTRY, SPLITS, InputError, Place

EACH = {"train": 3, "t10k": 2}
"""images of each class in a part"""
AS_OFTEN = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def drawing(label: int, i: int) -> bytes:
    return Random(f"{label} {i}").randbytes(28 * 28)


def idx(part: str, labels: list[int]) -> tuple[bytes, bytes]:
    """Images and labels in MNIST's format (LeCun et al. 1998), every class in turn."""
    rows = [(label, i) for i in range(EACH[part]) for label in labels]
    images = struct.pack(">IIII", 0x803, len(rows), 28, 28) + b"".join(drawing(c, i) for c, i in rows)
    return images, struct.pack(">II", 0x801, len(rows)) + bytes(c for c, _ in rows)


def write_mnist(root: Path, name: str = "MNIST", labels: list[int] | None = None, prefix: str = "{}") -> Path:
    raw = root / name / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    for part in EACH:
        images, classes = idx(part, list(range(10)) if labels is None else labels)
        (raw / f"{prefix.format(part)}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{prefix.format(part)}-labels-idx1-ubyte").write_bytes(classes)
    return raw


def made(name: str = "MNIST", **changes: Any) -> Any:
    return REGISTRY["dataset"][name](**{"image_size": 28, "channels": 1} | changes)


def offline(root: Path) -> Place:
    return Place(root, offline=True)


# What is read


def test_all_parts_are_together_and_the_classes_split(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    banks = {split: made().load(split, offline(tmp_path)) for split in SPLITS}
    assert {split: len(bank) for split, bank in banks.items()} == {"train": 6, "val": 2, "test": 2}
    assert len({name for bank in banks.values() for name in bank.names}) == 10
    for bank in banks.values():
        assert bank.item_shape == (1, 28, 28)
        assert bank.sizes.tolist() == [5] * len(bank)
        for c, name in enumerate(bank.names):
            number = int(name[0])  # '7 - seven'
            own = [drawing(number, i) for part in EACH for i in range(EACH[part])]
            assert [item.numpy().tobytes() for item in bank.items[5 * c : 5 * c + 5]] == own
    assert made(split_seed=1).load("test", offline(tmp_path)).names != banks["test"].names


def test_size_and_colour(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    grey = made(image_size=14).load("val", offline(tmp_path)).items
    bank = REGISTRY["dataset"]["MNIST"](image_size=14).load("val", offline(tmp_path))
    assert bank.item_shape == (3, 14, 14)
    assert torch.equal(bank.items, grey.expand(-1, 3, -1, -1))


def test_lists_decide_where_they_are_given(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    names = datasets.MNIST.classes
    lists = {"train": names[:5], "val": names[5:7], "test": names[7:9]}
    (tmp_path / "lists.json").write_text(json.dumps(lists))
    for split in SPLITS:
        assert list(made(lists="lists.json").load(split, offline(tmp_path)).names) == lists[split]
    (tmp_path / "lists.json").write_text(json.dumps(lists | {"val": ["ten"]}))
    with pytest.raises(InputError, match=r"lists\.json: class 'ten' of val is not in the data"):
        made(lists="lists.json").load("train", offline(tmp_path))


def test_a_second_time_needs_no_torchvision_and_new_files_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_mnist(tmp_path)
    first = made().load("train", offline(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(module, "opened", lambda source: pytest.fail("opened again"))
        assert torch.equal(made().load("train", offline(tmp_path)).items, first.items)
    images = raw / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:16] + bytes(30 * 784))
    os.utime(images, ns=(1, 1))
    again = made().load("train", offline(tmp_path))
    assert not torch.equal(again.items, first.items)
    assert again.digest() != first.digest()


def test_classes_without_images_are_left_out(tmp_path: Path) -> None:
    """EMNIST's letters count from 1; its class 0 is 'N/A'."""
    write_mnist(tmp_path, "EMNIST", list(range(1, 27)), "emnist-letters-{}")
    raw = tmp_path / "EMNIST/raw"
    for file in raw.glob("*t10k*"):
        file.rename(raw / file.name.replace("t10k", "test"))
    banks = [made("EMNIST", args={"split": "letters"}).load(split, offline(tmp_path)) for split in SPLITS]
    assert sorted(name for bank in banks for name in bank.names) == list("abcdefghijklmnopqrstuvwxyz")


def write_folders(root: Path, broken: bool = False) -> None:
    for name in ("Forest", "River", "SeaLake"):
        for i in range(3):
            path = root / "eurosat/2750" / name / f"{name}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.frombytes("RGB", (8, 6), Random(f"{name} {i}").randbytes(144)).save(path)
            if broken and i == 1:
                path.write_bytes(path.read_bytes()[:50])


def test_folders_of_images(tmp_path: Path) -> None:
    write_folders(tmp_path)
    banks = [made("EuroSAT", channels=3).load(split, offline(tmp_path)) for split in SPLITS]
    assert sorted(name for bank in banks for name in bank.names) == ["Forest", "River", "SeaLake"]
    assert [bank.sizes.tolist() for bank in banks] == [[3]] * 3


def test_an_image_that_does_not_decode_is_told_or_left_out(tmp_path: Path) -> None:
    write_folders(tmp_path, broken=True)
    with pytest.raises(InputError, match=r"image \d of EuroSAT does not decode .*data\.skip_broken=true"):
        made("EuroSAT").load("train", offline(tmp_path))
    bank = made("EuroSAT").load("train", Place(tmp_path, offline=True, skip_broken=True))
    assert bank.sizes.tolist() == [2]


# What torchvision has


@pytest.mark.parametrize("name", KNOWN)
def test_torchvision_has_it_and_takes_what_it_is_given(name: str) -> None:
    taken = inspect.signature(getattr(datasets, name).__init__).parameters
    wanted = {"root", "download", *(key for part in KNOWN[name][0] for key in part)}
    assert any(p.kind is p.VAR_KEYWORD for p in taken.values()) or wanted <= taken.keys()
    assert REGISTRY["dataset"][name]().called == name


class Part:
    def __init__(self, **given: Any) -> None:
        vars(self).update(given)

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize(
    "given",
    [
        {"targets": torch.tensor([2, 0, 1])},
        {"targets": torch.tensor([[2, 9], [0, 9], [1, 9]])},
        {"labels": np.array([2, 0, 1], dtype=np.uint8)},
        {"_labels": [2, 0, 1]},
        {"y": [2, 0, 1]},
        {"_samples": [("a.png", 2), ("b.png", 0), ("c.png", 1)]},
    ],
)
def test_labels_however_they_are_called(given: dict[str, Any]) -> None:
    labels = _labels(Part(**given))
    assert (labels.tolist(), labels.dtype) == ([2, 0, 1], torch.int64)


def test_what_is_missing_is_fetched_where_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def download(self: Any) -> None:
        fetched.append(self.root)
        write_mnist(tmp_path)

    monkeypatch.setattr(datasets.MNIST, "download", download)
    for settings_, place in (({}, offline(tmp_path)), ({"download": False}, Place(tmp_path))):
        with pytest.raises(
            InputError, match=r"MNIST cannot be had .*copies of MNIST there by hand.*data\.offline=false"
        ):
            made(**settings_).load("train", place)
        assert not fetched
        assert not (tmp_path / "MNIST").exists()
    assert len(made().load("train", Place(tmp_path))) == 6
    assert fetched


def test_a_download_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: Any) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(datasets.MNIST, "download", download)
    with pytest.raises(InputError, match=r"cannot be had from .* \(OSError: no route to host\): put whole copies"):
        made().load("train", Place(tmp_path))


# Refused


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"args": {"train": True}}, "args: 'train' is not yours to give"),
        ({"args": {"root": "/"}}, "args: 'root' is not yours to give"),
        ({"channels": 2}, "channels=2"),
        ({"ratios": [1, 1, 1]}, "ratios"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(**changes)


def test_arguments_that_torchvision_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.args=\{\}: torchvision's EMNIST refuses them \(.*'split'"):
        made("EMNIST").load("train", offline(tmp_path))
    with pytest.raises(InputError, match=r"EMNIST cannot be had .*Unknown value 'leters' .* its arguments are"):
        made("EMNIST", args={"split": "leters"}).load("train", offline(tmp_path))


class Trap:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_what_is_not_as_published_is_never_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError, match="CIFAR10 cannot be had"):
        made("CIFAR10").load("train", offline(tmp_path))
    assert not (tmp_path / "sprung").exists()


FILES = [f"{part}-{kind}-ubyte" for part in EACH for kind in ("images-idx3", "labels-idx1")]


@AS_OFTEN
@given(st.sampled_from(FILES), st.integers(0, 40), st.binary(max_size=30), st.integers(0, 30))
def test_no_file_is_too_strange(tmp_path: Path, name: str, at: int, new: bytes, gone: int) -> None:
    raw = write_mnist(tmp_path)
    whole = (raw / name).read_bytes()
    (raw / name).write_bytes(whole[:at] + new + (whole[at + gone :] if gone else b""))
    before = {p for p in tmp_path.rglob("*") if "cache" not in p.relative_to(tmp_path).parts[:1]}
    try:
        assert isinstance(made().load("val", offline(tmp_path)), ClassBank)
    except InputError as error:
        assert len(str(error).splitlines()) == 1
    assert {p for p in tmp_path.rglob("*") if "cache" not in p.relative_to(tmp_path).parts[:1]} == before


def test_a_packed_file_beside_the_raw_ones_changes_nothing(tmp_path: Path) -> None:
    """torchvision keeps what it has fetched."""
    raw = write_mnist(tmp_path)
    for file in list(raw.iterdir()):
        (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), 1))
    assert len(made().load("train", offline(tmp_path))) == 6
