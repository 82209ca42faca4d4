"""FGVC-Aircraft: 10,000 photographs of 100 variants of aircraft.

Maji et al. 2013, "Fine-Grained Visual Classification of Aircraft", release 2013b; home:
https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft. As in Meta-Dataset (Triantafillou et al. 2020) the variants are
the classes, and images are cut to the aircraft's box, which also takes the line with the photographer's name away.
The split has Meta-Dataset's 70 / 15 / 15 classes, but drawn by `split_seed`: it is not Meta-Dataset's own list.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metarun.data.benchmark import Box, Shuffled, box_of, boxes, file_name, lines
from metarun.data.download import Published
from metarun.data.images import Classes
from metarun.data.pixels import Ref
from metarun.types import register, setting

LISTS = ("images_variant_trainval.txt", "images_variant_test.txt")
BOXES = "images_box.txt"


@register("dataset", "aircraft")
@dataclass(frozen=True)
class Aircraft(Shuffled):
    places = ("fgvc-aircraft-2013b", "fgvc-aircraft-2013b/fgvc-aircraft-2013b", "aircraft")
    needs = ("data/images", *(f"data/{name}" for name in LISTS))
    archive = Published(
        "fgvc-aircraft-2013b.tar.gz",
        ("https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",),
    )
    put = f"data/ with images/, {', '.join(LISTS)} and {BOXES}"
    counts = (70, 15, 15)

    crop: bool = setting(True)

    def every(self, folder: Path) -> Classes:
        data = folder / "data"
        known = boxes(data / BOXES) if self.crop else {}

        def box(image: str) -> Box | None:
            if not self.crop:
                return None
            # Pixels are counted from 1 there, and the last is part of the box.
            left, top, right, bottom = box_of(image, known, data / BOXES)
            return left - 1, top - 1, right, bottom

        found: dict[str, set[Ref]] = {}
        for name in LISTS:
            for line, (image, variant) in lines(data / name, 2):
                file = f"{data}/images/{file_name(image, data / name, line)}.jpg"
                found.setdefault(variant, set()).add(Ref(file, box=box(image)))
        return {variant: sorted(found[variant]) for variant in sorted(found)}
