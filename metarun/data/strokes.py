"""Drawings of Quick, Draw! by their strokes.

This file imports no torch, here or through others: a process that draws then starts in a fraction of a second.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarun.data.chunks import Broken

SPAN = 256
"""the side of the square that strokes are drawn in"""
PADDING = 16
"""what is left free around it"""
FINER = 4
"""times as fine as the image is what strokes are drawn on, to be averaged then"""
FARTHEST = 1e9
"""what coordinates are below"""

Strokes = list[list[tuple[float, float]]]
"""The points (x, y) of each stroke"""


@dataclass(frozen=True)
class Pen:
    """Draws lines of files, with lines `width` 256ths of the largest drawing wide."""

    side: int
    width: float

    def __call__(self, item: tuple[str, int]) -> bytes:
        """(file, where the line begins) -> side * side bytes of grey. Raises `Broken` where no drawing is there."""
        path, begins = item
        try:
            with Path(path).open("rb") as file:
                file.seek(begins)
                return drawn(drawing_of(file.readline())[0], self.side, self.width)
        except (OSError, ValueError) as error:
            raise Broken(f"{path} cannot be read at byte {begins:,} ({error})") from error


def drawing_of(line: bytes) -> tuple[Strokes, bool]:
    """What a line of a file holds, and whether it was recognized. Raises `ValueError` for one that holds no drawing."""
    try:
        row = json.loads(line)
        strokes = [[*zip(*stroke[:2], strict=True)] for stroke in row["drawing"]]
        recognized = row.get("recognized", True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"is no json object with a drawing ({type(error).__name__})") from None
    values = [value for stroke in strokes for point in stroke for value in point]
    good = all(type(value) in (int, float) and abs(value) < FARTHEST for value in values)
    if not good or not strokes or not all(stroke and len(stroke[0]) == 2 for stroke in strokes):
        raise ValueError("its drawing is not [[[x, ...], [y, ...]], ...]")
    if not isinstance(recognized, bool):
        raise ValueError("its recognized is neither true nor false")
    return strokes, recognized


def drawn(strokes: Strokes, side: int, width: float) -> bytes:
    """side * side bytes of grey: lines with round ends, `width` 256ths of the largest drawing wide, in the middle.

    What is larger than the official files' square is shrunk to it.
    """
    from PIL import Image, ImageDraw

    points = np.array([point for stroke in strokes for point in stroke], float)
    low, high = points.min(0), points.max(0)
    unit = side * FINER / (SPAN + 2 * PADDING + width)
    scale = unit * SPAN / max(SPAN, float((high - low).max()))
    thick = max(1, round(width * unit))
    image = Image.new("L", (side * FINER, side * FINER))
    pen = ImageDraw.Draw(image)
    for stroke in strokes:
        line = [tuple(point) for point in ((np.array(stroke) - (low + high) / 2) * scale + side * FINER / 2).tolist()]
        pen.line(line, fill=255, width=thick, joint="curve")
        for x, y in (line[0], line[-1]):
            pen.ellipse([x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2], fill=255)
    return image.reduce(FINER).tobytes()
