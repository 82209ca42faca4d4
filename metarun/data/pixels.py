"""One image: where it is, and how it becomes (channels, side, side) of bytes.

This file imports neither torch nor numpy, here or through others: a process that decodes images then starts in a
fraction of a second.
"""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from metarun.data.chunks import Broken

FITS = ("stretch", "crop")
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


@dataclass(frozen=True)
class Form:
    """What every image is made to. `fit`: stretched to the square, or its middle cut out first."""

    side: int
    channels: int = 3
    fit: str = "stretch"

    @property
    def item(self) -> tuple[int, int, int]:
        return self.channels, self.side, self.side


@dataclass(frozen=True)
class Decoder:
    """Images to the bytes of `form.item`."""

    form: Form

    def __call__(self, ref: Ref) -> bytes:
        """Raises `Broken` for what is no image, or not a whole one."""
        from PIL import Image

        try:
            with Image.open(io.BytesIO(content(ref))) as image:
                return as_bytes(image, self.form, ref.box)
        except Exception as error:
            # A broken image may raise nearly anything.
            raise Broken(f"{ref} does not decode ({type(error).__name__}: {error})") from error


def content(ref: Ref) -> bytes:
    """The bytes of an image's file."""
    if ref.member is None:
        return Path(ref.path).read_bytes()
    status = os.stat(ref.path)  # noqa: PTH116 (a Path for each image would double the time)
    return _archive(ref.path, status.st_size, status.st_mtime_ns).read(ref.member)


@lru_cache(maxsize=1)
def _archive(path: str, size: int, time: int) -> zipfile.ZipFile:
    """Kept, for the list of what is in it may take half a second to read."""
    return zipfile.ZipFile(path)


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
    return b"".join(band.tobytes() for band in small.split())


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
