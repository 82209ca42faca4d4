"""Your own pictures: a folder of images for each class, or a csv that says which image is of which class.

`dataset.path` is looked for under `data_root` unless it is absolute. What is in it decides how it is read:

    path.zip                     folders of images, anywhere in it
    path/train path/val path/test   a folder of images for each class in each: the splits are as they lie there
    path/CLASS/IMAGE             the classes are split by `lists`, else by `ratios` and `split_seed`
    path/ and csv: FILE          a table with the columns `image_column` (a path below `path`) and `class_column`, and
                                 perhaps `split_column` and `group_column`

`lists` names a json file {"train": [...], "val": [...], "test": [...]} or a folder of train.txt, val.txt and test.txt,
a class a line; both below `path`, or absolute.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from metarun.data.bank import ClassBank
from metarun.data.images import Classes, folders, image_bank, zipped
from metarun.data.pixels import FITS, LARGEST, Form, Ref
from metarun.data.reading import reading
from metarun.data.splits import RATIOS, Split, by_chance, check_disjoint, check_ratios, listed
from metarun.data.tables import read_csv
from metarun.types import SPLITS, InputError, Place, register, setting


@register("dataset", "imagefolder")
@dataclass(frozen=True)
class ImageFolder:
    path: str = setting("images")
    csv: str | None = setting(None)
    image_column: str = setting("filename")
    class_column: str = setting("label")
    split_column: str | None = setting(None)
    group_column: str | None = setting(None)
    lists: str | None = setting(None)
    ratios: list[float] = setting(list(RATIOS))
    split_seed: int = setting(0, least=0)
    image_size: int = setting(84, least=1, most=LARGEST)
    channels: int = setting(3, least=1, most=3)
    fit: str = setting("stretch", choices=FITS)

    def __post_init__(self) -> None:
        check_ratios(self.ratios)
        if self.channels == 2:
            raise ValueError("channels=2: images are grey (1) or in colour (3)")

    def load(self, split: str, place: Place) -> ClassBank:
        folder = place.root / Path(self.path).expanduser()
        if not folder.exists():
            raise InputError(f"dataset.path: {folder} is not there; give the path of a folder or zip file of images")
        classes = self._classes(folder, split)
        return image_bank("imagefolder", split, classes, Form(self.image_size, self.channels, self.fit), place)

    def _classes(self, folder: Path, split: str) -> Classes:
        if self.csv is not None:
            return self._of_table(folder, split)
        if folder.is_file():
            return chosen(zipped(folder), self._split(folder, zipped(folder)), split)
        if all((folder / name).is_dir() for name in SPLITS):
            every = {name: folders(folder / name) for name in SPLITS}
            check_disjoint(every, str(folder))
            return every[split]
        found = folders(folder)
        return chosen(found, self._split(folder, found), split)

    def _of_table(self, folder: Path, split: str) -> Classes:
        path = folder / str(self.csv)
        columns = [self.image_column, self.class_column, *filter(None, (self.split_column, self.group_column))]
        found: dict[str, list[Ref]] = {}
        own: Split = {name: [] for name in SPLITS}
        for number, row in read_csv(path, columns):
            image, label = row[self.image_column], row[self.class_column]
            if not image or not label:
                raise InputError(f"{path}, line {number}: names no {'image' if not image else 'class'}")
            group = row[self.group_column] if self.group_column else ""
            found.setdefault(label, []).append(Ref(f"{folder}/{image}", group=group and f"{label}\0{group}"))
            if self.split_column:
                if row[self.split_column] not in SPLITS:
                    raise InputError(
                        f"{path}, line {number}: {self.split_column} is '{row[self.split_column]}', not one of "
                        f"{', '.join(SPLITS)}"
                    )
                own[row[self.split_column]].append(label)
        found = {label: sorted(set(refs)) for label, refs in sorted(found.items())}
        if not self.split_column:
            return chosen(found, self._split(folder, found), split)
        own = {name: sorted(set(labels)) for name, labels in own.items()}
        return chosen(found, listed(own, found, str(path)), split)

    def _split(self, folder: Path, found: Classes) -> Split:
        if self.lists is None:
            try:
                return by_chance(found, self.split_seed, self.ratios)
            except ValueError as e:
                raise InputError(f"{folder}: {e}") from None
        return listed(read_lists((folder if folder.is_dir() else folder.parent) / self.lists), found, self.lists)


def chosen(classes: Classes, split: Split, name: str) -> Classes:
    """The classes of one split."""
    return {label: classes[label] for label in sorted(split[name])}


def read_lists(path: Path) -> Split:
    """train, val and test by name: of a json file, or of a folder of text files. Raises `InputError` for others."""
    with reading(path):
        if path.is_dir():
            texts = {name: (path / f"{name}.txt").read_text(encoding="utf-8-sig") for name in SPLITS}
            return {name: [line.strip() for line in text.splitlines() if line.strip()] for name, text in texts.items()}
        text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is no json file ({error})") from None
    lists = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise InputError(f'{path}: must be {{"train": [CLASS, ...], "val": [...], "test": [...]}}')
    return content
