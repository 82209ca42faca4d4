"""Quick, Draw!: drawings of 345 things, each made in under 20 seconds by a player of the game; 50 million in all.

Ha & Eck 2017, "A Neural Representation of Sketch Drawings"; published by Google under CC BY 4.0. Reads
`DATA_ROOT/quickdraw`, where each class has a file of its own, named and laid out as in the official bucket:

    CLASS.npy     bitmaps: (n, 784) uint8, 28 rows of 28 pixels
    CLASS.ndjson  strokes, the simplified drawings: a json object a line, with
                  "drawing": [[[x, ...], [y, ...]], ...] in [0, 255], and "recognized": whether the game knew it

Items are (1, side, side) uint8, ink 255 on 0. The classes are split by chance, as many for each split as in
Meta-Dataset (Triantafillou et al. 2020): 241 / 52 / 52 of all 345.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

from metarun.cache import cached
from metarun.data.bank import ClassBank
from metarun.data.download import fetch
from metarun.data.images import stamp
from metarun.data.packed import packed
from metarun.data.pickles import map_npy
from metarun.data.pixels import LARGEST, Ref
from metarun.data.reading import reading
from metarun.data.splits import by_chance, check_ratios
from metarun.data.strokes import SPAN, Pen, drawing_of
from metarun.types import InputError, Place, register, setting

FOLDER = "quickdraw"
BUCKET = "https://storage.googleapis.com/quickdraw_dataset/full"
KINDS = {"bitmaps": ("numpy_bitmap", ".npy"), "strokes": ("simplified", ".ndjson")}
"""What they are called in the bucket, and the ends of their files' names."""
RATIOS = (0.69855, 0.15073, 0.15072)
"""of 345 classes: 241, 52 and 52"""
DRAWN_AT = 28
LONGEST = 2**20
"""bytes of a line"""


@register("dataset", "quickdraw")
@dataclass(frozen=True)
class QuickDraw:
    """`categories` are downloaded where they lack, about 100 MB each; without any, it is the files that are there."""

    kind: str = setting("bitmaps", choices=tuple(KINDS))
    categories: list[str] = setting([])
    per_class: int = setting(1000, least=1)
    recognized: bool = setting(True)
    stroke_width: float = setting(16.0, above=0, most=SPAN)
    image_size: int = setting(DRAWN_AT, least=1, most=LARGEST)
    ratios: list[float] = setting(list(RATIOS))
    split_seed: int = setting(0, least=0)

    def __post_init__(self) -> None:
        check_ratios(self.ratios)
        if bad := [name for name in self.categories if not name.strip() or "/" in name or name.startswith(".")]:
            raise ValueError(f"categories: '{bad[0]}' is no class of Quick, Draw!, such as cat or 'alarm clock'")

    def load(self, split: str, place: Place) -> ClassBank:
        folder = place.root / FOLDER
        files = self._files(folder, place)
        try:
            names = by_chance(files, self.split_seed, self.ratios)[split]
        except ValueError as error:
            raise InputError(f"{folder}: {error}; get more, or name more in dataset.categories") from None
        paths = [files[name] for name in names]
        key = f"1 {self.kind} {self.per_class} {stamp([Ref(str(path)) for path in paths])}"
        if self.kind == "bitmaps":
            sizes, items, draw = self._bitmaps(paths)
            workers = 1  # the files are mapped here
        else:
            key += f" {self.recognized} {place.skip_broken}"
            sizes, items = self._strokes(split, key, paths, place.skip_broken)
            draw, workers = Pen(self.image_size, self.stroke_width), None
            key += f" {self.stroke_width}"
        side = self.image_size
        made = packed(f"quickdraw-{split}", f"{key} {side}", items, (1, side, side), draw, workers=workers)
        return ClassBank(made.items, torch.tensor([0, *sizes]).cumsum(0), tuple(names), made.checksum)

    def _files(self, folder: Path, place: Place) -> dict[str, Path]:
        """The file of each class."""
        kind, suffix = KINDS[self.kind]
        there = _there(folder, suffix)
        if not self.categories:
            if not there:
                raise InputError(_nothing(folder, self.kind))
            return there
        return {
            name: there.get(name)
            or fetch(f"{name}{suffix}", [f"{BUCKET}/{kind}/{quote(name)}{suffix}"], None, folder, place)
            for name in self.categories
        }

    def _bitmaps(self, paths: Sequence[Path]) -> tuple[list[int], list[Any], Callable[[Any], bytes]]:
        """How many drawings of each file are taken, all of them, and what gives the bytes of one."""
        files = [_bitmap_file(path) for path in paths]
        sizes = [min(len(file), self.per_class) for file in files]
        rows = [(file, row) for file, size in zip(files, sizes) for row in range(size)]

        def draw(item: tuple[np.ndarray, int]) -> bytes:
            file, row = item
            return _resized(file[row].reshape(DRAWN_AT, DRAWN_AT), self.image_size)

        return sizes, rows, draw

    def _strokes(
        self, split: str, key: str, paths: Sequence[Path], skip_broken: bool
    ) -> tuple[list[int], list[tuple[str, int]]]:
        """How many drawings of each file are taken, and where each of them is."""

        def make() -> dict[str, Any]:
            found = [_lines(path, self.per_class, self.recognized, skip_broken) for path in paths]
            return {"sizes": [len(f) for f in found], "begins": torch.tensor([at for f in found for at in f])}

        index = cached(f"quickdraw-{split}-lines", key, make)
        owners = (str(path) for path, size in zip(paths, index["sizes"]) for _ in range(size))
        return index["sizes"], list(zip(owners, index["begins"].tolist()))


# Files


def _there(folder: Path, suffix: str) -> dict[str, Path]:
    """The files of a kind by their class. A browser puts the folders of the bucket before their names."""
    if not folder.is_dir():
        return {}
    with reading(folder):
        paths = sorted(p for p in folder.iterdir() if p.suffix == suffix and not p.name.startswith("."))
    found: dict[str, Path] = {}
    for path in paths:
        name = path.stem
        for kind, _ in KINDS.values():
            name = name.removeprefix(f"full_{kind}_").removeprefix(f"full%2F{kind}%2F")
        if name in found:
            raise InputError(f"{found[name]} and {path} are the same class: take one of them away")
        found[name] = path
    return found


def _nothing(folder: Path, kind: str) -> str:
    other = next(k for k in KINDS if k != kind)
    if count := len(_there(folder, KINDS[other][1])):
        return f"{folder} holds no {kind}, but {count} files of {other}: set dataset.kind={other}"
    what, suffix = KINDS[kind]
    return (
        f"no Quick, Draw! in {folder}: put files CLASS{suffix} there, from {BUCKET}/{what}/CLASS{suffix}; or name "
        "classes to download, such as dataset.categories=[cat,dog,bird]; or set METARUN_DATA or data_root=... to the "
        f"folder that holds {FOLDER}"
    )


def _bitmap_file(path: Path) -> np.ndarray:
    """(n, 784) uint8"""
    bitmaps = map_npy(path)
    if bitmaps.dtype != np.uint8 or bitmaps.ndim != 2 or bitmaps.shape[1] != DRAWN_AT**2 or not len(bitmaps):
        raise InputError(
            f"{path} is {bitmaps.dtype} of shape {bitmaps.shape}, where bitmaps are uint8 of shape (n, {DRAWN_AT**2})"
        )
    return bitmaps


def _lines(path: Path, most: int, recognized: bool, skip_broken: bool) -> list[int]:
    """Where in a file the first `most` drawings begin. Raises `InputError` for a line that is none."""
    found: list[int] = []
    broken = number = 0
    with reading(path), path.open("rb") as file:
        while len(found) < most and (line := file.readline(LONGEST)):
            number += 1
            if not line.strip():
                continue
            try:
                if drawing_of(line)[1] or not recognized:
                    found.append(file.tell() - len(line))
            except ValueError as error:
                if not skip_broken:
                    raise InputError(
                        f"{path}, line {number}: {error}; take a whole copy, or leave such lines out with "
                        "data.skip_broken=true"
                    ) from None
                broken += 1
    if broken:
        print(f"{path}: {broken} of {number:,} lines are no drawings and are left out", file=sys.stderr)
    if not found:
        raise InputError(f"{path} holds no drawings{' that were recognized' if recognized else ''}: take a whole copy")
    return found


def _resized(bitmap: np.ndarray, side: int) -> bytes:
    if side == DRAWN_AT:
        return bitmap.tobytes()
    from PIL import Image

    return Image.fromarray(np.asarray(bitmap)).resize((side, side), Image.Resampling.LANCZOS).tobytes()
