"""mini-ImageNet: 100 classes of ImageNet with 600 images each, of which 64 are for training and 20 for testing.

Vinyals et al. 2016, "Matching Networks for One Shot Learning", in the split of Ravi & Larochelle 2017,
"Optimization as a Model for Few-Shot Learning", which all later papers report on: 64 / 16 / 20 classes.

Items are (3, 84, 84) uint8, shrunk from whatever size the files have with the Lanczos filter and without regard to
their shape, as MAML's script does; `image_size` says another side (Chen et al. 2019 give ResNets 224). Which classes
are in which split is for the files to say: `train/`, `val/` and `test/` with a folder of images for each class, or
`images/` beside the `train.csv`, `val.csv` and `test.csv` (`filename,label`) that Ravi & Larochelle published.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from metarun.data.bank import ClassBank
from metarun.data.images import LARGEST, Form, Ref, image_bank, is_image
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
    """Reads `DATA_ROOT/mini-imagenet`, in either layout. Nothing is downloaded: ImageNet may not be handed on."""

    image_size: int = setting(84, least=1, most=LARGEST)

    def load(self, split: str, place: Place) -> ClassBank:
        folder, layout = _find(place.root)
        check_disjoint({s: layout.names(folder, s) for s in SPLITS}, str(folder))
        classes = layout.images(folder, split)
        _warn_of_size(folder, split, classes)
        refs = {name: [Ref(str(path)) for path in paths] for name, paths in classes.items()}
        return image_bank("mini_imagenet", split, refs, Form(self.image_size), place)


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


def _find(data_root: Path) -> tuple[Path, Layout]:
    """The folder and how it is laid out; `InputError` with what to put where."""
    with reading(data_root):
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


LAYOUTS = (
    Layout(SPLITS, _class_folders, _in_folders),
    Layout(("images", *(f"{split}.csv" for split in SPLITS)), _labels, _in_csv),
)
