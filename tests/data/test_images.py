"""Pictures of all kinds to banks: folders, zip files, tables; and what is wrong with them, said."""

from __future__ import annotations

import csv
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from metarun.data.bank import ClassBank
from metarun.data.chunks import Broken
from metarun.data.imagefolder import ImageFolder
from metarun.data.pixels import Decoder, Form, Ref, middle
from metarun.data.splits import by_chance, listed
from metarun.data.tables import number, read_csv, read_jsonl
from metarun.types import SPLITS, InputError, Place


def picture(seed: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write(root: Path, classes: int = 6, each: int = 3, below: str = "images") -> Path:
    for c in range(classes):
        folder = root / below / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(each):
            picture(10 * c + i).save(folder / f"{i}.png")
    return root / below


def load(root: Path, split: str = "train", skip_broken: bool = False, **settings: Any) -> ClassBank:
    wanted = {"image_size": 12} | settings
    return ImageFolder(**wanted).load(split, Place(root, skip_broken=skip_broken))


def equal(one: ClassBank, other: ClassBank) -> bool:
    return one.names == other.names and torch.equal(one.items, other.items) and torch.equal(one.offsets, other.offsets)


def refusal(root: Path, split: str = "train", **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(root, split, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# One image


def pixels(image: Image.Image, form: Form, tmp_path: Path, box: Any = None) -> torch.Tensor:
    path = tmp_path / "image.png"
    image.save(path, "PNG" if image.mode != "CMYK" else "TIFF")
    data = Decoder(form)(Ref(str(path), box=box))
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(form.item)


def test_an_image_of_the_right_size_is_as_it_is(tmp_path: Path) -> None:
    image = picture(0)
    assert torch.equal(pixels(image, Form(12), tmp_path).permute(1, 2, 0), torch.tensor(np.array(image)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_becomes_grey_or_colour(mode: str, channels: int, tmp_path: Path) -> None:
    image = picture(0, (20, 14)).convert("L")
    shown = Image.fromarray(np.array(image, np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    found = pixels(shown, Form(7, channels), tmp_path)
    wanted = torch.tensor(np.array(image.resize((7, 7), Image.Resampling.LANCZOS)), dtype=torch.float)
    assert found.shape == (channels, 7, 7)
    if mode != "1":
        assert float((found.float() - wanted).abs().max()) <= 4


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    assert int(pixels(Image.new("RGBA", (5, 5), (9, 9, 9, 0)), Form(5), tmp_path).min()) == 255


def test_fit_says_whether_a_shape_is_kept(tmp_path: Path) -> None:
    image = picture(0, (30, 10))
    whole = pixels(image, Form(10), tmp_path)
    assert torch.equal(whole.permute(1, 2, 0), torch.tensor(np.array(image.resize((10, 10), Image.Resampling.LANCZOS))))
    part = pixels(image, Form(10, fit="crop"), tmp_path)
    assert torch.equal(part.permute(1, 2, 0), torch.tensor(np.array(image.crop((10, 0, 20, 10)))))
    assert middle((0, 0, 4, 10)) == (0, 3, 4, 7)


def test_a_box_is_cut_out(tmp_path: Path) -> None:
    image = picture(0, (20, 20))
    found = pixels(image, Form(6), tmp_path, (3, 5, 9, 11))
    assert torch.equal(found.permute(1, 2, 0), torch.tensor(np.array(image.crop((3, 5, 9, 11)))))


@pytest.mark.parametrize("side", [3, 8, 40])
def test_what_is_around_a_box_does_not_shine_through(side: int, tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20), "red")
    image.paste("blue", (8, 8, 16, 16))
    found = pixels(image, Form(side), tmp_path, (8, 8, 16, 16))
    assert found.flatten(1).amax(1).tolist() == [0, 0, 255]
    over = pixels(image, Form(side), tmp_path, (8, 8, 16, 20.4))
    assert torch.equal(over, pixels(image, Form(side), tmp_path, (8, 8, 16, 20)))
    with pytest.raises(Broken, match="nothing of 20x20 pixels is in the box"):
        pixels(image, Form(side), tmp_path, (30, 3, 40, 9))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 400), st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "PPM", "TIFF"]))
def test_any_bytes_are_an_image_or_broken(tmp_path: Path, junk: bytes, at: int, kind: str) -> None:
    path = tmp_path / "some.png"
    picture(1).save(path, kind)
    whole = path.read_bytes()
    for data in (junk, whole[:at], whole[:at] + junk + whole[at + len(junk) :]):
        path.write_bytes(data)
        with warnings.catch_warnings(action="ignore"):
            try:
                assert len(Decoder(Form(4))(Ref(str(path)))) == 48
            except Broken as error:
                assert str(path) in str(error)


# Layouts


def write_zip(root: Path) -> Path:
    write(root / "made")
    with zipfile.ZipFile(root / "images.zip", "w") as file:
        for path in sorted((root / "made").rglob("*.png")):
            file.write(path, f"any/where/{path.parent.name}/{path.name}")
        file.writestr("__MACOSX/any/where/class0/._0.png", b"none")
        file.writestr("any/where/readme.txt", b"hello")
    return root / "images.zip"


def write_table(root: Path, columns: dict[str, Callable[[int, int], str]] | None = None) -> Path:
    folder = write(root / "flat", below="images")
    with (folder / "table.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "filename", *(columns or {})])
        for c in range(6):
            for i in range(3):
                more = [f(c, i) for f in (columns or {}).values()]
                rows.writerow([f"class{c}", f"class{c}/{i}.png", *more])
    return root / "flat"


def test_folders_zip_files_and_tables_give_equal_banks(tmp_path: Path) -> None:
    write(tmp_path)
    write_zip(tmp_path / "zipped")
    write_table(tmp_path / "table")
    for split in SPLITS:
        bank = load(tmp_path, split)
        assert equal(bank, load(tmp_path / "zipped", split, path="images.zip"))
        assert equal(bank, load(tmp_path / "table/flat", split, csv="table.csv"))
        assert bank.item_shape == (3, 12, 12)
        assert bank.sizes.tolist() == [3] * len(bank)


def test_a_seed_splits_the_classes_in_the_ratios_asked_for(tmp_path: Path) -> None:
    write(tmp_path)
    split = [load(tmp_path, name).names for name in SPLITS]
    assert [len(names) for names in split] == [4, 1, 1]
    assert sorted(sum(split, ())) == [f"class{c}" for c in range(6)]
    assert any([load(tmp_path, name, split_seed=s).names for name in SPLITS] != split for s in (1, 2, 3))
    assert [len(load(tmp_path, name, ratios=[0.34, 0.33, 0.33]).names) for name in SPLITS] == [2, 2, 2]


def test_splits_may_lie_there_as_folders(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for name, classes in zip(SPLITS, ([0, 3, 4], [1], [2, 5])):
        for c in classes:
            (folder / name).mkdir(exist_ok=True)
            (folder / f"class{c}").rename(folder / name / f"class{c}")
    assert [load(tmp_path, name).names for name in SPLITS] == [
        ("class0", "class3", "class4"),
        ("class1",),
        ("class2", "class5"),
    ]
    (folder / "test/class0").mkdir()
    assert f"{folder}: class 'class0' is in both train and test" in refusal(tmp_path)


LISTS = {"train": ["class5", "class1"], "val": ["class2"], "test": ["class0"]}


@pytest.mark.parametrize("form", ["json", "text"])
def test_lists_say_which_class_is_where(form: str, tmp_path: Path) -> None:
    folder = write(tmp_path)
    if form == "json":
        (folder / "lists").write_text(json.dumps(LISTS))
    else:
        (folder / "lists").mkdir()
        for name, classes in LISTS.items():
            (folder / "lists" / f"{name}.txt").write_text("\n".join(classes) + "\n")
    assert [load(tmp_path, name, lists="lists").names for name in SPLITS] == [
        ("class1", "class5"),
        ("class2",),
        ("class0",),
    ]


def test_a_table_may_say_the_split_and_the_group(tmp_path: Path) -> None:
    columns = {"part": lambda c, i: SPLITS[c % 3], "video": lambda c, i: str(i // 2)}
    write_table(tmp_path, columns)
    bank = load(tmp_path / "flat", "val", csv="table.csv", split_column="part", group_column="video")
    assert bank.names == ("class1", "class4")
    assert bank.groups is not None
    groups = bank.groups.tolist()
    assert groups[0] == groups[1] != groups[2] and groups[3] == groups[4] and len(set(groups)) == 4


@pytest.mark.parametrize("channels", [1, 3])
def test_size_and_colour_are_settings(channels: int, tmp_path: Path) -> None:
    write(tmp_path)
    assert load(tmp_path, image_size=5, channels=channels).item_shape == (channels, 5, 5)


# What is wrong with them


def test_a_broken_image_is_named_and_may_be_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path)
    path = next(folder / f"class{c}/1.png" for c in range(6) if f"class{c}" in load(tmp_path).names)
    path.write_bytes(path.read_bytes()[:60])
    assert f"{path} does not decode" in refusal(tmp_path)
    bank = load(tmp_path, skip_broken=True)
    assert sorted(bank.sizes.tolist()) == [2, 3, 3, 3]
    assert "1 of 12 items do not decode and are left out" in capsys.readouterr().err
    for other in path.parent.iterdir():
        other.write_bytes(b"")
    assert f"no image of class '{path.parent.name}' of train decodes" in refusal(tmp_path, skip_broken=True)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    assert f"dataset.path: {tmp_path / 'images'} is not there" in refusal(tmp_path)
    folder = write(tmp_path)
    (folder / "class9").mkdir()
    assert "class 'class9' of" in refusal(tmp_path, next(s for s in SPLITS if "class9" in _names(tmp_path, s)))
    assert "fifty.json cannot be read" in refusal(tmp_path, lists="fifty.json")


def _names(root: Path, split: str) -> list[str]:
    return by_chance([path.name for path in (root / "images").iterdir()], 0)[split]


@pytest.mark.parametrize(
    ("lists", "why"),
    [
        ({"train": ["class0"], "val": ["class1"]}, "names no classes for test"),
        (LISTS | {"extra": ["class3"]}, "'extra' is no split"),
        (LISTS | {"test": ["class1"]}, "class 'class1' is in both train and test"),
        (LISTS | {"test": ["class0", "klass"]}, "class 'klass' of test is not in the data"),
        (LISTS | {"test": "class0"}, "must be {"),
        ([1], "must be {"),
    ],
)
def test_lists_that_do_not_fit_are_refused(lists: Any, why: str, tmp_path: Path) -> None:
    (write(tmp_path) / "lists.json").write_text(json.dumps(lists))
    assert why in refusal(tmp_path, lists="lists.json")


def test_a_damaged_zip_file_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} is cut short or damaged" in refusal(tmp_path, path="images.zip")


@pytest.mark.parametrize(
    ("columns", "given", "why"),
    [
        ({}, {"class_column": "class"}, "table.csv has no column 'class'; choose from: filename, label"),
        ({"part": lambda c, i: "dev"}, {"split_column": "part"}, "line 2: part is 'dev', not one of train, val, test"),
        ({"part": lambda c, i: SPLITS[i]}, {"split_column": "part"}, "6 classes, 'class0' one, are in both train"),
    ],
)
def test_tables_that_do_not_fit_are_refused(columns: Any, given: dict[str, str], why: str, tmp_path: Path) -> None:
    write_table(tmp_path, columns)
    assert why in refusal(tmp_path / "flat", csv="table.csv", **given)


def test_an_image_that_a_table_names_must_be_there(tmp_path: Path) -> None:
    write_table(tmp_path)
    (tmp_path / "flat/images/class3/1.png").unlink()
    splits = [s for s in SPLITS if "class3" in _names(tmp_path / "flat", s)]
    (tmp_path / "flat/images/table.csv").touch()
    assert "class3/1.png is not there" in " ".join(
        refusal(tmp_path / "flat", split, csv="table.csv") for split in splits
    )


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="three numbers above 0"):
        ImageFolder(ratios=[0.5, 0.5])
    with pytest.raises(ValueError, match="grey"):
        ImageFolder(channels=2)
    with pytest.raises(ValueError, match="3 or more"):
        by_chance("ab", 0)
    for n in range(3, 40):
        assert all(by_chance(map(str, range(n)), 1, [0.9, 0.05, 0.05]).values())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=120) | st.text(max_size=80).map(lambda text: text.encode()))
def test_any_file_is_a_table_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    for read in (lambda: [*read_csv(path, ["a"])], lambda: [*read_jsonl(path, ["a"])]):
        try:
            assert all("a" in row for _, row in read())
        except InputError as error:
            assert str(path) in str(error)
    path.write_bytes(b"a,b\n" + data)
    try:
        rows = [*read_csv(path, ["a"])]
        assert all(row.keys() == {"a", "b"} for _, row in rows)
    except InputError as error:
        assert str(path) in str(error)


def test_a_number_is_finite(tmp_path: Path) -> None:
    assert number(" 1e3", tmp_path, 3, "x") == 1000
    for text in ("", "one", "nan", "inf", "1,5"):
        with pytest.raises(InputError, match=r"line 3: x is '.*', where a finite number is wanted"):
            number(text, tmp_path, 3, "x")


def test_a_list_that_fits_is_taken_as_it_is() -> None:
    assert listed(LISTS, [f"class{c}" for c in range(6)], "here") == LISTS
