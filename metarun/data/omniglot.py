"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people.

Lake, Salakhutdinov & Tenenbaum 2015, "Human-level concept learning through probabilistic program induction".

Items are (1, 28, 28) uint8, ink 255 on 0, shrunk from 105x105 in grey with the Lanczos filter. MAML's own script names
the same filter, but runs it on one-bit images, for which Pillow takes the nearest pixel instead.

Three ways to split, all by character, so that no character (nor a rotation of it) is in two splits:
- `official`: the background set for training, a seeded tenth of it held out for validation; the evaluation set to test;
- `maml`: all characters shuffled, 1,100 / 100 / 423 (Finn et al. 2017, whose own shuffle began from the unsorted
  listing of a folder and cannot be repeated);
- `vinyals`: whole alphabets but for one, 1,028 / 172 / 423 (Vinyals et al. 2016).
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metarun.cache import cached
from metarun.data.bank import ClassBank, with_turns
from metarun.data.download import fetch
from metarun.data.reading import reading
from metarun.types import InputError, Place, register, setting

VERSION = 1
"""of the packed form: raise it when what `_pack` makes changes"""
FOLDER = "omniglot-py"
"""where torchvision, too, looks for it under its root"""
CHARACTERS = {"images_background": 964, "images_evaluation": 659}
DRAWINGS = 20
DRAWN_AT = 105
SIDE = 28
MAML_TRAIN, MAML_VAL = 1100, 100

Sets = dict[str, list[str]]
"""The characters of each of the two published sets, as sorted names `Alphabet/character01`."""


@register("dataset", "omniglot")
@dataclass(frozen=True)
class Omniglot:
    """Reads `DATA_ROOT/omniglot-py`: extracted folders, else the two zip files, which it downloads where they lack."""

    split: str = setting("official", choices=("maml", "official", "vinyals"))
    split_seed: int = setting(0, least=0)
    rotations: bool = setting(True)
    download: bool = setting(True)

    def load(self, split: str, place: Place) -> ClassBank:
        """20 drawings for each character of `train`, `val` or `test`; in `train`, also turned by 90, 180 and 270."""
        folder = place.root / FOLDER
        sources = _find(folder, self.download, place)
        key = f"{VERSION} " + " ".join(f"{name}={_stamp(path)}" for name, path in sources.items())
        packed = cached("omniglot", key, lambda: _pack(sources))
        rows = {name: row for row, name in enumerate(packed["names"])}
        names = sorted(_SPLITS[self.split](packed["sets"], self.split_seed)[split])
        if missing := [name for name in names if name not in rows]:
            raise InputError(
                f"{folder} lacks {len(missing)} characters of split={self.split}, {missing[0]} the first: "
                f"take dataset.split=official, or put the published files there"
            )
        # A copy, in order that the bank does not stay tied to the cache file.
        items = packed["items"].index_select(0, torch.tensor([rows[name] for name in names], dtype=torch.long))
        bank = ClassBank(items.flatten(0, 1), torch.arange(len(names) + 1) * DRAWINGS, tuple(names))
        return with_turns(bank) if self.rotations and split == "train" else bank


# Splits: the characters of both sets and a seed -> the characters of train, val and test.


def _shuffled(names: list[str], seed: int) -> list[str]:
    names = sorted(names)
    random.Random(seed).shuffle(names)
    return names


def _official(sets: Sets, seed: int) -> Sets:
    background = _shuffled(sets["images_background"], seed)
    held_out = len(background) // 10
    return {"train": background[held_out:], "val": background[:held_out], "test": sets["images_evaluation"]}


def _maml(sets: Sets, seed: int) -> Sets:
    names = _shuffled([name for names in sets.values() for name in names], seed)
    until = MAML_TRAIN + MAML_VAL
    return {"train": names[:MAML_TRAIN], "val": names[MAML_TRAIN:until], "test": names[until:]}


def _vinyals(sets: Sets, seed: int) -> Sets:
    chosen: Sets = {"train": [], "val": [], "test": []}
    for line in Path(__file__).with_name("omniglot_vinyals.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            split, alphabet, first, last = line.split()
            chosen[split] += [f"{alphabet}/character{number:02d}" for number in range(int(first), int(last) + 1)]
    return chosen


_SPLITS: dict[str, Callable[[Sets, int], Sets]] = {"maml": _maml, "official": _official, "vinyals": _vinyals}


# Sources: each set is a folder or a zip file; its members are named as in the zip file in either case.


def _find(folder: Path, download: bool, place: Place) -> dict[str, Path]:
    """The folder or the zip file of each set."""
    with reading(folder):
        for path in (folder.parent, folder):
            if path.exists() and not path.is_dir():
                raise InputError(f"{path} is not a folder: data_root must be the folder that holds {FOLDER}")
        return {name: _find_one(folder, name, download, place) for name in CHARACTERS}


def _find_one(folder: Path, name: str, download: bool, place: Place) -> Path:
    extracted, packed = folder / name, folder / f"{name}.zip"
    wrong = _wrong_count(extracted) if extracted.is_dir() else None
    if extracted.is_dir() and wrong is None:
        return extracted
    if packed.exists():
        return packed
    if wrong is not None:
        raise InputError(f"{extracted} is incomplete, with {wrong}: remove it, or put {packed.name} next to it")
    why = "downloading is off (data.offline, dataset.download)"
    if download and not place.offline:
        try:
            return _download(packed, place)
        except Exception as error:
            # No net, forbidden, a wrong checksum, a folder that cannot be written: the way out is the same.
            why = f"the download failed: {str(error) or type(error).__name__}"
    raise InputError(
        f"no Omniglot in {folder}: neither {name}/ nor {packed.name} is there, and {why}. Set METARUN_DATA or "
        f"data_root=... to a folder that holds {FOLDER}, or put {' and '.join(f'{name}.zip' for name in CHARACTERS)} "
        f"into {folder} by hand. dataset=glyphs needs no files"
    )


def _members(path: Path) -> list[str]:
    """`images_background/Alphabet/character01/0001_01.png` and whatever else is there."""
    if path.is_dir():
        here = [(Path(root).relative_to(path.parent).as_posix(), files) for root, _, files in os.walk(path)]
        return sorted(f"{folder}/{file}" for folder, files in here for file in files)
    with reading(path), zipfile.ZipFile(path) as file:
        return sorted(file.namelist())


def _stamp(path: Path) -> str:
    """Changes when the contents of `path` do: sizes and times, which take little to ask for."""
    with reading(path):
        if not path.is_dir():
            return f"zip:{path.stat().st_size}:{path.stat().st_mtime_ns}"
        digest = hashlib.sha256()
        for member in _members(path):
            # As text: 32,460 Path objects would double the time.
            status = os.stat(f"{path.parent}/{member}")  # noqa: PTH116
            digest.update(f"{member}\n{status.st_size}\n{status.st_mtime_ns}\n".encode())
        return f"folder:{digest.hexdigest()}"


def _characters(path: Path) -> dict[str, list[str]]:
    """`Alphabet/character01` -> its members, both sorted; anything else in there is left aside."""
    pattern = re.compile(rf"{path.stem}/([^/]+/character\d+)/[^/.][^/]*\.png")
    found: dict[str, list[str]] = {}
    for member in _members(path):
        if match := pattern.fullmatch(member):
            found.setdefault(match[1], []).append(member)
    return found


def _wrong_count(path: Path) -> str | None:
    """What is missing from (or too much in) a source, or None."""
    characters = _characters(path)
    if len(characters) != CHARACTERS[path.stem]:
        return f"{len(characters)} characters where Omniglot has {CHARACTERS[path.stem]}"
    for name, members in characters.items():
        if len(members) != DRAWINGS:
            return f"{len(members)} drawings of {name} where Omniglot has {DRAWINGS}"
    return None


def _download(path: Path, place: Place) -> Path:
    """A published zip file at `path`, from where and as torchvision would."""
    from torchvision.datasets import Omniglot as Published

    url = f"{Published.download_url_prefix}/{path.name}"
    return fetch(path.name, [url], Published.zips_md5[path.stem], path.parent, place)


# Packing: both sources -> one dict that `cached` can keep.


def _pack(sources: dict[str, Path]) -> dict[str, Any]:
    """`items` (characters, drawings, 1, side, side) uint8, `names` sorted, and `sets`, the names by set."""
    sets: Sets = {}
    drawings: dict[str, bytes] = {}
    for path in sources.values():
        if wrong := _wrong_count(path):
            raise InputError(f"{path} is not Omniglot as published, with {wrong}: remove it and take a whole copy")
    print(f"packing Omniglot: {sum(CHARACTERS.values()) * DRAWINGS:,} drawings, once", file=sys.stderr)
    for set_name, path in sources.items():
        characters = _characters(path)
        sets[set_name] = sorted(characters)
        with _opened(path) as read:
            for name, members in characters.items():
                drawings[name] = b"".join(_decode(path, member, read(member)) for member in members)
    names = sorted(drawings)
    if len(names) != sum(CHARACTERS.values()):
        raise InputError(f"the same characters are in {' and '.join(map(str, sources.values()))}: take whole copies")
    paper = torch.frombuffer(bytearray(b"".join(drawings[name] for name in names)), dtype=torch.uint8)
    return {"items": (255 - paper).view(len(names), DRAWINGS, 1, SIDE, SIDE), "names": names, "sets": sets}


@contextmanager
def _opened(path: Path) -> Iterator[Callable[[str], bytes]]:
    """Gives the function that reads one member."""
    with reading(path):
        if path.is_dir():
            yield lambda member: (path.parent / member).read_bytes()
        else:
            with zipfile.ZipFile(path) as file:
                yield file.read


def _decode(path: Path, member: str, data: bytes) -> bytes:
    """PNG -> side * side bytes of grey, paper 255."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            size = image.size
            # Grey first: a one-bit image would be shrunk to its nearest pixels whatever filter is asked for.
            small = (
                image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS) if size == (DRAWN_AT,) * 2 else None
            )
    except Exception as error:
        # A broken PNG may raise nearly anything.
        raise InputError(f"{path}: {member} does not decode ({type(error).__name__}): take a whole copy") from error
    if small is None:
        raise InputError(f"{path}: {member} is {size[0]}x{size[1]}, not {DRAWN_AT}x{DRAWN_AT}: take an untouched copy")
    return small.tobytes()
