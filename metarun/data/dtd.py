"""Describable Textures: 5,640 images of 47 textures, 120 each.

Cimpoi et al. 2014, "Describing Textures in the Wild"; home: https://www.robots.ox.ac.uk/~vgg/data/dtd. The split has
Meta-Dataset's 33 / 7 / 7 classes (Triantafillou et al. 2020), but drawn by `split_seed`: it is not Meta-Dataset's own
list.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metarun.data.benchmark import Shuffled
from metarun.data.download import Published
from metarun.data.images import Classes, folders
from metarun.types import register


@register("dataset", "dtd")
@dataclass(frozen=True)
class Dtd(Shuffled):
    places = ("dtd", "dtd/dtd")
    needs = ("images",)
    archive = Published(
        "dtd-r1.0.1.tar.gz",
        ("https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",),
        "fff73e5086ae6bdbea199a49dfb8a4c1",
    )
    put = "images/ with its 47 folders"
    counts = (33, 7, 7)

    def every(self, folder: Path) -> Classes:
        return folders(folder / "images")
