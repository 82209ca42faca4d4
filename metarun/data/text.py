"""Sentences: your own (`text`), and two published sets of questions sorted by what is wanted, CLINC150 and BANKING77.

`encoder` says how a sentence becomes an item, numbers of length 1 together:

    hashed   its words, its pairs of neighbouring words, and the 3 to 5 neighbouring characters everywhere in its words,
             whose ends are marked. Each of these terms is hashed to one of `buckets` numbers and to a sign (Weinberger
             et al. 2009, "Feature hashing for large scale multitask learning") and adds 1 + log(times it occurs) there.
             With `idf` that is multiplied by 1 + log((1 + n) / (1 + d)) for a term in d of the n TRAINING sentences.
    PATH     the folder of a sentence-transformers model, below `data_root` or absolute: its embeddings, not trained
             further. Needs the extra `sentences`.

A split takes 4 bytes of memory for each number of each of its sentences.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple
from unicodedata import category

import torch

from metarun.cache import cached
from metarun.data.bank import ClassBank
from metarun.data.download import Published, fetch
from metarun.data.imagefolder import read_lists
from metarun.data.reading import reading
from metarun.data.sentences import VERSION, digest, embedded, hashed, model_folder, shown, stamp, terms_of
from metarun.data.splits import RATIOS, Split, by_chance, check_ratios, listed, published
from metarun.data.tables import read_csv, read_jsonl
from metarun.types import SPLITS, InputError, Place, register, setting

LONGEST = 100_000
"""characters of a sentence"""
READERS = {".csv": read_csv, ".jsonl": read_jsonl}
CLINC150, BANKING77 = 22_500, 13_083
"""sentences of the published files, CLINC150's out-of-scope ones not counted"""
MIRRORS = ("https://raw.githubusercontent.com/{}/master/{}", "https://cdn.jsdelivr.net/gh/{}@master/{}")
CLINC150_FILE = Published(
    "data_full.json",
    tuple(mirror.format("clinc/oos-eval", "data/data_full.json") for mirror in MIRRORS),
    "36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0",
)
BANKING77_FILES = tuple(
    Published(
        name,
        tuple(mirror.format("PolyAI-LDN/task-specific-datasets", f"banking_data/{name}") for mirror in MIRRORS),
        checksum,
    )
    for name, checksum in (
        ("train.csv", "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b"),
        ("test.csv", "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d"),
    )
)


class Row(NamedTuple):
    where: str
    """the file and the place in it"""
    text: str
    label: str
    split: str = ""
    """where the file says it"""


Classes = Mapping[str, Mapping[str, str]]
"""By label: its sentences, and where each of them stands."""


@dataclass(frozen=True)
class Sentences(ABC):
    """What datasets of text share."""

    encoder: str = setting("hashed")
    buckets: int = setting(2048, least=1, most=2**16)
    idf: bool = setting(True)

    @abstractmethod
    def load(self, split: str, place: Place) -> ClassBank:
        """Raises `InputError` for files that are not there or not whole."""

    def bank(self, classes: Classes, splits: Split, split: str, place: Place) -> ClassBank:
        """The classes of one split. Items: (sentences, buckets) float, or as wide as the encoder makes them."""
        every = [sentence for sentences in classes.values() for sentence in sentences]
        ends = dict(zip(classes, accumulate(map(len, classes.values()))))
        names = {name: sorted(set(labels)) for name, labels in splits.items()}
        own, train = (
            torch.cat([torch.arange(ends[label] - len(classes[label]), ends[label]) for label in names[name]])
            for name in (split, "train")
        )
        if self.encoder == "hashed":
            terms = cached("terms", f"{VERSION} {digest(every)}", lambda: terms_of(every))
            items = hashed(terms, own, self.buckets, train if self.idf else None)
            # Of what they are made from: the last bits of a logarithm are not the same on every machine.
            read = [every[i] for i in own], [every[i] for i in train] if self.idf else []
            checksum = digest([f"{VERSION} {self.buckets} {self.idf}", *map(digest, read)])
        else:
            folder, checksum = model_folder(below(place.root, self.encoder)), ""
            key = f"{stamp(folder)} {digest(every)}"
            items = cached("embeddings", key, lambda: embedded(every, folder))["items"][own]
        offsets = torch.tensor([0, *(len(classes[label]) for label in names[split])]).cumsum(0)
        return ClassBank(items, offsets, tuple(names[split]), checksum)


@register("dataset", "text")
@dataclass(frozen=True)
class Text(Sentences):
    """A .csv file with a header, or a .jsonl file: a sentence and its label in each row.

    `path` is below `data_root` or absolute. The classes are split by `split_column`, else by `lists` (as `imagefolder`
    reads them, below the file's folder or absolute), else by `ratios` and `split_seed`.
    """

    path: str = setting("text.csv")
    text_column: str = setting("text")
    label_column: str = setting("label")
    split_column: str | None = setting(None)
    lists: str | None = setting(None)
    ratios: list[float] = setting(list(RATIOS))
    split_seed: int = setting(0, least=0)

    def __post_init__(self) -> None:
        check_ratios(self.ratios)
        if self.split_column and self.lists:
            raise ValueError("split_column and lists both say which class is in which split: leave one of them out")

    def load(self, split: str, place: Place) -> ClassBank:
        path = below(place.root, self.path)
        with reading(path):
            if not path.is_file():
                raise InputError(
                    f"dataset.path: {path} is no file; give the path of a .csv or .jsonl file of sentences"
                )
        rows = list(table_rows(path, self.text_column, self.label_column, self.split_column))
        classes = by_label(rows)
        return self.bank(classes, self._splits(path, rows, classes), split, place)

    def _splits(self, path: Path, rows: Sequence[Row], classes: Classes) -> Split:
        if self.split_column:
            own = {name: sorted({row.label for row in rows if row.split == name}) for name in SPLITS}
            return listed(own, classes, str(path))
        if self.lists:
            lists = read_lists(below(path.parent, self.lists))
            own = {name: [clean_label(label, self.lists, name) for label in labels] for name, labels in lists.items()}
            return covering(own, classes, self.lists)
        try:
            return by_chance(classes, self.split_seed, self.ratios)
        except ValueError as e:
            raise InputError(f"{path}: {e}") from None


@register("dataset", "clinc150")
@dataclass(frozen=True)
class Clinc150(Sentences):
    """Larson et al. 2019, "An evaluation dataset for intent classification and out-of-scope prediction": 150 intents
    with 150 sentences each, whatever part of the file they are in. Those out of scope are of no class."""

    def load(self, split: str, place: Place) -> ClassBank:
        path = place.root / "text" / "clinc150" / CLINC150_FILE.name
        if not exists(path):
            fetch(*CLINC150_FILE, path.parent, place)
        classes = by_label(whole(path, list(self._rows(path)), CLINC150))
        return self.bank(classes, covering(published("clinc150"), classes, "CLINC150's split"), split, place)

    def _rows(self, path: Path) -> Iterator[Row]:
        with reading(path):
            parts = json.loads(path.read_text(encoding="utf-8-sig"))
        for name in SPLITS:
            rows = parts.get(name) if isinstance(parts, dict) else None
            if not isinstance(rows, list):
                raise InputError(f"{path} has no list '{name}': take a whole data_full.json")
            for i, row in enumerate(rows):
                where = f"{path}, {name}[{i}]"
                if not isinstance(row, list) or len(row) != 2:
                    raise InputError(f"{where} is no pair of a sentence and an intent: take a whole data_full.json")
                yield Row(where, clean(row[0], where, "sentence"), clean_label(row[1], where, "intent"))


@register("dataset", "banking77")
@dataclass(frozen=True)
class Banking77(Sentences):
    """Casanueva et al. 2020, "Efficient intent detection with dual sentence encoders": 77 things that a bank's
    customers want, 75 to 227 sentences each, those of both files."""

    def load(self, split: str, place: Place) -> ClassBank:
        folder = place.root / "text" / "banking77"
        paths = [folder / file.name for file in BANKING77_FILES]
        for path, file in zip(paths, BANKING77_FILES):
            if not exists(path):
                fetch(*file, folder, place)
        rows = [row for path in paths for row in table_rows(path, "text", "category")]
        classes = by_label(whole(folder, rows, BANKING77))
        return self.bank(classes, covering(published("banking77"), classes, "BANKING77's split"), split, place)


# Rows: what is in the files, and whether it will do.


def below(root: Path, path: str) -> Path:
    return root / os.path.expanduser(path)  # noqa: PTH111 (Path's own raises for a person whom it does not know)


def table_rows(path: Path, text_column: str, label_column: str, split_column: str | None = None) -> Iterator[Row]:
    """The rows of a .csv or .jsonl file. Raises `InputError` for one that is not as it should be."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise InputError(f"dataset.path: {path} is neither .csv nor .jsonl; save it as one of the two")
    for number, row in read(path, [text_column, label_column, *filter(None, [split_column])]):
        where = f"{path}, line {number}"
        split = row[split_column] if split_column else ""
        if split_column and split not in SPLITS:
            raise InputError(f"{where}: {split_column} is {shown(split)}, not one of {', '.join(SPLITS)}")
        text, label = clean(row[text_column], where, text_column), clean_label(row[label_column], where, label_column)
        yield Row(where, text, label, split)


def clean(text: Any, where: str, column: str) -> str:
    """A sentence as it is kept. Raises `InputError` for what is none."""
    if not isinstance(text, str):
        raise InputError(f"{where}: {column} is {shown(text)}, where text is wanted")
    if not (text := text.strip()):
        raise InputError(f"{where}: {column} is empty: give it a text, or take the row away")
    if len(text) > LONGEST:
        raise InputError(f"{where}: {column} has {len(text):,} characters, at most {LONGEST:,} may be: cut it shorter")
    return text


def clean_label(label: Any, where: str, column: str) -> str:
    """The same of a label, which may be a whole number in json, and will be in messages and files."""
    if isinstance(label, int) and not isinstance(label, bool):
        label = str(label)
    label = clean(label, where, column)
    if any(category(letter) in ("Cc", "Cs") for letter in label):
        raise InputError(f"{where}: {column} is {shown(label)}: a label must be one line of text")
    return label


def by_label(rows: Iterable[Row]) -> dict[str, dict[str, str]]:
    """The classes by name. A sentence that a class has twice counts once: it must not be support and query."""
    classes: dict[str, dict[str, str]] = {}
    for row in rows:
        classes.setdefault(row.label, {}).setdefault(row.text, row.where)
    return dict(sorted(classes.items()))


def covering(split: Split, classes: Classes, name: str) -> Split:
    """A split by lists that name just the classes there are."""
    split = listed(split, classes, name)
    if unseen := sorted(classes.keys() - {label for labels in split.values() for label in labels}):
        where = next(iter(classes[unseen[0]].values()))
        raise InputError(f"{where}: {name} has no '{unseen[0]}': put it in one of its lists, or take its rows away")
    return split


def exists(path: Path) -> bool:
    with reading(path):
        return path.is_file()


def whole(path: Path, rows: list[Row], wanted: int) -> list[Row]:
    """A file of lines that is cut between two of them shows it in no other way."""
    if len(rows) != wanted:
        raise InputError(
            f"{path} has {len(rows):,} sentences, where the published files have {wanted:,}: take whole ones; "
            "dataset=text reads files of your own"
        )
    return rows
