"""Crops of objects, from a small COCO of coloured rectangles."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from metarun.data.bank import ClassBank
from metarun.data.coco import Coco
from metarun.data.splits import by_chance
from metarun.types import SPLITS, InputError, Place

COLOURS = {"cat": (250, 0, 0), "dog": (0, 250, 0), "car": (0, 0, 250), "hair drier": (250, 250, 0)}
IDS = {name: 10 + 7 * i for i, name in enumerate(COLOURS)}  # COCO's have gaps as well
GREY = (100, 100, 100)
SIZE = (200, 100)
SMALL = {"min_size": 10.0, "min_crops": 2, "image_size": 8, "margin": 0.0}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


def annotation(number: int, image: int, name: str, box: list[float], crowd: int = 0) -> dict[str, Any]:
    outline = [[box[0], box[1], box[0] + 1, box[1] + 1]]
    return {
        "id": number, "image_id": image, "category_id": IDS[name], "bbox": box, "iscrowd": crowd, "area": 1.0,
        "segmentation": outline,
    }  # fmt: skip


def instances() -> dict[str, Any]:
    """Three images, with one object of every class in each; an object of class c is at x = 50 c."""
    return {
        "info": {},
        "images": [{"id": i, "file_name": f"{i:012d}.png", "width": SIZE[0], "height": SIZE[1]} for i in (1, 2, 3)],
        "categories": [{"id": IDS[name], "name": name, "supercategory": "thing"} for name in COLOURS],
        "annotations": [
            annotation(100 * i + c, i, name, [50 * c + 10, 20 + i, 30, 40])
            for i in (1, 2, 3)
            for c, name in enumerate(COLOURS)
        ],
    }


def write(data_root: Path, content: Any = None) -> Path:
    """The json file; in the images, every object is of the colour of its class."""
    content = instances() if content is None else content
    (data_root / "coco/train2017").mkdir(parents=True, exist_ok=True)
    (data_root / "coco/annotations").mkdir(exist_ok=True)
    for known in instances()["images"]:
        image = Image.new("RGB", SIZE, GREY)
        for c, colour in enumerate(COLOURS.values()):
            image.paste(colour, (50 * c + 10, 20 + known["id"], 50 * c + 40, 60 + known["id"]))
        image.save(data_root / "coco/train2017" / known["file_name"])
    path = data_root / "coco/annotations/instances_train2017.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def load(data_root: Path, split: str = "train", **changed: Any) -> ClassBank:
    return Coco(**SMALL | changed).load(split, Place(data_root))


def of(bank: ClassBank, name: str) -> torch.Tensor:
    c = bank.names.index(name)
    return bank.items[bank.offsets[c] : bank.offsets[c + 1]]


# What is cut out


def test_every_class_has_its_objects(tmp_path: Path) -> None:
    write(tmp_path)
    banks = {split: load(tmp_path, split) for split in SPLITS}
    assert {split: list(bank.names) for split, bank in banks.items()} == by_chance(COLOURS, 0)
    for bank in banks.values():
        assert bank.item_shape == (3, 8, 8)
        assert bank.sizes.tolist() == [3] * len(bank)
        for name in bank.names:
            colour = torch.tensor(COLOURS[name]).view(1, 3, 1, 1)
            assert (of(bank, name) - colour).abs().max() < 30  # the filter may see a little of what is around


def test_a_margin_shows_what_is_around(tmp_path: Path) -> None:
    write(tmp_path)
    bank = load(tmp_path, margin=0.5, image_size=80)
    name = bank.names[0]
    crop = of(bank, name)[0]
    assert crop[:, 0, 0].tolist() == list(GREY)
    assert crop[:, 40, 40].tolist() == list(COLOURS[name])
    inside = (crop == torch.tensor(COLOURS[name]).view(3, 1, 1)).all(0)
    assert inside.float().mean() == pytest.approx(0.25, abs=0.03)


def test_a_crop_ends_with_its_image(tmp_path: Path) -> None:
    content = instances()
    for entry in content["annotations"]:
        entry["bbox"] = [-20, 21, 1000, 1000] if entry["category_id"] == IDS["cat"] else entry["bbox"]
    write(tmp_path, content)
    split = next(s for s, names in by_chance(COLOURS, 0).items() if "cat" in names)
    crop = of(load(tmp_path, split, margin=1.0, image_size=200), "cat")[0]
    image = Image.open(tmp_path / "coco/train2017/000000000001.png")
    whole = image.resize((200, 200), Image.Resampling.LANCZOS)
    assert tuple(crop[:, 100, 30].tolist()) == whole.getpixel((30, 100))
    assert tuple(crop[:, 5, 199].tolist()) == whole.getpixel((199, 5))


def test_crowds_and_doubles_and_the_small_are_left_out(tmp_path: Path) -> None:
    content = instances()
    content["annotations"] += [
        annotation(900, 1, "dog", [0, 0, 90, 90], crowd=1),
        annotation(901, 1, "dog", [60, 21, 30, 40]),  # as annotation 101
        annotation(902, 1, "cat", [60, 21, 30, 40]),  # whatever it is called
        annotation(903, 1, "dog", [0, 0, 9.5, 50]),
        annotation(904, 1, "dog", [195, 0, 50, 50]),  # 5 pixels of it are in the image
        annotation(905, 1, "dog", [0, 0, 20, 0]),  # COCO has two such
        annotation(906, 1, "dog", [300, 0, 50, 50]),
        annotation(907, 2, "dog", [0, 0, 10, 10]),
    ]
    write(tmp_path, content)
    sizes = {n: s for split in SPLITS for b in [load(tmp_path, split)] for n, s in zip(b.names, b.sizes.tolist())}
    assert sizes == {"cat": 3, "dog": 4, "car": 3, "hair drier": 3}


def test_classes_with_too_few_are_left_out_and_named(tmp_path: Path) -> None:
    content = instances()
    content["annotations"] = [e for e in content["annotations"] if e["id"] not in (103, 203)]
    content["categories"].append({"id": 99, "name": "toaster"})
    write(tmp_path, content)
    with pytest.warns(UserWarning, match=r"min_crops=2 crops .*min_size=10 pixels.*: hair drier \(1\), toaster \(0\)"):
        assert len(load(tmp_path)) == 1
    with (
        pytest.warns(UserWarning),
        pytest.raises(InputError, match=r"0 classes cannot be split.*lower dataset.min_crops"),
    ):
        load(tmp_path, min_crops=4)


def test_no_more_than_asked_for_of_each_class_and_always_the_same(tmp_path: Path) -> None:
    content = instances()
    content["annotations"] += [annotation(1000 + i, 1, "cat", [i, i, 20, 20]) for i in range(30)]
    write(tmp_path, content)
    split = next(s for s, names in by_chance(COLOURS, 0).items() if "cat" in names)
    assert of(load(tmp_path, split, per_class=None), "cat").shape[0] == 33
    some = load(tmp_path, split, per_class=5)
    assert some.sizes.tolist() == [min(5, s) for s in load(tmp_path, split, per_class=None).sizes.tolist()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(tmp_path / "another"))
        assert torch.equal(load(tmp_path, split, per_class=5).items, some.items)


def test_lists_say_which_class_is_where(tmp_path: Path) -> None:
    write(tmp_path)
    lists = {"train": ["car"], "val": ["hair drier"], "test": ["cat"]}
    (tmp_path / "coco/split.json").write_text(json.dumps(lists))
    for split, names in lists.items():
        assert list(load(tmp_path, split, lists="coco/split.json").names) == names
    (tmp_path / "coco/split.json").write_text(json.dumps(lists | {"test": ["cow"]}))
    with pytest.raises(InputError, match="class 'cow' of test is not in the data"):
        load(tmp_path, lists="coco/split.json")


def test_the_json_is_read_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    before = load(tmp_path)
    monkeypatch.setattr("metarun.data.coco._content", lambda path: pytest.fail("read again"))
    assert torch.equal(load(tmp_path).items, before.items)
    monkeypatch.undo()
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    content = instances()
    content["annotations"] = content["annotations"][:-4]
    write(tmp_path, content)
    assert load(tmp_path).sizes.tolist() == [2] * len(before)


# Bad files


def refusal(data_root: Path, **changed: Any) -> str:
    with pytest.raises(InputError) as caught, warnings.catch_warnings(action="ignore"):
        load(data_root, **changed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_there_is_named_with_its_setting(tmp_path: Path) -> None:
    assert f"dataset.annotations: {tmp_path / 'coco/annotations/instances_train2017.json'}" in refusal(tmp_path)
    write(tmp_path)
    assert f"dataset.images: {tmp_path / 'nowhere'} is not there" in refusal(tmp_path, images="nowhere")


def test_an_image_that_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "coco/train2017/000000000002.png"
    path.unlink()
    assert f"{path} is not there" in refusal(tmp_path)


def test_an_image_that_is_smaller_than_it_should_be_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "coco/train2017/000000000002.png"
    Image.new("RGB", (50, 50)).save(path)
    assert f"{path} does not decode" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no whole json file"),
        ('{"images": [', "is no whole json file"),
        ("[" * 100_000, "is no whole json file"),
        ("[]", "is no json object"),
        ("{}", "it has no list 'categories'"),
        ('{"categories": [], "images": 3}', "it has no list 'images'"),
        ('{"categories": [], "images": []}', "it has no list 'annotations'"),
        ('{"categories": [3]}', "categories, number 0: is no json object"),
        ('{"categories": [], "images": [], "annotations": []}', "0 classes cannot be split"),
    ],
)
def test_a_json_that_is_none_is_named(tmp_path: Path, text: str, why: str) -> None:
    path = write(tmp_path, text)
    message = refusal(tmp_path)
    assert str(path) in message
    assert why in message


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    assert f"{path} is cut short or damaged" in refusal(tmp_path)


Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, Change] = {
    "annotations, id 201: its image_id is 77": lambda c: c["annotations"][5].update(image_id=77),
    "annotations, id 201: its image_id is [1]": lambda c: c["annotations"][5].update(image_id=[1]),
    "annotations, id 201: its category_id is 77": lambda c: c["annotations"][5].update(category_id=77),
    "annotations, number 5: its category_id is None": lambda c: [
        c["annotations"][5].pop("id"), c["annotations"][5].pop("category_id")
    ],
    "annotations, id 201: its bbox is None": lambda c: c["annotations"][5].pop("bbox"),
    "its bbox is [1, 2, 3]": lambda c: c["annotations"][5].update(bbox=[1, 2, 3]),
    "its bbox is [1, 2, 3, '4']": lambda c: c["annotations"][5].update(bbox=[1, 2, 3, "4"]),
    "its bbox is [1, 2, -3, 4]": lambda c: c["annotations"][5].update(bbox=[1, 2, -3, 4]),
    "its bbox is [1, 2, nan, 4]": lambda c: c["annotations"][5].update(bbox=[1, 2, float("nan"), 4]),
    "its bbox is [1, 2, 3, inf]": lambda c: c["annotations"][5].update(bbox=[1, 2, 3, float("inf")]),
    "images, id 2: its width is 0": lambda c: c["images"][1].update(width=0),
    "images, id 2: its height is None": lambda c: c["images"][1].pop("height"),
    "images, id 2: its file_name is None": lambda c: c["images"][1].pop("file_name"),
    "images, number 1: has no id": lambda c: c["images"][1].pop("id"),
    "images, id 1: its id is not the only one": lambda c: c["images"][1].update(id=1),
    "its file_name '../x.png' is not below": lambda c: c["images"][1].update(file_name="../x.png"),
    "its file_name '/x.png' is not below": lambda c: c["images"][1].update(file_name="/x.png"),
    r"its file_name is '\x1b[2J'": lambda c: c["images"][1].update(file_name="\x1b[2J"),
    "categories, id 17: its name is 3": lambda c: c["categories"][1].update(name=3),
    "two categories are called 'cat'": lambda c: c["categories"][1].update(name="cat"),
}  # fmt: skip


@pytest.mark.parametrize("why", CHANGES)
def test_what_does_not_fit_is_named(tmp_path: Path, why: str) -> None:
    content = instances()
    CHANGES[why](content)
    path = write(tmp_path, content)
    message = refusal(tmp_path)
    assert str(path) in message
    assert why in message
    assert not [*(tmp_path / "cache").glob("*")]


# Anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)


def attempt(content: str) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(action="ignore"),
    ):
        patch.setenv("METARUN_CACHE", f"{folder}/cache")
        write(Path(folder) / "data", content)
        try:
            bank = load(Path(folder) / "data")
        except InputError:
            pass
        else:
            assert len(bank.items) == int(bank.offsets[-1]) > 0
        assert {path.name for path in Path(folder).iterdir()} <= {"cache", "data"}
        assert len([*(Path(folder) / "data").rglob("*")]) == 7


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_change_is_a_bank_or_refused(data: st.DataObject) -> None:
    content = instances()
    kind = data.draw(st.sampled_from(["images", "categories", "annotations"]))
    entry = data.draw(st.sampled_from(content[kind]))
    entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(
        JSON | st.lists(st.floats() | st.integers(), min_size=4, max_size=4)
    )
    attempt(json.dumps(content))


@given(st.integers(0, 3000), st.text(max_size=4))
@settings(max_examples=20, deadline=None)
def test_any_cut_or_change_of_the_text_is_a_bank_or_refused(at: int, change: str) -> None:
    text = json.dumps(instances())
    attempt(text[:at] + change + text[at + len(change) :])
