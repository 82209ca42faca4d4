"""A dataset at a glance: an image of each class, and one episode with its support set above its queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.data.bank import ClassBank
from metarun.files import write_atomic
from metarun.types import EpisodeBatch

ACROSS, DOWN = 12, 6
"""images of the overview"""
CELL = 64
"""pixels of an image, a whole multiple of its own where that is smaller"""
GAP, LINE, WIDE = 6, 20, 90
"""pixels between images, of a line of text, and beside an episode for the words"""


def contact_sheet(path: Path, bank: ClassBank, episode: EpisodeBatch, shot: int) -> None:
    """Writes a PNG. `episode` is one, with a leading task axis."""
    from PIL import Image, ImageDraw, ImageFont

    chosen = torch.linspace(0, len(bank) - 1, min(ACROSS * DOWN, len(bank))).round().long()
    overview = bank.rows(bank.offsets[chosen])
    way = int(episode.support_y.max()) + 1
    rows = [*episode.support_x[0].split(way), *episode.query_x[0].split(way)]
    cell = max(CELL // bank.item_shape[-1], 1) * bank.item_shape[-1] if bank.item_shape[-1] < CELL else CELL
    step = cell + GAP
    lines = -(-len(chosen) // ACROSS)
    width = max(min(ACROSS, len(chosen)) * step, WIDE + way * step) + GAP
    below = LINE + lines * step + 2 * GAP
    height = below + LINE + len(rows) * step + GAP + (GAP if len(rows) > shot else 0)

    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)

    def put(image: Tensor, x: int, y: int) -> None:
        sheet.paste(picture(image, cell), (x, y))

    pen.text((GAP, 3), f"{len(chosen)} of {len(bank):,} training classes", "black", font)
    for n, image in enumerate(overview):
        put(image, GAP + n % ACROSS * step, LINE + n // ACROSS * step)
    pen.text((GAP, below), f"an episode: {way}-way {shot}-shot", "black", font)
    for n, row in enumerate(rows):
        y = below + LINE + n * step + (GAP if n >= shot else 0)
        if n in (0, shot):
            pen.text((GAP, y + cell // 2 - 8), "support" if n < shot else "queries", "black", font)
        for c, image in enumerate(row):
            put(image, WIDE + c * step, y)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: sheet.save(file, "PNG"))


def picture(image: Tensor, cell: int) -> Any:
    """(channels, h, w) in [0, 1] -> a square image"""
    from PIL import Image

    shown = image if len(image) == 3 else image[:1].expand(3, -1, -1)
    pixels = (255 * shown).round().byte().permute(1, 2, 0).contiguous().numpy()
    filtered = Image.Resampling.NEAREST if cell >= image.shape[-1] else Image.Resampling.LANCZOS
    return Image.fromarray(pixels).resize((cell, cell), filtered)
