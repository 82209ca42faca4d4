"""Training images changed on the device, each by random numbers of its own: a pure function of (episode, image).

Shifts with a black edge and mirroring as in He et al. 2016; brightness, contrast and saturation as in Krizhevsky et al.
2012's successors (Howard 2013); erased rectangles as in Zhong et al. 2020, with black in place of noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.counter import Number, counted, mix, uniform
from metarun.data.sampler import stream
from metarun.types import EpisodeBatch, Sampler

DRAWS = 16
"""random numbers for each image"""
GREY = (0.299, 0.587, 0.114)
"""how bright red, green and blue are (ITU-R BT.601)"""
ERASED = (0.02, 0.33)
"""the part of an image that is erased"""
ASPECT = 3.3
"""the most that an erased rectangle is wider than high, or higher than wide"""


@dataclass(frozen=True)
class Augment:
    """See `AugmentSettings`, whose fields these are."""

    crop: int = 0
    flip: bool = False
    zoom: float = 1.0
    rotation: float = 0.0
    jitter: float = 0.0
    erase: float = 0.0

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """x: (n, channels, h, w) in [0, 1], u: (n, DRAWS) uniform in [0, 1) -> x changed, in [0, 1]"""
        if self.crop or self.flip:
            x = moved(x, u[:, 0:2], self.crop, (u[:, 2] < 0.5) if self.flip else None)
        if self.zoom < 1:
            x = zoomed(x, u[:, 12:16], self.zoom)
        if self.rotation:
            x = turned(x, (2 * u[:, 3] - 1) * math.radians(self.rotation))
        if self.jitter:
            x = jittered(x, 1 + self.jitter * (2 * u[:, 4:7] - 1))
        if self.erase:
            x = erased(x, u[:, 7:12], self.erase)
        return x


def moved(x: Tensor, u: Tensor, most: int, mirror: Tensor | None) -> Tensor:
    """Each image moved by -most to most pixels down and across, then mirrored where `mirror` says. u: (n, 2)"""
    n, _, h, w = x.shape
    down, across = (((2 * most + 1) * u).long() - most).unbind(1)
    rows = torch.arange(h, device=x.device) - down[:, None]
    columns = torch.arange(w, device=x.device) - across[:, None]
    if mirror is not None:
        columns = torch.where(mirror[:, None], columns.flip(1), columns)
    there = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None]
    image = torch.arange(n, device=x.device)[:, None, None]
    gathered = x.movedim(1, -1)[image, rows.clamp(0, h - 1)[:, :, None], columns.clamp(0, w - 1)[:, None]]
    return (gathered * there[..., None]).movedim(-1, 1)


def zoomed(x: Tensor, u: Tensor, least: float) -> Tensor:
    """Of each image a part of at least the area `least`, 3:4 to 4:3 of its shape, stretched to all of it. u: (n, 4)"""
    area, shape = least + (1 - least) * u[:, 0], torch.exp((2 * u[:, 1] - 1) * math.log(4 / 3))
    wide, high = (area * shape).sqrt().clamp(max=1), (area / shape).sqrt().clamp(max=1)
    zero = torch.zeros_like(wide)
    across, down = (1 - wide) * (2 * u[:, 2] - 1), (1 - high) * (2 * u[:, 3] - 1)
    return resampled(x, torch.stack([wide, zero, across, zero, high, down], 1))


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """Each image turned about its middle by `angle` (n,) radians, black where nothing is."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    h, w = x.shape[-2:]
    # In units of half a side, which for a rectangle are not alike in the two directions.
    return resampled(x, torch.stack([cos, -sin * h / w, zero, sin * w / h, cos, zero], 1))


def resampled(x: Tensor, back: Tensor) -> Tensor:
    """Each image through an affine map: `back` (n, 6) says where in [-1, 1]^2 each of its points comes from."""
    grid = F.affine_grid(back.view(-1, 2, 3).to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def jittered(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast and saturation of each image times `factors` (n, 3)."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    x = (x * brightness).clamp(0, 1)
    x = torch.lerp(greyed(x).mean((1, 2, 3), keepdim=True), x, contrast).clamp(0, 1)
    return torch.lerp(greyed(x), x, saturation).clamp(0, 1)


def greyed(x: Tensor) -> Tensor:
    """(n, channels, h, w) -> (n, 1, h, w)"""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = (weight * x[:, i : i + 1] for i, weight in enumerate(GREY))
    return red + green + blue


def erased(x: Tensor, u: Tensor, chance: float) -> Tensor:
    """A rectangle blacked out in some of the images. u: (n, 5)"""
    h, w = x.shape[-2:]
    area = (ERASED[0] + (ERASED[1] - ERASED[0]) * u[:, 1]) * h * w
    aspect = torch.exp((2 * u[:, 2] - 1) * math.log(ASPECT))
    tall, wide = (area * aspect).sqrt().clamp(max=h), (area / aspect).sqrt().clamp(max=w)
    top, left = u[:, 3] * (h - tall), u[:, 4] * (w - wide)
    rows = torch.arange(h, device=x.device) + 0.5
    columns = torch.arange(w, device=x.device) + 0.5
    tall_in = (rows > top[:, None]) & (rows < (top + tall)[:, None])
    wide_in = (columns > left[:, None]) & (columns < (left + wide)[:, None])
    gone = tall_in[:, :, None] & wide_in[:, None] & (u[:, 0] < chance)[:, None, None]
    return x.masked_fill(gone[:, None], 0)


@dataclass(frozen=True)
class Augmented:
    """The episodes of `sampler` with every image changed; `seed` and `split` name the random numbers."""

    sampler: Sampler
    augment: Augment
    seed: int
    split: str

    @property
    def item_shape(self) -> tuple[int, ...]:
        return self.sampler.item_shape

    @property
    def outputs(self) -> int:
        return self.sampler.outputs

    @property
    def steady(self) -> bool:
        return self.sampler.steady

    def classes(self, first: Number, count: int) -> Tensor | None:
        return self.sampler.classes(first, count)

    def __call__(self, first: Number, count: int) -> EpisodeBatch:
        episodes = self.sampler(first, count)
        tasks, support = episodes.support_x.shape[:2]
        x = torch.cat([episodes.support_x, episodes.query_x], 1)
        images = tasks * x.shape[1]
        each = counted(first * images // count, images, x.device)  # a supervised batch is one task
        keys = mix(each + stream(self.seed, f"{self.split} augment"))
        u = uniform(mix(keys[:, None] + torch.arange(DRAWS, device=x.device)))
        x = self.augment(x.flatten(0, 1), u).unflatten(0, (tasks, -1))
        return episodes._replace(support_x=x[:, :support], query_x=x[:, support:])
