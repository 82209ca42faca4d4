"""GTSRB: German traffic signs of 43 classes, 39,209 training images cut from video.

Stallkamp et al. 2011, "The German Traffic Sign Recognition Benchmark"; home: https://benchmark.ini.rub.de. A track is
30 pictures of one sign, taken as the camera came nearer: they are nearly the same image, so support and queries of an
episode never share a track (the number before the underscore in a file's name).

Meta-Dataset (Triantafillou et al. 2020) tests on all 43 classes and trains on none. To train on some, they are split
27 / 8 / 8 by `split_seed` here, which is nobody's published split; to test on all of them, use dataset=union with
{name: gtsrb, use: {test: [train, val, test]}}.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metarun.data.benchmark import Shuffled, file_name
from metarun.data.download import Published
from metarun.data.images import Classes, folders
from metarun.data.pixels import Ref
from metarun.data.tables import Row, number, read_csv
from metarun.types import register, setting

CORNERS = ("Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2")


@register("dataset", "gtsrb")
@dataclass(frozen=True)
class Gtsrb(Shuffled):
    places = ("GTSRB/Final_Training/Images", "GTSRB/Training", "gtsrb/GTSRB/Training")
    archive = Published(
        "GTSRB_Final_Training_Images.zip",
        (
            "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/GTSRB_Final_Training_Images.zip",
            "https://benchmark.ini.rub.de/Dataset/GTSRB_Final_Training_Images.zip",
        ),
        "f33fd80ac59bff73c82d25ab499e03a3",
    )
    put = "its folders 00000 to 00042, each with its images and GT-000NN.csv,"
    counts = (27, 8, 8)

    crop: bool = setting(False)

    def every(self, folder: Path) -> Classes:
        return {name: self._signs(folder / name) for name in folders(folder)}

    def _signs(self, folder: Path) -> list[Ref]:
        path, found = folder / f"GT-{folder.name}.csv", set()
        for line, row in read_csv(path, ["Filename", *CORNERS], ";"):
            file = file_name(row["Filename"], path, line)
            track = f"{folder.name}/{file.partition('_')[0]}"
            found.add(Ref(f"{folder}/{file}", box=_sign(row, path, line) if self.crop else None, group=track))
        return sorted(found)


def _sign(row: Row, path: Path, line: int) -> tuple[float, float, float, float]:
    """The sign without what is around it; the last pixel is part of it."""
    left, top, right, bottom = (number(row[corner], path, line, corner) for corner in CORNERS)
    return left, top, right + 1, bottom + 1
