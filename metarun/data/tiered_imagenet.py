"""tiered-ImageNet: 608 classes of ImageNet, split so that train and test differ in their 34 superclasses.

Ren et al. 2018, "Meta-Learning for Semi-Supervised Few-Shot Classification": 351 / 97 / 160 classes (20 / 6 / 8
superclasses), 779,165 images of 84x84. Which classes are in which split is for the folders to say.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from metarun.data.benchmark import Benchmark
from metarun.data.images import Classes, folders
from metarun.data.reading import reading
from metarun.data.splits import check_disjoint
from metarun.types import SPLITS, register


@register("dataset", "tiered_imagenet")
@dataclass(frozen=True)
class TieredImageNet(Benchmark):
    """Reads `DATA_ROOT/tiered-imagenet`, a folder of images for each class in train/, val/ and test/."""

    places = ("tiered-imagenet", "tiered_imagenet")
    needs = SPLITS
    put = "train/, val/ and test/, each with a folder of images for each class,"
    counts = (351, 97, 160)

    def classes(self, folder: Path, split: str) -> Classes:
        names = {}
        for name in SPLITS:
            with reading(folder / name):
                names[name] = os.listdir(folder / name)  # noqa: PTH208
        visible = {name: [entry for entry in names[name] if not entry.startswith(".")] for name in SPLITS}
        check_disjoint(visible, str(folder))
        return folders(folder / split)
