"""Image files to a bank, class by class."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from metarun.data.bank import ClassBank
from metarun.data.packed import packed
from metarun.data.pixels import Decoder, Form, Ref
from metarun.data.reading import reading
from metarun.types import InputError, Place

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".pnm", ".tif", ".tiff", ".webp")
Classes = Mapping[str, Sequence[Ref]]
"""The images of each class, in the order of the bank."""


def image_bank(name: str, split: str, classes: Classes, form: Form, place: Place) -> ClassBank:
    """The images of a split, decoded once and kept (see `packed`). Raises `InputError` for one that does not decode."""
    empty = [label for label, refs in classes.items() if not refs]
    if empty:
        raise InputError(f"{name}: class '{empty[0]}' of {split} holds no images: put some there, or take it away")
    if not classes:
        raise InputError(f"{name}: split '{split}' has no classes")
    refs = [ref for refs in classes.values() for ref in refs]
    key = f"2 {form} {stamp(refs)}"
    made = packed(f"{name}-{split}", key, refs, form.item, Decoder(form), skip_broken=place.skip_broken)
    left_out = set(made.left_out)
    sizes, rows = [], iter(range(len(refs)))
    for label, own in classes.items():
        sizes.append(sum(row not in left_out for _, row in zip(own, rows)))
        if not sizes[-1]:
            raise InputError(f"{name}: no image of class '{label}' of {split} decodes: put whole copies there")
    groups = [ref.group for row, ref in enumerate(refs) if row not in left_out]
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return ClassBank(made.items, offsets, tuple(classes), made.checksum, numbered(groups))


def numbered(groups: Sequence[str]) -> torch.Tensor | None:
    """(items,) a number for each group; an item that belongs to none is one of its own. None where none does."""
    if not any(groups):
        return None
    known: dict[str, int] = {}
    return torch.tensor([known.setdefault(group or f"\0{row}", len(known)) for row, group in enumerate(groups)])


def stamp(refs: Sequence[Ref]) -> str:
    """Changes when any image does: names, sizes and times, which take little to ask for."""
    digest, files = hashlib.sha256(), {}
    for ref in refs:
        if ref.path not in files:
            try:
                status = os.stat(ref.path)  # noqa: PTH116 (a Path for each image would double the time)
            except FileNotFoundError:
                raise InputError(f"{ref.path} is not there: put it there, or take it out of the list") from None
            except (OSError, ValueError) as error:  # a name may hold what no file's can
                raise InputError(f"{ref.path!r} cannot be read ({error})") from error
            files[ref.path] = f"{status.st_size}:{status.st_mtime_ns}"
        digest.update(f"{ref.path}\0{ref.member}\0{ref.box}\0{files[ref.path]}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def folders(folder: Path) -> dict[str, list[Ref]]:
    """The classes below a folder: a folder of images for each. Both sorted by name; hidden ones are passed over."""
    with reading(folder), os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    found = {}
    for name in names:
        with reading(folder / name):
            files = sorted(f for f in os.listdir(folder / name) if is_image(f))  # noqa: PTH208
        found[name] = [Ref(f"{folder}/{name}/{file}") for file in files]
    return found


def zipped(path: Path) -> dict[str, list[Ref]]:
    """The same of a zip file, wherever in it the folders are: the last folder of a member's path is its class."""
    found: dict[str, list[Ref]] = {}
    with reading(path), zipfile.ZipFile(path) as file:
        for member in sorted(file.namelist()):
            parts = member.split("/")
            if len(parts) > 1 and is_image(member) and not any(p.startswith((".", "__MACOSX")) for p in parts):
                found.setdefault(parts[-2], []).append(Ref(str(path), member))
    return found
