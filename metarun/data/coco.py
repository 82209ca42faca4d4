"""COCO: the objects of its 80 categories, each cut out of its image.

Lin et al. 2014; as few-shot tasks in Triantafillou et al. 2020, "Meta-Dataset", whose code enlarges each box by a fifth
before it cuts: a `margin` of a tenth on every side, clipped to the image. It tests on all 80 classes and trains on
none; here they are split by chance or by `lists`, and three things are left out: crowds, boxes whose shorter side has
less than `min_size` pixels (COCO itself calls objects below 32x32 small), and classes of which fewer than `min_crops`
remain, which are named. Two annotations with the same box are one.

`annotations` is an instances file (images, annotations, categories), `images` the folder of its images; both, and
`lists` (see `metarun.data.imagefolder`), are looked for under `data_root` unless they are absolute.
"""

from __future__ import annotations

import json
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch

from metarun.cache import cached
from metarun.data.bank import ClassBank
from metarun.data.imagefolder import chosen, read_lists
from metarun.data.images import image_bank, stamp
from metarun.data.pixels import FITS, LARGEST, Box, Form, Ref
from metarun.data.reading import reading
from metarun.data.splits import RATIOS, Split, by_chance, check_ratios, listed
from metarun.types import InputError, Place, register, setting


class Crop(NamedTuple):
    """`box` is (left, top, right, bottom) in pixels, within the image."""

    file: str
    box: Box


@register("dataset", "coco")
@dataclass(frozen=True)
class Coco:
    """Nothing is downloaded: the images of train2017 are 19 GB."""

    annotations: str = setting("coco/annotations/instances_train2017.json")
    images: str = setting("coco/train2017")
    margin: float = setting(0.1, least=0, most=10)
    min_size: float = setting(32.0, least=1)
    min_crops: int = setting(20, least=1)
    per_class: int | None = setting(1000, least=1)
    lists: str | None = setting(None)
    ratios: list[float] = setting(list(RATIOS))
    split_seed: int = setting(0, least=0)
    image_size: int = setting(84, least=1, most=LARGEST)
    fit: str = setting("stretch", choices=FITS)

    def __post_init__(self) -> None:
        check_ratios(self.ratios)

    def load(self, split: str, place: Place) -> ClassBank:
        path, folder = (place.root / Path(name).expanduser() for name in (self.annotations, self.images))
        if not path.is_file():
            raise InputError(f"dataset.annotations: {path} is not there; give the path of an instances_*.json of COCO")
        if not folder.is_dir():
            raise InputError(f"dataset.images: {folder} is not there; give the path of the folder of COCO's images")
        # Kept, for to read half a gigabyte of json takes a while.
        key = f"1 {self.margin} {self.min_size} {self.min_crops} {self.per_class} {stamp([Ref(str(path))])}"
        index = cached("coco-crops", key, lambda: _index(self.crops(path), self.min_crops, self.per_class))
        if few := index["few"]:
            warnings.warn(
                f"{path}: classes with fewer than dataset.min_crops={self.min_crops} crops of at least "
                f"dataset.min_size={self.min_size:g} pixels are left out: {', '.join(few)}",
                stacklevel=2,
            )
        files = [index["files"][i] for i in index["file"].tolist()]
        refs = [Ref(f"{folder}/{file}", box=tuple(box)) for file, box in zip(files, index["box"].tolist())]
        ends = index["ends"]
        classes = {name: refs[begin:end] for name, begin, end in zip(index["names"], [0, *ends], ends)}
        mine = chosen(classes, self._split(classes, path, place), split)
        return image_bank("coco", split, mine, Form(self.image_size, 3, self.fit), place)

    def _split(self, classes: dict[str, list[Ref]], path: Path, place: Place) -> Split:
        if self.lists is not None:
            return listed(read_lists(place.root / Path(self.lists).expanduser()), classes, self.lists)
        try:
            return by_chance(classes, self.split_seed, self.ratios)
        except ValueError as error:
            raise InputError(f"{path}: {error}; lower dataset.min_crops or dataset.min_size") from None

    def crops(self, path: Path) -> dict[str, list[Crop]]:
        """The crops of every class, both sorted; some classes may have none.

        Raises `InputError` for what is no instances file, and names the annotation that does not fit.
        """
        content = _content(path)
        names = {known: entry.text("name") for known, entry in _by_id(path, content, "categories").items()}
        if twice := sorted(name for name, count in Counter(names.values()).items() if count > 1):
            raise InputError(f"{path}: two categories are called '{twice[0]}': rename one")
        images = {
            known: (entry.file("file_name"), entry.size("width"), entry.size("height"))
            for known, entry in _by_id(path, content, "images").items()
        }
        found: dict[str, set[Crop]] = {name: set() for name in names.values()}
        taken: set[tuple[Any, ...]] = set()
        for entry in _entries(path, content, "annotations"):
            image, category = entry.one_of("image_id", images), entry.one_of("category_id", names)
            box = entry.box()
            if entry.values.get("iscrowd") or (image, box) in taken:
                continue
            taken.add((image, box))
            if (cut := self._cut(box, *image[1:])) is not None:
                found[category].add(Crop(image[0], cut))
        return {name: sorted(found[name]) for name in sorted(found)}

    def _cut(self, box: Box, width: int, height: int) -> Box | None:
        """(x, y, width, height) as annotated -> what is cut out of an image; None where too little of it is there."""
        x, y, w, h = box
        if min(min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)) < self.min_size:
            return None
        left, top = max(x - self.margin * w, 0.0), max(y - self.margin * h, 0.0)
        right, bottom = min(x + w + self.margin * w, float(width)), min(y + h + self.margin * h, float(height))
        return left, top, right, bottom


def _index(crops: dict[str, list[Crop]], least: int, most: int | None) -> dict[str, Any]:
    """What `cached` can keep: the crops of the classes that have enough, `ends` where each class ends, and the others.

    Of a class with more than `most` crops, as many are taken by chance, the same ones every time.
    """
    few = [f"{name} ({len(own)})" for name, own in crops.items() if len(own) < least]
    enough = {name: own for name, own in crops.items() if len(own) >= least}
    if most is not None:
        enough = {
            n: sorted(random.Random(n).sample(own, most)) if len(own) > most else own for n, own in enough.items()
        }
    every = [crop for own in enough.values() for crop in own]
    files = {file: row for row, file in enumerate(dict.fromkeys(crop.file for crop in every))}
    return {
        "names": list(enough),
        "ends": torch.tensor([len(own) for own in enough.values()]).cumsum(0).tolist(),
        "files": list(files),
        "file": torch.tensor([files[crop.file] for crop in every], dtype=torch.long),
        "box": torch.tensor([crop.box for crop in every], dtype=torch.float64).view(-1, 4),
        "few": few,
    }


# The json file


@dataclass(frozen=True)
class Entry:
    """One object of a list of the file. Its methods raise `InputError` for a value that is none."""

    path: Path
    kind: str
    number: int
    values: dict[str, Any]

    def wrong(self, why: str) -> InputError:
        known = self.values.get("id")
        name = f"id {known}" if isinstance(known, (int, str)) else f"number {self.number}"
        return InputError(f"{self.path}, {self.kind}, {name}: {why}")

    @property
    def id(self) -> int | str:
        known = self.values.get("id")
        if not isinstance(known, (int, str)):
            raise self.wrong("has no id")
        return known

    def text(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise self.wrong(f"its {key} is {value!r:.40}, where text is wanted")
        return value.strip()

    def file(self, key: str) -> str:
        name = self.text(key)
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise self.wrong(f"its {key} {name!r} is not below the folder of images")
        return name

    def size(self, key: str) -> int:
        value = self.values.get(key)
        if type(value) is not int or not 0 < value < 2**31:
            raise self.wrong(f"its {key} is {value!r:.40}, where a number of pixels is wanted")
        return value

    def one_of(self, key: str, known: dict[Any, Any]) -> Any:
        """What an id stands for."""
        value = self.values.get(key)
        if not isinstance(value, (int, str)) or value not in known:
            raise self.wrong(f"its {key} is {value!r:.40}, which is none of the file's")
        return known[value]

    def box(self) -> Box:
        value = self.values.get("bbox")
        if (
            not isinstance(value, list)
            or len(value) != 4
            or not all(type(v) in (int, float) and abs(v) < 2**31 and (v >= 0 or i < 2) for i, v in enumerate(value))
        ):
            raise self.wrong(f"its bbox is {value!r:.60}, where [x, y, width, height] in pixels is wanted")
        x, y, w, h = map(float, value)
        return x, y, w, h


def _content(path: Path) -> dict[str, Any]:
    def without_outlines(values: dict[str, Any]) -> dict[str, Any]:
        values.pop("segmentation", None)  # most of the file
        return values

    with reading(path):
        text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text, object_hook=without_outlines)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no whole json file ({error}): take a whole copy") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is no instances file of COCO: it is no json object {{...}}")
    return content


def _entries(path: Path, content: dict[str, Any], kind: str) -> Iterator[Entry]:
    listed_there = content.get(kind)
    if not isinstance(listed_there, list):
        raise InputError(f"{path} is no instances file of COCO: it has no list '{kind}'")
    for number, values in enumerate(listed_there):
        if not isinstance(values, dict):
            raise InputError(f"{path}, {kind}, number {number}: is no json object {{...}}")
        yield Entry(path, kind, number, values)


def _by_id(path: Path, content: dict[str, Any], kind: str) -> dict[int | str, Entry]:
    found: dict[int | str, Entry] = {}
    for entry in _entries(path, content, kind):
        if entry.id in found:
            raise entry.wrong("its id is not the only one")
        found[entry.id] = entry
    return found
