"""CUB-200-2011: 11,788 photographs of 200 species of birds.

Wah et al. 2011, "The Caltech-UCSD Birds-200-2011 Dataset"; home: https://www.vision.caltech.edu/datasets/cub_200_2011.
The split is that of Chen et al. 2019, "A Closer Look at Few-shot Classification", by a class's number counted from 0:
even for training, 1 mod 4 for validation, 3 mod 4 for tests: 100 / 50 / 50 classes. Chen et al. give networks the whole
image; with `crop` they see the bird's bounding box alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from metarun.data.benchmark import Benchmark, box_of, boxes, lines
from metarun.data.download import Published
from metarun.data.images import Classes, folders
from metarun.data.pixels import Ref
from metarun.types import InputError, register, setting

REMAINDERS = {"train": (0, 2), "val": (1,), "test": (3,)}
"""of a class's number, from 0, divided by 4"""


@register("dataset", "cub")
@dataclass(frozen=True)
class Cub(Benchmark):
    places = ("CUB_200_2011", "CUB_200_2011/CUB_200_2011", "cub")
    needs = ("images",)
    archive = Published(
        "CUB_200_2011.tgz",
        ("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",),
        "97eceeb196236b17998738112f37df78",
    )
    put = "images/ with its 200 folders, and images.txt and bounding_boxes.txt for dataset.crop=true,"
    counts = (100, 50, 50)

    crop: bool = setting(False)

    def classes(self, folder: Path, split: str) -> Classes:
        every = folders(folder / "images")
        own = {name: every[name] for name in every if (_number(folder, name) - 1) % 4 in REMAINDERS[split]}
        return _cropped(folder, own) if self.crop else own


def _number(folder: Path, name: str) -> int:
    """17 of 017.Cardinal"""
    if not (match := re.match(r"([0-9]{1,9})\.", name)):
        raise InputError(f"{folder}/images/{name}: CUB's folders are called 001.Black_footed_Albatross and so on")
    return int(match[1])


def _cropped(folder: Path, classes: Classes) -> Classes:
    """images.txt numbers the images, and bounding_boxes.txt has left, top, width and height by number."""
    listed, path = {name: image for _, (image, name) in lines(folder / "images.txt", 2)}, folder / "bounding_boxes.txt"
    known = boxes(path)

    def cropped(ref: Ref) -> Ref:
        image = ref.path.removeprefix(f"{folder}/images/")
        left, top, width, height = box_of(listed.get(image, image), known, path)
        return ref._replace(box=(max(0.0, left), max(0.0, top), left + width, top + height))

    return {name: [cropped(ref) for ref in refs] for name, refs in classes.items()}
