"""What published benchmarks have in common: a folder below `data_root`, and a class split of it."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from metarun.data.archive import made_from, unpacked
from metarun.data.bank import ClassBank
from metarun.data.download import Published, fetch
from metarun.data.imagefolder import chosen
from metarun.data.images import Classes, image_bank, is_image
from metarun.data.pixels import FITS, LARGEST, Box, Form, Ref
from metarun.data.reading import reading
from metarun.data.splits import by_chance
from metarun.data.tables import number
from metarun.types import SPLITS, InputError, Place, setting


@dataclass(frozen=True)
class Benchmark(ABC):
    """Colour images of classes that others have split."""

    places: ClassVar[tuple[str, ...]]
    """the names that the folder may have below `data_root`; the first is the one that is asked for"""
    needs: ClassVar[tuple[str, ...]] = ()
    """what must be in it"""
    archive: ClassVar[Published | None] = None
    """the file that it is published as, which will do in the folder's place, and is downloaded where both lack"""
    beside: ClassVar[tuple[Published, ...]] = ()
    """files that are published beside the archive, and belong into the same folder"""
    put: ClassVar[str]
    """what to put there, said to whoever has not"""
    counts: ClassVar[tuple[int, int, int]]
    """classes of train, val and test, as published"""

    image_size: int = setting(84, least=1, most=LARGEST)
    fit: str = setting("stretch", choices=FITS)

    @abstractmethod
    def classes(self, folder: Path, split: str) -> Classes:
        """The classes of one split, sorted by name. Raises `InputError` for what cannot be read."""

    def load(self, split: str, place: Place) -> ClassBank:
        folder = self.folder(place)
        classes = self.classes(folder, split)
        wanted = self.counts[SPLITS.index(split)]
        if len(classes) != wanted:
            warnings.warn(
                f"{folder} has {len(classes)} classes in {split}; published numbers are for {wanted}", stacklevel=2
            )
        return image_bank(type(self).__name__.lower(), split, classes, Form(self.image_size, 3, self.fit), place)

    def folder(self, place: Place) -> Path:
        """The first of the folders that holds all that is needed, or that of the archive.

        Raises `InputError` with what to put where.
        """
        root, archive = place.root, self.archive
        with reading(root):
            there = [root / name for name in self.places if (root / name).is_dir()]
            if not there and archive and (inside := contents(archive, place)):
                for file in self.beside:
                    fetch(*file, inside, place)
                there = [inside / name for name in self.places if (inside / name).is_dir()] or [inside]
            lacks = {folder: [name for name in self.needs if not (folder / name).exists()] for folder in there}
        for folder, missing in lacks.items():
            if not missing:
                return folder
        what = f"{there[0]} lacks {', '.join(lacks[there[0]])}" if there else f"{root / self.places[0]} is not there"
        or_archive = f", or {archive.name} into {root} (from {archive.urls[0]})" if archive else ""
        raise InputError(
            f"{what}. Put {self.put} there{or_archive}, or set METARUN_DATA or data_root=... to the folder that holds "
            "it; dataset=glyphs needs no files"
        )


@dataclass(frozen=True)
class Shuffled(Benchmark):
    """A benchmark whose class lists are not at hand: as many classes in each split, drawn by `split_seed`."""

    split_seed: int = setting(0, least=0)

    @abstractmethod
    def every(self, folder: Path) -> Classes:
        """The classes of all splits. Raises `InputError` for what cannot be read."""

    def classes(self, folder: Path, split: str) -> Classes:
        every = self.every(folder)
        try:
            drawn = by_chance(every, self.split_seed, [count / sum(self.counts) for count in self.counts])
        except ValueError as error:
            raise InputError(f"{folder}: {error}; put {self.put} there") from None
        return chosen(every, drawn, split)


def contents(archive: Published, place: Place) -> Path | None:
    """The folder that an archive is unpacked to, downloaded if need be; None where it lacks and none may be."""
    path, into = place.root / archive.name, place.root / f"{archive.name.partition('.')[0]}-unpacked"
    if not made_from(path, into):
        if place.offline and not path.is_file():
            return None
        fetch(*archive, place.root, place)
    return unpacked(path, into)


def below(folder: Path) -> dict[str, list[Ref]]:
    """The classes anywhere below a folder: an image's class is the folder that it lies in, wherever that is."""
    found: dict[str, list[Ref]] = {}
    with reading(folder):
        for here, inside, files in os.walk(folder, onerror=_raise):
            inside[:] = [name for name in inside if not name.startswith((".", "__MACOSX"))]
            if images := [Ref(f"{here}/{file}") for file in files if is_image(file)]:
                found.setdefault(Path(here).name, []).extend(images)
    return {name: sorted(found[name]) for name in sorted(found)}


def _raise(error: OSError) -> None:
    raise error


def lines(path: Path, words: int) -> Iterator[tuple[int, list[str]]]:
    """(line number, words) of each line of a file of text; the last word is the rest of the line.

    Raises `InputError` for a file that cannot be read, or a line of fewer words.
    """
    with reading(path):
        text = path.read_text(encoding="utf-8-sig")
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            found = content.split(maxsplit=words - 1)
            if len(found) < words:
                raise InputError(f"{path}, line {line}: has {len(found)} words, where {words} are wanted")
            yield line, [word.strip() for word in found]


def file_name(name: str, path: Path, line: int) -> str:
    """A name that a list gives to a file of its own folder. Raises `InputError` for one that leads elsewhere."""
    if not name or "/" in name or "\0" in name:
        raise InputError(f"{path}, line {line}: '{name[:40]}' is not the name of an image")
    return name


def boxes(path: Path) -> dict[str, Box]:
    """The four numbers that a file of text has on a line for each image, by the image's name."""
    found: dict[str, Box] = {}
    for line, (image, *words) in lines(path, 5):
        a, b, c, d = (number(word, path, line, "a box") for word in words)
        found[image] = a, b, c, d
    return found


def box_of(image: str, known: dict[str, Box], path: Path) -> Box:
    if image not in known:
        raise InputError(f"{path} has no box for {image}: take a whole copy, or set dataset.crop=false")
    return known[image]
