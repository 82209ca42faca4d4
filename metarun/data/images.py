"""Image files to a bank: where the images of each class are, and how one becomes (channels, side, side) of bytes."""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metarun.data.bank import ClassBank
from metarun.data.packed import Broken, packed
from metarun.data.reading import reading
from metarun.types import InputError, Place

FITS = ("stretch", "crop")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".pnm", ".tif", ".tiff", ".webp")
LARGEST = 1024
"""pixels of a side that images are made to"""


Box = tuple[float, float, float, float]
"""left, top, right and bottom, in pixels"""


class Ref(NamedTuple):
    """An image: a file, or a member of a zip file; with `box`, what of it is in there."""

    path: str
    member: str | None = None
    box: Box | None = None
    group: str = ""
    """images of one group are much alike (a video's frames): support and queries of an episode never share a group"""

    def __str__(self) -> str:
        return self.path if self.member is None else f"{self.path}: {self.member}"


Classes = Mapping[str, Sequence[Ref]]
"""The images of each class, in the order of the bank."""


@dataclass(frozen=True)
class Form:
    """What every image is made to. `fit`: stretched to the square, or its middle cut out first."""

    side: int
    channels: int = 3
    fit: str = "stretch"

    @property
    def item(self) -> tuple[int, int, int]:
        return self.channels, self.side, self.side


def image_bank(name: str, split: str, classes: Classes, form: Form, place: Place) -> ClassBank:
    """The images of a split, decoded once and kept (see `packed`). Raises `InputError` for one that does not decode."""
    empty = [label for label, refs in classes.items() if not refs]
    if empty:
        raise InputError(f"{name}: class '{empty[0]}' of {split} holds no images: put some there, or take it away")
    if not classes:
        raise InputError(f"{name}: split '{split}' has no classes")
    refs = [ref for refs in classes.values() for ref in refs]
    open_image = Opener()

    def decode(i: int) -> bytes:
        return decoded(open_image, refs[i], form)

    made = packed(
        f"{name}-{split}", f"2 {form} {stamp(refs)}", len(refs), form.item, decode, skip_broken=place.skip_broken
    )
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


class Opener:
    """Gives the bytes of images. Each thread has its own handle on a zip file, for a shared one is read in turns."""

    def __init__(self) -> None:
        self._mine = threading.local()

    def __call__(self, ref: Ref) -> bytes:
        if ref.member is None:
            return Path(ref.path).read_bytes()
        archives: dict[str, zipfile.ZipFile] = self._mine.__dict__.setdefault("archives", {})
        if ref.path not in archives:
            archives[ref.path] = zipfile.ZipFile(ref.path)
        return archives[ref.path].read(ref.member)


def decoded(read: Opener, ref: Ref, form: Form) -> bytes:
    """The bytes of `form.item`. Raises `Broken` for what is no image, or not a whole one."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read(ref))) as image:
            return as_bytes(image, form, ref.box)
    except Exception as error:
        # A broken image may raise nearly anything.
        raise Broken(f"{ref} does not decode ({type(error).__name__}: {error})") from error


def as_bytes(image: Any, form: Form, box: Box | None = None) -> bytes:
    """A Pillow image, or what of it is in a box, as the bytes of `form.item`. Raises `ValueError` for an empty box."""
    from PIL import Image

    image = whole_colours(image, form.channels)
    if box is not None or form.fit == "crop":
        left, top, right, bottom = box or (0, 0, image.width, image.height)
        box = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
        left, top, right, bottom = map(round, middle(box) if form.fit == "crop" else box)
        if right <= left or bottom <= top:
            raise ValueError(f"nothing of {image.width}x{image.height} pixels is in the box")
        image = image.crop((left, top, right, bottom))  # before it is resized, or what is around it shines through
    small = image.resize((form.side, form.side), Image.Resampling.LANCZOS)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
    return pixels.view(form.side, form.side, form.channels).permute(2, 0, 1).contiguous().numpy().tobytes()


def whole_colours(image, channels: int):
    """Grey or RGB; what is transparent shows white, and 16-bit grey is scaled, which Pillow would cut off."""
    from PIL import Image

    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        image = image.convert("F").point(lambda v: v * (255 / 65535)).convert("L")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if channels == 3 else "L")


def middle(box: Box) -> Box:
    """The largest square in the middle of a box."""
    left, top, right, bottom = box
    side = min(right - left, bottom - top)
    left, top = (left + right - side) / 2, (top + bottom - side) / 2
    return left, top, left + side, top + side


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
