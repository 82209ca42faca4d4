"""Some items decoded and written to their place in a file, in whatever process.

This file imports no torch, here or through others (see `metarun.processes`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32


class Broken(Exception):
    """An item that does not decode; the message names it."""


class Chunk(NamedTuple):
    first: int
    """the number of its first item"""
    items: Sequence[Any]


class Written(NamedTuple):
    first: int
    crc: int
    """of the chunk's bytes; those of a broken item are zeros"""
    broken: Sequence[int]
    """the numbers of its items that do not decode"""
    why: str = ""
    """what is wrong with the first of them"""


@dataclass(frozen=True)
class Writer:
    """Decodes a chunk and writes it to `part`, where an item takes `size` bytes. Ends at the first broken item, which
    leaves the chunk unwritten, unless `skip_broken`."""

    part: Path
    size: int
    decode: Callable[[Any], bytes]
    skip_broken: bool

    def __call__(self, chunk: Chunk) -> Written:
        buffer, broken, why = bytearray(), [], ""
        for number, item in enumerate(chunk.items, chunk.first):
            try:
                buffer += self.decode(item)
            except Broken as error:
                broken.append(number)
                why = why or str(error)
                buffer += bytes(self.size)
                if not self.skip_broken:
                    return Written(chunk.first, 0, broken, why)
        file = os.open(self.part, os.O_WRONLY)
        try:
            os.pwrite(file, buffer, chunk.first * self.size)
        finally:
            os.close(file)
        return Written(chunk.first, crc32(buffer), broken, why)
