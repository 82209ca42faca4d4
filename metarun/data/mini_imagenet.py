"""mini-ImageNet: 100 classes of ImageNet with 600 images each, of which 64 are for training and 20 for testing.

Vinyals et al. 2016, "Matching Networks for One Shot Learning", in the split of Ravi & Larochelle 2017,
"Optimization as a Model for Few-Shot Learning", which all later papers report on: 64 / 16 / 20 classes.

Items are (3, 84, 84) uint8, shrunk from whatever size the files have with the Lanczos filter and without regard to
their shape, as MAML's script does; `image_size` says another side (Chen et al. 2019 give ResNets 224). Which classes
are in which split is for the files to say, in any of these layouts:

    train/ val/ test/                 a folder of images for each class in each
    images/ train.csv val.csv test.csv   the tables `filename,label` that Ravi & Larochelle published
    mini-imagenet-cache-train.pkl ...    {image_data, class_dict}, as Ren et al. 2018 passed it on
    miniImageNet_category_split_train_phase_train.pickle, ..._val.pickle, ..._test.pickle
                                         {data, labels, catname2label}, as Gidaris & Komodakis 2018 did
    train.pkl or train.npz ...           {images, labels}, under these or the names above

The pixels in such caches are (n, h, w, 3) or (n, 3, h, w) uint8. Where a file names no classes, they are called after
their split and number. Pickles are read as data alone (see `metarun.data.pickles`).
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarun.cache import cached
from metarun.data.bank import ClassBank
from metarun.data.images import image_bank, is_image, stamp
from metarun.data.packed import packed
from metarun.data.pickles import read_npz, read_pickle
from metarun.data.pixels import LARGEST, Form, Ref
from metarun.data.reading import reading
from metarun.data.splits import check_disjoint
from metarun.data.tables import read_csv
from metarun.types import SPLITS, InputError, Place, register, setting

FOLDERS = ("mini-imagenet", "mini_imagenet")
CLASSES = {"train": 64, "val": 16, "test": 20}
IMAGES = 600

Classes = dict[str, list[Path]]
"""The images of each class; both sorted by name."""


@register("dataset", "mini_imagenet")
@dataclass(frozen=True)
class MiniImageNet:
    """Reads `DATA_ROOT/mini-imagenet`, in any layout. Nothing is downloaded: ImageNet may not be handed on."""

    image_size: int = setting(84, least=1, most=LARGEST)

    def load(self, split: str, place: Place) -> ClassBank:
        folder, layout = _find(place.root)
        check_disjoint({s: layout.names(folder, s) for s in SPLITS}, str(folder))
        bank = layout.bank(folder, split, self.image_size, place)
        _warn_of_size(folder, split, bank)
        return bank


def _warn_of_size(folder: Path, split: str, bank: ClassBank) -> None:
    """A part of it will do to try things out, but no paper's number was measured on it."""
    if wrong := [(name, size) for name, size in zip(bank.names, bank.sizes.tolist()) if size != IMAGES]:
        found = f"{wrong[0][1]} images of '{wrong[0][0]}' in {split}"
    elif len(bank) != CLASSES[split]:
        found = f"{len(bank)} classes in {split}"
    else:
        return
    wanted = f"{' / '.join(map(str, CLASSES.values()))} classes with {IMAGES} images each"
    warnings.warn(f"{folder} has {found}; published numbers are for {wanted}", stacklevel=3)


# Layouts: where the images of each class are.


@dataclass(frozen=True)
class Layout:
    """`lacks` tells what is not there, `names` the classes of a split, and `bank` prepares them at a side length."""

    lacks: Callable[[Path], list[str]]
    names: Callable[[Path, str], list[str]]
    bank: Callable[[Path, str, int, Place], ClassBank]


def _find(data_root: Path) -> tuple[Path, Layout]:
    """The folder and how it is laid out; `InputError` with what to put where."""
    with reading(data_root):
        there = [data_root / name for name in FOLDERS if (data_root / name).is_dir()]
        lacks = {(folder, layout): layout.lacks(folder) for folder in there for layout in LAYOUTS}
    for found, missing in lacks.items():
        if not missing:
            return found
    folder, what = data_root / FOLDERS[0], "is not there"
    if lacks:
        (folder, _), missing = min(lacks.items(), key=lambda item: len(item[1]))
        what = f"lacks {', '.join(missing)}"
    raise InputError(
        f"mini-ImageNet: {folder} {what}. Put train/, val/ and test/ there, each with a folder of images for each "
        "class, or images/ with train.csv, val.csv and test.csv (filename,label), or the caches "
        "mini-imagenet-cache-train.pkl, -val.pkl and -test.pkl; or set METARUN_DATA or data_root=... to the folder "
        "that holds it. ImageNet's terms forbid handing it on, so metarun cannot fetch "
        "it; dataset=glyphs needs no files"
    )


def _absent(needs: tuple[str, ...], folder: Path) -> list[str]:
    return [name for name in needs if not (folder / name).exists()]


def _of_files(images: Callable[[Path, str], Classes], folder: Path, split: str, side: int, place: Place) -> ClassBank:
    refs = {name: [Ref(str(path)) for path in paths] for name, paths in images(folder, split).items()}
    return image_bank("mini_imagenet", split, refs, Form(side), place)


def _class_folders(folder: Path, split: str) -> list[str]:
    with reading(folder / split), os.scandir(folder / split) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    if not names:
        raise InputError(f"{folder / split} holds no folders: put one with images there for each class")
    return names


def _in_folders(folder: Path, split: str) -> Classes:
    classes: Classes = {}
    for name in _class_folders(folder, split):
        place = folder / split / name
        with reading(place):
            files = sorted(file for file in os.listdir(place) if not file.startswith("."))  # noqa: PTH208
        classes[name] = [place / file for file in files if is_image(file)]
        if not classes[name]:
            raise InputError(f"{place} holds no images: put the images of that class there, or remove it")
    return classes


def _rows(folder: Path, split: str) -> list[tuple[str, str]]:
    """(filename, label) of each image of a split, sorted"""
    path = folder / f"{split}.csv"
    found = sorted((row["filename"], row["label"]) for _, row in read_csv(path, ["filename", "label"]))
    if not found or not all(cell for row in found for cell in row):
        raise InputError(f"{path} {'has lines without an image or a class' if found else 'names no images'}")
    return found


def _labels(folder: Path, split: str) -> list[str]:
    return sorted({label for _, label in _rows(folder, split)})


def _in_csv(folder: Path, split: str) -> Classes:
    with reading(folder / "images"):
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


# Caches: the pixels of a split in one file.


PIXELS = ("image_data", "data", "images")
ROWS = "class_dict"
"""class -> the numbers of its images"""
LABELS = ("labels", "targets")
"""of each image"""
NAMES = "catname2label"
"""class -> its label"""


def _cache_names(split: str) -> list[str]:
    phase = "train_phase_train" if split == "train" else split
    stems = (f"mini-imagenet-cache-{split}", f"miniImageNet_category_split_{phase}", split)
    return [f"{stem}.{suffix}" for stem in stems for suffix in ("pkl", "pickle", "npz")]


def _no_caches(folder: Path) -> list[str]:
    return [f"a cache of {s}" for s in SPLITS if not any((folder / name).is_file() for name in _cache_names(s))]


def _cache(folder: Path, split: str) -> tuple[Path, str]:
    """The cache file of a split, and what changes when it does."""
    path = next(folder / name for name in _cache_names(split) if (folder / name).is_file())
    return path, f"1 {path.name} {stamp([Ref(str(path))])}"


def _cache_index(folder: Path, split: str) -> dict[str, Any]:
    """`names` of the classes, sorted; `rows`, the numbers of their images, class by class from `offsets` on.

    Kept, for to read it takes seconds.
    """
    path, key = _cache(folder, split)

    def make() -> dict[str, Any]:
        content = _content(path)
        classes = _classes_of(path, split, content, len(_pixels_of(path, content)))
        sizes = [0, *(len(rows) for rows in classes.values())]
        rows = torch.tensor([row for rows in classes.values() for row in rows])
        return {"names": list(classes), "rows": rows, "offsets": torch.tensor(sizes).cumsum(0)}

    return cached(f"mini_imagenet-{split}-index", key, make)


def _cached_names(folder: Path, split: str) -> list[str]:
    return _cache_index(folder, split)["names"]


def _of_cache(folder: Path, split: str, side: int, place: Place) -> ClassBank:
    path, key = _cache(folder, split)
    index = _cache_index(folder, split)
    rows, pixels = index["rows"].tolist(), Pixels(path)
    name, item = f"mini_imagenet-{split}", (3, side, side)
    made = packed(name, key, rows, item, lambda row: pixels(row, side), workers=1)  # all pixels are in memory here
    return ClassBank(made.items, index["offsets"].clone(), tuple(index["names"]), made.checksum)


class Pixels:
    """Gives the images of a cache file, which is read when the first is asked for."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._all: np.ndarray | None = None

    def __call__(self, row: int, side: int) -> bytes:
        """Channel by channel"""
        with self._lock:
            if self._all is None:
                self._all = _pixels_of(self._path, _content(self._path))
        image = self._all[row]
        if image.shape != (side, side, 3):
            from PIL import Image

            image = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS))
        return image.transpose(2, 0, 1).tobytes()


def _content(path: Path) -> dict[Any, Any]:
    content = read_npz(path) if path.suffix == ".npz" else read_pickle(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} is no cache of images: it holds no names, such as {PIXELS[0]} and {ROWS}")
    return content


def _pixels_of(path: Path, content: dict[Any, Any]) -> np.ndarray:
    """(n, h, w, 3) uint8"""
    pixels = next((content[name] for name in PIXELS if name in content), None)
    if pixels is None:
        raise InputError(f"{path} holds no images: it has none of {', '.join(PIXELS)}")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 4 or not pixels.size:
        raise InputError(f"{path}: its images must be a uint8 array of shape (n, height, width, 3)")
    if pixels.shape[3] != 3 and pixels.shape[1] == 3:
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.shape[3] != 3:
        raise InputError(f"{path}: its images are of shape {pixels.shape}, where (n, height, width, 3) is wanted")
    return pixels


def _classes_of(path: Path, split: str, content: dict[Any, Any], images: int) -> dict[str, list[int]]:
    """The images of each class by number; both sorted."""
    given = next((content[name] for name in LABELS if name in content), None)
    found: dict[str, list[int]] = {}
    if isinstance(content.get(ROWS), dict):
        found = {str(name): _numbers(path, ROWS, rows) for name, rows in content[ROWS].items()}
    elif given is not None:
        labels, named = _numbers(path, LABELS[0], given), content.get(NAMES)
        named = named if isinstance(named, dict) else {}
        names = {label: str(name) for name, label in named.items() if isinstance(label, int)}
        if len(labels) != images:
            raise InputError(f"{path} has {len(labels)} {LABELS[0]} for {images} images")
        for row, label in enumerate(labels):
            found.setdefault(names.get(label, f"{split}{label:03d}"), []).append(row)
    if not found or not all(found.values()):
        raise InputError(f"{path} {'has a class without images' if found else f'names no classes: it lacks {ROWS}'}")
    rows = Counter(row for rows in found.values() for row in rows)
    if wrong := [row for row, count in rows.items() if count > 1 or not 0 <= row < images]:
        why = f"there are {images}" if rows[wrong[0]] == 1 else "only once is right"
        raise InputError(f"{path}: its classes name image {wrong[0]} {rows[wrong[0]]} times, and {why}")
    return {name: sorted(found[name]) for name in sorted(found)}


def _numbers(path: Path, what: str, values: Any) -> list[int]:
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        array = np.empty((0, 0))  # lists of different lengths, or what no array holds
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"{path}: {what} must hold lists of whole numbers")
    return [int(number) for number in array]


LAYOUTS = (
    Layout(partial(_absent, SPLITS), _class_folders, partial(_of_files, _in_folders)),
    Layout(partial(_absent, ("images", *(f"{s}.csv" for s in SPLITS))), _labels, partial(_of_files, _in_csv)),
    Layout(_no_caches, _cached_names, _of_cache),
)
