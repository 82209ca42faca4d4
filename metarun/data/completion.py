"""Image completion: a task is an image, its examples are pixels: where they are, and what colour they have.

Garnelo et al. 2018 "Conditional neural processes", section 4.2; Zintgraf et al. 2019 "CAVIA", section 5.3. The images
are another dataset's, and every image of its split is a task. A pixel's x is how far down and across it is, from -1 in
the middle of the first row or column to 1 in the last; its y is its channels in [0, 1]. Support and queries are drawn
independently of one another, each without replacement: as in the papers, queries may be support pixels too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from metarun.counter import MIX, Number, counted, mix, signed
from metarun.data.bank import ClassBank
from metarun.data.nested import nested
from metarun.data.sampler import stream
from metarun.data.taskbank import check_way, no_classes
from metarun.measures import MEASURES
from metarun.types import EpisodeBatch, InputError, Place, register, setting

OF = "dataset.of"


@register("dataset", "completion")
@dataclass(frozen=True)
class Completion:
    """`of` is what the node of the images' own dataset would be: its name, and those of its settings that differ.

    Raises `InputError` for a name or a setting that there is not.
    """

    of: dict[str, Any] = setting({"name": "glyphs"})

    def __post_init__(self) -> None:
        nested(self.of, OF)

    def load(self, split: str, place: Place) -> Pixels:
        images = nested(self.of, OF).load(split, place)
        if not isinstance(images, ClassBank) or len(images.item_shape) != 3 or images.items.dtype != torch.uint8:
            raise InputError(f"{OF}.name={self.of['name']}: its items are no images; glyphs and omniglot have some")
        return Pixels(images)


@dataclass(frozen=True)
class Pixels:
    """The images of one split, to be completed."""

    images: ClassBank
    kind = "regression"
    measures = (MEASURES["mse"],)
    names = ()
    ahead = False
    """an episode takes one image, which is soon read even from a disk"""

    def digest(self) -> str:
        return self.images.digest()

    def to(self, device: Any, budget: int | None = None) -> Pixels:
        return Pixels(self.images.to(device, budget))

    def episodes(self, way: int, shot: int, query: int, seed: int, split: str, asked_by: str = "task") -> PixelSampler:
        check_way(way, asked_by)
        return PixelSampler(self.images, shot, query, seed, split, asked_by)

    def batches(self, seed: int, split: str) -> PixelSampler:
        raise no_classes("completion")


@dataclass(frozen=True)
class PixelSampler:
    """Draws images, with replacement, then distinct pixels of each for the support set and again for the queries."""

    images: ClassBank
    shot: int
    query: int
    seed: int
    split: str
    asked_by: str = "task"
    item_shape = (2,)
    shown = "image"
    """how its tasks are drawn (see `metarun.pictures`)"""

    def __post_init__(self) -> None:
        _, height, width = self.image_shape
        for name, count in (("shot", self.shot), ("query", self.query)):
            if count > height * width:
                raise InputError(
                    f"{self.asked_by}.{name}={count}: images of '{self.split}' have {height}x{width} = "
                    f"{height * width} pixels; lower {self.asked_by}.{name}"
                )

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, height, width)"""
        return self.images.item_shape

    @property
    def outputs(self) -> int:
        return self.image_shape[0]

    @property
    def steady(self) -> bool:
        return not self.images.ahead

    @cached_property
    def _stream(self) -> int:
        return stream(self.seed, f"{self.split} pixels")

    @cached_property
    def _places(self) -> Tensor:
        """(pixels, 2) how far down and across each pixel is, row by row"""
        down, across = (torch.linspace(-1, 1, side, device=self.images.device) for side in self.image_shape[1:])
        return torch.cartesian_prod(down, across)

    def classes(self, first: Number, count: int) -> None:
        return None

    def __call__(self, first: Number, count: int) -> EpisodeBatch:
        """x of shape (count, shot or query, 2), y (count, shot or query, channels)"""
        return self._episodes(first, count, self._some(first, count, self.query, MIX[1]))

    def whole(self, first: Number, count: int) -> EpisodeBatch:
        """The same tasks with all pixels as their queries, row by row."""
        return self._episodes(first, count, torch.arange(len(self._places), device=self.images.device).repeat(count, 1))

    def _episodes(self, first: Number, count: int, queries: Tensor) -> EpisodeBatch:
        """`queries`: (count, n) which pixels"""
        rows = self._tickets(first, count).remainder(len(self.images.items))
        colours = self.images.rows(rows).flatten(2).mT  # (count, pixels, channels)
        chosen = self._some(first, count, self.shot, MIX[0]), queries
        (support_x, support_y), (query_x, query_y) = (
            (self._places[pixels], colours.gather(1, pixels[..., None].expand(-1, -1, self.outputs)))
            for pixels in chosen
        )
        return EpisodeBatch(support_x, support_y, query_x, query_y)

    def _some(self, first: Number, count: int, pixels: int, purpose: int) -> Tensor:
        """(count, pixels) distinct pixels of each image; the more, the more are added to the same ones"""
        key = mix(self._tickets(first, count) ^ signed(purpose))
        everywhere = torch.arange(prod(self.image_shape[1:]), device=key.device)
        return mix(key[:, None] + everywhere).topk(pixels, dim=1).indices

    def _tickets(self, first: Number, count: int) -> Tensor:
        """(count,) a random number for each task"""
        return mix(counted(first, count, self.images.device) + self._stream)
