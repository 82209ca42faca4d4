"""VGG Flowers: 8,189 photographs of 102 flowers, 40 to 258 each.

Nilsback & Zisserman 2008, "Automated Flower Classification over a Large Number of Classes"; home:
https://www.robots.ox.ac.uk/~vgg/data/flowers/102. The split has Meta-Dataset's 71 / 15 / 16 classes (Triantafillou et
al. 2020), but drawn by `split_seed`: it is not Meta-Dataset's own list.

The classes are in a MATLAB file of one row of numbers; its format (level 5) is documented by MathWorks, "MAT-File
Format". A reader of just that is shorter than what a reader of everything could do by accident.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarun.data.benchmark import Shuffled
from metarun.data.download import Published
from metarun.data.images import Classes
from metarun.data.pixels import Ref
from metarun.data.reading import reading
from metarun.types import InputError, register

HOME = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
HEADER = 128
"""bytes before the first element"""
LARGEST = 2**20
"""bytes of a list of labels"""
NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}
MATRIX, COMPRESSED = 14, 15


@register("dataset", "vgg_flowers")
@dataclass(frozen=True)
class VggFlowers(Shuffled):
    places = ("vgg_flowers", "VGGFlower", "flowers-102")
    needs = ("jpg", "imagelabels.mat")
    archive = Published("102flowers.tgz", (f"{HOME}/102flowers.tgz",), "52808999861908f626f3c1f4e79d11fa")
    beside = (Published("imagelabels.mat", (f"{HOME}/imagelabels.mat",), "e0620be6f572b9609742df49c70aed4d"),)
    put = "jpg/ with image_00001.jpg and so on, and imagelabels.mat"
    counts = (71, 15, 16)

    def every(self, folder: Path) -> Classes:
        found: dict[str, list[Ref]] = {}
        for image, flower in enumerate(labels(folder / "imagelabels.mat"), 1):
            found.setdefault(f"{flower:03}", []).append(Ref(f"{folder}/jpg/image_{image:05}.jpg"))
        return dict(sorted(found.items()))


def labels(path: Path) -> list[int]:
    """The numbers of the one matrix in a MATLAB file. Raises `InputError` for anything else."""
    with reading(path), path.open("rb") as file:
        data = file.read(LARGEST)
    try:
        kind, body, _ = _element(data, HEADER)
        if kind == COMPRESSED:
            kind, body, _ = _element(zlib.decompressobj().decompress(body, LARGEST), 0)
        if kind != MATRIX:
            raise ValueError(f"an element of type {kind} in place of a matrix")
        at = 0
        for _ in ("flags", "dimensions", "name"):
            _, _, at = _element(body, at)
        kind, numbers, _ = _element(body, at)
        found = np.frombuffer(numbers, NUMBERS[kind]).astype(np.float64)
        if not len(found) or not ((found >= 0) & (found < 1000) & (found == found.round())).all():
            raise ValueError("not a row of whole numbers")
    except (ValueError, KeyError, struct.error, zlib.error) as error:
        raise InputError(f"{path} is not the list of labels as published ({error}): take a whole copy") from None
    return found.astype(int).tolist()


def _element(data: bytes, at: int) -> tuple[int, bytes, int]:
    """The type and content of the element that begins at a byte, and where the next one does."""
    kind, size = struct.unpack_from("<II", data, at)
    start, end = at + 8, at + 8 + size + -size % 8
    if kind >> 16:  # a small one: its size is in the upper half of its type, its content where the size would be
        kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
    if start + size > len(data):
        raise ValueError("it is cut short")
    return kind, data[start : start + size], end
