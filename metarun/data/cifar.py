"""CIFAR-FS and FC100: the 100 classes of CIFAR-100, 600 images each, split in two ways.

CIFAR-FS (Bertinetto et al. 2019, "Meta-learning with Differentiable Closed-form Solvers"): 64 / 16 / 20 classes at
random. FC100 (Oreshkin et al. 2018, "TADAM"): 60 / 20 / 20, so that no superclass is in two splits, which is harder.
Images: Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; home:
https://www.cs.toronto.edu/~kriz/cifar.html. Items are (3, 32, 32) uint8.

Looked for below `data_root`, the first that is there:

    cifar-fs, cifar_fs, CIFAR-FS, cifar100, cifar100-subset    a folder, or a zip file, with a folder of images for each
                                                               class anywhere in it; the release of CIFAR-FS is one
    cifar-100-binary                                           train.bin, test.bin and fine_label_names.txt, as a folder
                                                               or as cifar-100-binary.tar.gz, which is not unpacked
"""

from __future__ import annotations

import tarfile
import warnings
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar

import numpy as np
import torch

from metarun.cache import cached
from metarun.data.bank import ClassBank
from metarun.data.benchmark import below
from metarun.data.download import Published, fetch
from metarun.data.imagefolder import chosen
from metarun.data.images import image_bank, zipped
from metarun.data.pixels import Form, Ref
from metarun.data.reading import reading
from metarun.data.splits import listed, published
from metarun.types import InputError, Place, register

FOLDERS = ("cifar-fs", "cifar_fs", "CIFAR-FS", "cifar100", "cifar100-subset")
BINARY = "cifar-100-binary"
ARCHIVE = Published(
    f"{BINARY}.tar.gz",
    (f"https://www.cs.toronto.edu/~kriz/{BINARY}.tar.gz",),
    "03b5dce01913d631647c71ecec9e9cb8",
)
NAMES, PARTS = "fine_label_names.txt", {"train.bin": 50_000, "test.bin": 10_000}
"""the names of the classes, and the images in each part"""
ITEM = (3, 32, 32)
ROW = 2 + 3 * 32 * 32
"""bytes of an image: its superclass, its class, its red, green and blue, row by row"""
IMAGES = 600
LONGEST_LIST = 2**16
"""bytes of a list of class names"""


@dataclass(frozen=True)
class Cifar100(ABC):
    split: ClassVar[str]
    """which list of classes"""

    def load(self, split: str, place: Place) -> ClassBank:
        path = _find(place)
        if path.name.startswith(BINARY):
            bank = _binary(self.split, path, split)
        else:
            found = below(path) if path.is_dir() else _listed(path, *_stat(path))
            classes = chosen(found, listed(published(self.split), found, str(path)), split)
            bank = image_bank(self.split, split, classes, Form(32), place)
        if (smallest := int(bank.sizes.min())) != IMAGES:
            name = bank.names[int(bank.sizes.argmin())]
            warnings.warn(
                f"{path} has {smallest} images of '{name}'; published numbers are for {IMAGES} a class", stacklevel=2
            )
        return bank


@register("dataset", "cifar_fs")
@dataclass(frozen=True)
class CifarFS(Cifar100):
    split = "cifar_fs"


@register("dataset", "fc100")
@dataclass(frozen=True)
class FC100(Cifar100):
    split = "fc100"


def _find(place: Place) -> Path:
    """What there is of CIFAR-100, else the binary version, downloaded."""
    root = place.root
    options = [*(f"{name}{suffix}" for name in FOLDERS for suffix in ("", ".zip")), BINARY, ARCHIVE.name]
    with reading(root):
        there = [root / name for name in options if (root / name).exists()]
    if not there and place.offline:
        raise InputError(
            f"no CIFAR-100 in {root}, and data.offline=true: put {FOLDERS[0]} there, a folder or zip file with a "
            f"folder of images for each class, or {ARCHIVE.name} from {ARCHIVE.urls[0]}; or set METARUN_DATA or "
            "data_root=... to the folder that holds one of them; dataset=glyphs needs no files"
        )
    return there[0] if there else fetch(*ARCHIVE, root, place)


def _stat(path: Path) -> tuple[int, int]:
    """Changes when a file does."""
    with reading(path):
        status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1)
def _listed(path: Path, size: int, time: int) -> Mapping[str, list[Ref]]:
    """What is in a zip file: the list of 60,000 images takes half a second to read, and three splits ask for it."""
    return zipped(path)


def _binary(name: str, path: Path, split: str) -> ClassBank:
    """The classes of one split from the binary version, kept after the first time."""
    files = [path / file for file in (NAMES, *PARTS)] if path.is_dir() else [path]
    stamps = [_stat(file) for file in files]
    kept = cached(f"{name}-{split}", f"1 {path} {stamps}", lambda: _gathered(name, path, split))
    offsets = torch.cat([kept["sizes"].new_zeros(1), kept["sizes"].cumsum(0)])
    return ClassBank(kept["items"], offsets, tuple(kept["names"]))


def _gathered(name: str, path: Path, split: str) -> dict[str, Any]:
    """`items` (images, 3, 32, 32) uint8 grouped by class, `sizes` (classes,), `names`."""
    with reading(path), _opened(path) as read:
        fine = read(NAMES, LONGEST_LIST).decode("utf-8").split()
        own = sorted(listed(published(name), fine, f"{path}: {NAMES}")[split])
        wanted = np.array([fine.index(label) for label in own])
        rows, labels = [], []
        for part, count in PARTS.items():
            table = _table(path / part, read(part, count * ROW), len(fine))
            keep = np.isin(table[:, 1], wanted)
            rows.append(table[keep, 2:])
            labels.append(table[keep, 1])
    of = np.concatenate(labels)
    order = np.concatenate([np.flatnonzero(of == label) for label in wanted])
    sizes = torch.tensor([int((of == label).sum()) for label in wanted])
    if not sizes.all():
        raise InputError(f"{path} has no images of '{own[int(sizes.argmin())]}': take a whole copy")
    return {"items": torch.from_numpy(np.concatenate(rows)[order]).view(-1, *ITEM), "sizes": sizes, "names": own}


def _table(path: Path, data: bytes, classes: int) -> np.ndarray:
    """(images, ROW) uint8"""
    if not data or len(data) % ROW:
        raise InputError(f"{path} is cut short, {len(data):,} bytes are no whole images: take a whole copy")
    table = np.frombuffer(data, np.uint8).reshape(-1, ROW)
    if (label := int(table[:, 1].max())) >= classes:
        raise InputError(f"{path} has an image of class {label}, of {classes}: take a whole copy")
    return table


@contextmanager
def _opened(path: Path) -> Iterator[Callable[[str, int], bytes]]:
    """Gives the function that reads a file of the binary version, which may have so many bytes."""

    def read(file: IO[bytes] | None, name: str, most: int) -> bytes:
        if file is None:
            raise InputError(f"{path} holds no {name}: take a whole copy")
        with file:
            data = file.read(most + 1)
        if len(data) > most:
            raise InputError(f"{path / name} is larger than CIFAR-100's, {most:,} bytes: take a whole copy")
        return data

    if path.is_dir():
        yield lambda name, most: read((path / name).open("rb"), name, most)
        return
    with tarfile.open(path, "r:gz") as archive:
        members = {PurePosixPath(member.name).name: member for member in archive if member.isfile()}
        yield lambda name, most: read(archive.extractfile(members[name]) if name in members else None, name, most)
