"""mini-ImageNet: 100 classes of ImageNet with 600 images each, of which 64 are for training and 20 for testing.

Vinyals et al. 2016, "Matching Networks for One Shot Learning", in the split of Ravi & Larochelle 2017,
"Optimization as a Model for Few-Shot Learning", which all later papers report on: 64 / 16 / 20 classes.

Items are (3, 84, 84) uint8, shrunk from whatever size the files have with the Lanczos filter and without regard to
their shape, as MAML's script does; `image_size` says another side (Chen et al. 2019 give ResNets 224). Which classes
are in which split is for the files to say: `train/`, `val/` and `test/` with a folder of images for each class, or
`images/` beside the `train.csv`, `val.csv` and `test.csv` (`filename,label`) that Ravi & Larochelle published.
"""

from __future__ import annotations

import csv
import hashlib
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.data.bank import ClassBank
from metarun.data.cache import cached
from metarun.types import SPLITS, InputError, register, setting

VERSION = 1
"""of the packed form: raise it when what `_pack` makes changes"""
FOLDERS = ("mini-imagenet", "mini_imagenet")
CLASSES = {"train": 64, "val": 16, "test": 20}
IMAGES = 600
AT_ONCE = 64
"""images that a thread takes at a time"""

Classes = dict[str, list[Path]]
"""The images of each class; both sorted by name."""


@register("dataset", "mini_imagenet")
@dataclass(frozen=True)
class MiniImageNet:
    """Reads `DATA_ROOT/mini-imagenet`, in either layout. Nothing is downloaded: ImageNet may not be handed on."""

    image_size: int = setting(84, least=1, most=1024)

    def load(self, split: str, data_root: Path) -> ClassBank:
        folder, layout = _find(data_root)
        names = {s: layout.names(folder, s) for s in SPLITS}
        _check_disjoint(folder, names)
        classes = layout.images(folder, split)
        _warn_of_size(folder, split, classes)
        paths = [path for images in classes.values() for path in images]
        # One file for each split, so that an evaluation need not read the training images.
        key = f"{VERSION} {self.image_size} {_stamp(folder, classes)}"
        packed = cached("mini_imagenet", key, lambda: _pack(split, paths, self.image_size))
        sizes = torch.tensor([0, *map(len, classes.values())])
        # A copy, in order that the bank does not stay tied to the cache file.
        return ClassBank(packed["items"].clone(), sizes.cumsum(0), tuple(classes))


def _check_disjoint(folder: Path, names: dict[str, list[str]]) -> None:
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if shared := sorted({*names[one]} & {*names[other]}):
            which = f"class '{shared[0]}' is" if len(shared) == 1 else f"{len(shared)} classes, '{shared[0]}' one, are"
            raise InputError(f"{folder}: {which} in both {one} and {other}: a class belongs in one split")


def _warn_of_size(folder: Path, split: str, classes: Classes) -> None:
    """A part of it will do to try things out, but no paper's number was measured on it."""
    if wrong := [name for name, images in classes.items() if len(images) != IMAGES]:
        found = f"{len(classes[wrong[0]])} images of '{wrong[0]}' in {split}"
    elif len(classes) != CLASSES[split]:
        found = f"{len(classes)} classes in {split}"
    else:
        return
    wanted = f"{' / '.join(map(str, CLASSES.values()))} classes with {IMAGES} images each"
    warnings.warn(f"{folder} has {found}; published numbers are for {wanted}", stacklevel=3)


# Layouts: where the images of each class are.


@dataclass(frozen=True)
class Layout:
    """`names` tells the classes of a split, `images` also reads where their images are."""

    needs: tuple[str, ...]
    names: Callable[[Path, str], list[str]]
    images: Callable[[Path, str], Classes]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error}): allow it, or set data_root to a copy that can be"
        ) from error


def _find(data_root: Path) -> tuple[Path, Layout]:
    """The folder and how it is laid out; `InputError` with what to put where."""
    with _reading(data_root):
        there = [data_root / name for name in FOLDERS if (data_root / name).is_dir()]
        lacks = {
            (folder, layout): [name for name in layout.needs if not (folder / name).exists()]
            for folder in there
            for layout in LAYOUTS
        }
    for found, missing in lacks.items():
        if not missing:
            return found
    folder, what = data_root / FOLDERS[0], "is not there"
    if lacks:
        (folder, _), missing = min(lacks.items(), key=lambda item: len(item[1]))
        what = f"lacks {', '.join(missing)}"
    raise InputError(
        f"mini-ImageNet: {folder} {what}. Put train/, val/ and test/ there, each with a folder of images for each "
        "class, or images/ with train.csv, val.csv and test.csv (filename,label); or set METARUN_DATA or "
        "data_root=... to the folder that holds it. ImageNet's terms forbid handing it on, so metarun cannot fetch "
        "it; dataset=glyphs needs no files"
    )


def _class_folders(folder: Path, split: str) -> list[str]:
    with _reading(folder / split), os.scandir(folder / split) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    if not names:
        raise InputError(f"{folder / split} holds no folders: put one with images there for each class")
    return names


def _in_folders(folder: Path, split: str) -> Classes:
    from PIL import Image

    suffixes = Image.registered_extensions()
    classes: Classes = {}
    for name in _class_folders(folder, split):
        place = folder / split / name
        with _reading(place):
            files = sorted(file for file in os.listdir(place) if not file.startswith("."))  # noqa: PTH208
        classes[name] = [path for file in files if (path := place / file).suffix.lower() in suffixes]
        if not classes[name]:
            raise InputError(f"{place} holds no images: put the images of that class there, or remove it")
    return classes


def _rows(folder: Path, split: str) -> list[tuple[str, str]]:
    """(filename, label) of each image of a split, sorted"""
    path = folder / f"{split}.csv"
    try:
        with _reading(path), path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = ([cell.strip() for cell in row] for row in csv.reader(file) if row)
        name, label = header.index("filename"), header.index("label")
        found = sorted((row[name], row[label]) for row in rows)
    except (ValueError, IndexError, csv.Error) as error:
        raise InputError(
            f"{path} is no table of images ({error}): its first line must be filename,label, and every other one "
            "must name an image and its class"
        ) from None
    if not found or not all(cell for row in found for cell in row):
        raise InputError(f"{path} {'has lines without an image or a class' if found else 'names no images'}")
    return found


def _labels(folder: Path, split: str) -> list[str]:
    return sorted({label for _, label in _rows(folder, split)})


def _in_csv(folder: Path, split: str) -> Classes:
    with _reading(folder / "images"):
        inside = set(os.listdir(folder / "images"))  # noqa: PTH208
    classes: Classes = {label: [] for label in _labels(folder, split)}
    for name, label in _rows(folder, split):
        # Some copies keep each class in a folder of its own.
        below = "images" if name in inside or label not in inside else f"images/{label}"
        classes[label].append(folder / below / name)
    named = Counter(name for s in SPLITS for name, _ in _rows(folder, s))
    if twice := [name for name, count in named.items() if count > 1]:
        raise InputError(f"{folder}: {twice[0]} is named {named[twice[0]]} times in its csv files: once is right")
    return classes


LAYOUTS = (
    Layout(SPLITS, _class_folders, _in_folders),
    Layout(("images", *(f"{split}.csv" for split in SPLITS)), _labels, _in_csv),
)


def _stamp(folder: Path, classes: Classes) -> str:
    """Changes when any image does: names, sizes and times, which take little to ask for."""
    digest = hashlib.sha256()
    for name, images in classes.items():
        for path in images:
            try:
                status = path.stat()
            except FileNotFoundError:
                raise InputError(f"{path} is not there: put it there, or take it out of the csv file") from None
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error})") from error
            where = path.relative_to(folder)
            digest.update(f"{name}\n{where}\n{status.st_size}\n{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


# Packing: images -> one tensor that `cached` can keep.


def _pack(split: str, paths: list[Path], side: int) -> dict[str, Any]:
    """`items` (images, 3, side, side) uint8, decoded on all cores: Pillow lets other threads run while it works."""
    print(f"packing mini-ImageNet: {len(paths):,} images of {split}, once", file=sys.stderr)
    items = torch.empty(len(paths), 3, side, side, dtype=torch.uint8)

    def some(first: int) -> None:
        for row, path in enumerate(paths[first : first + AT_ONCE], first):
            items[row] = _decode(path, side)

    cores = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    pool = ThreadPoolExecutor(cores)
    try:
        for _ in pool.map(some, range(0, len(paths), AT_ONCE)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return {"items": items}


def _decode(path: Path, side: int) -> Tensor:
    """(3, side, side) uint8"""
    from PIL import Image

    try:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    except Exception as error:
        # A broken image may raise nearly anything.
        raise InputError(
            f"{path} does not decode ({type(error).__name__}: {error}): put a whole copy there, or take it away"
        ) from error
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1)
