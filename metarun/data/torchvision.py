"""Any classification data of torchvision, by the name that it has there: dataset=torchvision dataset.name=MNIST.

All images are together, those for training and those for testing, for it is the classes that are split here: by
`lists` (as in `imagefolder`), else by `ratios` and `split_seed`. The files are where torchvision puts them below
`data_root`, and it fetches what is missing where `download` allows. What unpickles, CIFAR's, it reads only after the
published checksum.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils.data import ConcatDataset

from metarun.cache import cached
from metarun.data.bank import ClassBank
from metarun.data.chunks import Broken
from metarun.data.imagefolder import read_lists
from metarun.data.images import stamp
from metarun.data.packed import packed
from metarun.data.pixels import LARGEST, Form, Ref, as_bytes
from metarun.data.reading import reading
from metarun.data.splits import RATIOS, Split, by_chance, check_ratios, listed
from metarun.types import InputError, Place, register, setting

Settings = dict[str, Any]


def _of(key: str, *values: Any) -> tuple[Settings, ...]:
    return tuple({key: value} for value in values)


WHOLE: tuple[Settings, ...] = ({},)
TRAIN = _of("train", True, False)
HALVES = _of("split", "train", "test")
THIRDS = _of("split", "train", "val", "test")
KNOWN: dict[str, tuple[tuple[Settings, ...], tuple[str, ...]]] = {
    "MNIST": (TRAIN, ("MNIST",)),
    "FashionMNIST": (TRAIN, ("FashionMNIST",)),
    "KMNIST": (TRAIN, ("KMNIST",)),
    "EMNIST": (TRAIN, ("EMNIST",)),
    "QMNIST": (TRAIN, ("QMNIST",)),
    "USPS": (TRAIN, ("usps.bz2", "usps.t.bz2")),
    "SEMEION": (WHOLE, ("semeion.data",)),
    "CIFAR10": (TRAIN, ("cifar-10-batches-py",)),
    "CIFAR100": (TRAIN, ("cifar-100-python",)),
    "SVHN": (HALVES, ("train_32x32.mat", "test_32x32.mat")),
    "STL10": (HALVES, ("stl10_binary",)),
    "GTSRB": (HALVES, ("gtsrb",)),
    "EuroSAT": (WHOLE, ("eurosat",)),
    "DTD": (THIRDS, ("dtd",)),
    "Flowers102": (THIRDS, ("flowers-102",)),
    "FGVCAircraft": (_of("split", "trainval", "test"), ("fgvc-aircraft-2013b",)),
    "OxfordIIITPet": (_of("split", "trainval", "test"), ("oxford-iiit-pet",)),
    "StanfordCars": (HALVES, ("stanford_cars",)),
    "Food101": (HALVES, ("food-101",)),
    "Imagenette": (_of("split", "train", "val"), ("imagenette2", "imagenette2-320", "imagenette2-160")),
    "Caltech101": (WHOLE, ("caltech101",)),
    "Caltech256": (WHOLE, ("caltech256",)),
    "SUN397": (WHOLE, ("SUN397",)),
    "Country211": (_of("split", "train", "valid", "test"), ("country211",)),
}
"""By torchvision's name: the arguments that give each of its parts, and the files or folders that hold it"""
LABELS = ("targets", "labels", "_labels", "y", "_samples")
"""what torchvision's datasets call their labels; `_samples` are pairs of file and label"""
OURS = {"root", "download", "loader", "transform", "transforms", "target_transform"}
"""arguments that are not for the person to give"""


@dataclass(frozen=True)
class FromTorchvision:
    called: ClassVar[str]
    """torchvision's name for it"""

    args: dict[str, Any] = setting({})
    download: bool = setting(True)
    lists: str | None = setting(None)
    ratios: list[float] = setting(list(RATIOS))
    split_seed: int = setting(0, least=0)
    image_size: int = setting(32, least=1, most=LARGEST)
    channels: int = setting(3, least=1, most=3)

    def __post_init__(self) -> None:
        check_ratios(self.ratios)
        if self.channels == 2:
            raise ValueError("channels=2: images are grey (1) or in colour (3)")
        if taken := sorted(self.args.keys() & (OURS | KNOWN[self.called][0][0].keys())):
            raise ValueError(f"args: '{taken[0]}' is not yours to give, for all parts of {self.called} are read")

    def load(self, split: str, place: Place) -> ClassBank:
        source = Source(self.called, json.dumps(self.args), place.root, self.download and not place.offline)
        with reading(place.root):
            files = list(_files(place.root, KNOWN[self.called][1]))
        if not files:
            opened(source)  # which brings them there
            files = list(_files(place.root, KNOWN[self.called][1]))
        source = replace(source, stamp=stamp(files))
        key = f"1 {self.called} {self.args} {source.stamp}"
        kept = cached(f"torchvision-{self.called}", key, lambda: index(source))
        labels, names = kept["labels"], kept["names"]
        own = sorted(self._split(names, place)[split])
        rows = [(labels == names.index(label)).nonzero()[:, 0] for label in own]
        row, form = torch.cat(rows).tolist(), Form(self.image_size, self.channels)
        made = packed(
            f"{self.called}-{split}",
            f"{key} {form} {own}",
            row,
            form.item,
            Decoder(source, form),
            skip_broken=place.skip_broken,
        )
        gone = set(made.left_out)
        there = torch.tensor([i not in gone for i in range(len(row))])
        sizes = torch.stack([part.sum() for part in there.split([len(part) for part in rows])])
        if not sizes.all():
            label = own[int(sizes.argmin())]
            raise InputError(f"{self.called}: no image of class '{label}' decodes: put a whole copy there")
        return ClassBank(made.items, torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), tuple(own), made.checksum)

    def _split(self, names: Sequence[str], place: Place) -> Split:
        if self.lists is not None:
            path = place.root / Path(self.lists).expanduser()
            return listed(read_lists(path), names, str(path))
        try:
            return by_chance(names, self.split_seed, self.ratios)
        except ValueError as error:
            raise InputError(f"{self.called}: {error}") from None


@dataclass(frozen=True)
class Source:
    """Files of a dataset of torchvision's. `args`: as json; `stamp`: changes when the files do."""

    called: str
    args: str
    root: Path
    download: bool
    stamp: str = ""


@lru_cache(maxsize=1)
def opened(source: Source) -> ConcatDataset[Any]:
    """All parts, one after another; fetched where they lack. Raises `InputError` where torchvision refuses, saying why.

    Kept, for some read all their images at once.
    """
    from torchvision import datasets

    make, args = getattr(datasets, source.called), json.loads(source.args)
    parts, files = KNOWN[source.called]
    try:
        inspect.signature(make).bind(source.root, **args | parts[0], download=False)
    except TypeError as error:
        raise InputError(
            f"dataset.args={args}: torchvision's {source.called} refuses them ({error}); give what it takes as "
            "dataset.args={KEY: VALUE}"
        ) from None
    why = ""
    for download in (False, True)[: 1 + source.download]:
        try:
            return ConcatDataset([make(source.root, **args | part, download=download) for part in parts])
        except Exception as error:  # missing, damaged, forbidden or unknown: it has no one way to say so
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    fetch = "" if source.download else ", or allow the download: data.offline=false, dataset.download=true"
    raise InputError(
        f"torchvision's {source.called} cannot be had from {source.root} ({why}): put whole copies of "
        f"{' and '.join(files)} there by hand, as torchvision keeps them{fetch}; its arguments are {args}"
    )


def index(source: Source) -> Settings:
    """`labels` (images,) int64 and `names`, each once, of the classes that have images."""
    parts = opened(source).datasets
    try:
        there, labels = torch.cat([_labels(part) for part in parts]).unique(return_inverse=True)
        given = getattr(parts[0], "classes", None) or getattr(parts[0], "categories", None)
        names = [str(c) if given is None else _name(given[c]) for c in there.tolist()]
    except Exception as error:  # not as many labels as images, say: what is damaged shows itself in any way
        raise InputError(
            f"torchvision's {source.called} in {source.root} has labels that do not fit ({error}): put whole copies "
            f"of {' and '.join(KNOWN[source.called][1])} there"
        ) from None
    if len(set(names)) < len(names):
        names = [f"{c} {name}" for c, name in zip(there.tolist(), names)]
    return {"labels": labels, "names": names}


@dataclass(frozen=True)
class Decoder:
    """Images, by their number, to the bytes of `form.item`."""

    source: Source
    form: Form

    def __call__(self, row: int) -> bytes:
        """Raises `Broken` for an image that does not decode."""
        every = opened(self.source)
        try:
            return as_bytes(every[row][0], self.form)
        except Exception as error:
            # A broken image may raise nearly anything.
            called = self.source.called
            raise Broken(f"image {row:,} of {called} does not decode ({type(error).__name__}: {error})") from error


def _labels(part: Any) -> torch.Tensor:
    """(images,) int64"""
    given = next(getattr(part, name) for name in LABELS if hasattr(part, name))
    if isinstance(given, list) and given and isinstance(given[0], tuple):
        given = [label for _, label in given]
    return torch.as_tensor(given).long().reshape(len(part), -1)[:, 0]  # QMNIST's have more columns


def _name(given: Any) -> str:
    """Some classes have several names."""
    return given if isinstance(given, str) else str(given[0])


def _files(root: Path, names: Sequence[str]) -> Iterator[Ref]:
    """What there is of the files, and in the folders, `names`."""
    for name in names:
        place = root / name
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file():
                yield Ref(str(file))


for _called in KNOWN:
    register("dataset", _called)(type(_called, (FromTorchvision,), {"called": _called, "__module__": __name__}))
