"""Handwriting made on the spot: invented alphabets, drawn by many hands, from nothing but a seed.

An alphabet is a style (how its pen turns, how round, how wide, how heavy) and an inventory of a few stroke shapes. A
glyph joins one to four of these strokes; of many glyphs tried, an alphabet keeps those that are hardest to mistake for
one another. A drawing of a glyph is the same strokes in another hand: each stroke's control points a little off, the
whole turned, slanted, stretched and moved, with another pen. Ink is laid along the spline through the control points
as a sum of round Gaussian dots, and saturates, which gives an even line with soft edges.

The process is that of Omniglot (Lake, Salakhutdinov & Tenenbaum 2015) in outline, far simpler in every part. The
numbers below were set by eye against Omniglot at 28 x 28, and by two figures at 5-way 1-shot on the test alphabets:
nearest raw pixels must do badly (35 to 60 %; about 50 %), a small convolutional network well (96 % in 75 s).

Shapes: A alphabets, G glyphs each, D drawings each, S strokes, K control points, P points of ink, N of anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from metarun.cache import cached
from metarun.data.bank import ClassBank
from metarun.types import Place, register, setting

VERSION = 1
"""Raise it whenever the same seed would give other drawings: caches made before are then left alone."""

ALPHABETS = {"train": range(36), "val": range(36, 40), "test": range(40, 50)}
GLYPHS = 24
DRAWINGS = 20
SIDE = 28

_ALL = 50
_TRIED = 72  # glyphs tried for each alphabet
_SHAPES = 8  # stroke shapes in an alphabet's inventory
_STROKES = 4  # most strokes in a glyph
_POINTS = 6  # control points of a stroke
_INK = 10  # points of ink between two control points
_FLOW = 1.7  # ink in the middle of a line, where 1 is black: more makes its edges harder
_CHUNK = 256  # pages drawn at once: bounds the memory
_FAR = -40.0  # exponent from which on a dot's ink is nothing
_MARGIN = 2.5  # pixels kept free around the control points


class Style(NamedTuple):
    """What the glyphs of an alphabet have in common; every tensor has a leading A."""

    shapes: Tensor
    """(A, shapes, K, 2) strokes about as long as 1, centred on 0"""
    strokes: Tensor
    """(A,) mean number of strokes in a glyph"""
    join: Tensor
    """(A,) how often a stroke meets one that is there already"""
    round: Tensor
    """(A,) 0: straight from point to point with corners, 1: a smooth curve"""
    half: Tensor
    """(A, 2) half the width and half the height of a glyph, in pixels"""
    slant: Tensor
    """(A,) shear to the right"""
    pen: Tensor
    """(A,) radius of the pen in pixels"""


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _choose(weights: Tensor, count: int, generator: Generator) -> Tensor:
    """(N, options) -> (N, count) choices, with replacement."""
    return torch.multinomial(weights, count, replacement=True, generator=generator)


def _stroke_shapes(generator: Generator) -> Tensor:
    """(A, shapes, K, 2): paths that turn the way their alphabet turns."""
    legs = torch.arange(_POINTS - 1)
    # How the pen turns from leg to leg, in units of the stroke's own angle: along an arc, once to a corner, into a
    # hook at the end, one way and then the other, to and fro.
    habits = torch.tensor(
        [[0, 1, 1, 1, 1], [0, 0, 2, 0, 0], [0, 0, 0, 1.5, 1.5], [0, 1.2, 1.2, -1.2, -1.2], [0, 1.8, 0, -1.8, 0]]
    )
    liking = torch.rand(_ALL, len(habits), generator=generator) ** 2 + 0.05
    habit = _choose(liking, _SHAPES, generator)
    shape = (_ALL, _SHAPES)
    angle = _uniform(15, 72, shape, generator) * (torch.rand(shape, generator=generator) < 0.8)  # else a straight line
    hand = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    turns = habits[habit] * (angle * hand)[..., None]
    # An alphabet is written in a few directions rather than in all.
    step = torch.tensor([45.0, 60.0, 90.0])[torch.randint(0, 3, (_ALL, 1), generator=generator)]
    start = step * torch.randint(0, 8, shape, generator=generator) + 6 * torch.randn(shape, generator=generator)
    heading = torch.deg2rad(start[..., None] + turns.cumsum(-1))
    length = _uniform(0.7, 1.3, (*shape, len(legs)), generator) / len(legs)
    leg = torch.stack((heading.cos(), heading.sin()), -1) * length[..., None]
    path = torch.cat((torch.zeros(*shape, 1, 2), leg.cumsum(-2)), -2)
    return path - path.mean(-2, keepdim=True)


def invent_styles(generator: Generator) -> Style:
    """A style for each alphabet, drawn from the ranges below."""
    n = (_ALL,)
    return Style(
        shapes=_stroke_shapes(generator),
        strokes=_uniform(1.5, 3.3, n, generator),
        join=_uniform(0.6, 1, n, generator),
        round=_uniform(-0.2, 1.6, n, generator).clamp(0, 1),
        half=_uniform(8, 10, n, generator)[:, None] * torch.stack((_uniform(0.7, 1.1, n, generator), torch.ones(n)), 1),
        slant=_uniform(-0.2, 0.3, n, generator),
        pen=_uniform(0.55, 0.8, n, generator),
    )


def try_glyphs(style: Style, generator: Generator) -> tuple[Tensor, Tensor]:
    """(A, tried, S, K, 2) control points in pixels from the middle, and (A, tried, S) which strokes there are."""
    shape = (_ALL, _TRIED)
    count = (style.strokes[:, None] + 0.8 * torch.randn(shape, generator=generator)).round().clamp(1, _STROKES)
    there = torch.arange(_STROKES) < count[..., None]

    which = torch.randint(0, _SHAPES, (*shape, _STROKES), generator=generator)
    strokes = style.shapes[torch.arange(_ALL)[:, None, None], which]
    # The first stroke carries the glyph, those after it are often smaller.
    longest = torch.tensor([1.3] + [1.1] * (_STROKES - 1))
    length = (longest * _uniform(0.4, 1, (*shape, _STROKES), generator))[..., None, None]
    length[:, :, 0] = length[:, :, 0].clamp(min=0.9)
    mirror = torch.where(torch.rand((*shape, _STROKES, 1), generator=generator) < 0.2, -1.0, 1.0)
    strokes = strokes * length * torch.stack((mirror, torch.ones_like(mirror)), -1)

    # One stroke after another: a point of the new one meets a point of an earlier one, or lies somewhere near.
    place = 0.35 * torch.randn((*shape, _STROKES, 2), generator=generator)
    joined = torch.rand((*shape, _STROKES), generator=generator) < style.join[:, None, None]
    ends = torch.tensor([4.0, 1, 2, 2, 1, 4])  # strokes meet at their ends more often than in between
    pair = _choose(ends.expand(_ALL * _TRIED * _STROKES, -1), 2, generator).view(*shape, _STROKES, 2)
    on = torch.rand((*shape, _STROKES), generator=generator)
    grid = torch.meshgrid(torch.arange(_ALL), torch.arange(_TRIED), indexing="ij")
    strokes[:, :, 0] += place[:, :, 0, None]
    for s in range(1, _STROKES):
        earlier = (on[..., s] * s).long()
        meet = (
            strokes[(*grid, earlier, pair[..., s, 0])] - strokes[(*grid, torch.full_like(earlier, s), pair[..., s, 1])]
        )
        strokes[:, :, s] += torch.where(joined[..., s, None], meet, place[:, :, s])[..., None, :]

    return _fit(strokes, there, style), there


def _fit(strokes: Tensor, there: Tensor, style: Style) -> Tensor:
    """Glyphs centred, and stretched part of the way to the alphabet's size: an l stays narrower than an o."""
    low, high = _box(strokes, there)
    half = (high - low) / 2
    exact = style.half[:, None] / half.clamp(min=1e-3)
    even = exact.amin(-1, keepdim=True)
    scale = even * (exact / even).clamp(max=1.5)
    points = (strokes - ((low + high) / 2)[:, :, None, None]) * scale[:, :, None, None]
    x, y = points.unbind(-1)
    return torch.stack((x - style.slant[:, None, None, None] * y, y), -1)


def _box(points: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """(..., S, K, 2) -> the (..., 2) corners of the smallest box around the strokes that are there."""
    gone = ~there[..., None, None]
    return points.masked_fill(gone, math.inf).amin((-3, -2)), points.masked_fill(gone, -math.inf).amax((-3, -2))


def choose_glyphs(strokes: Tensor, there: Tensor, style: Style) -> tuple[Tensor, Tensor]:
    """The G of the glyphs tried that are furthest apart, each in turn the furthest from those taken before."""
    n = _ALL * _TRIED
    on_paper, there_n = strokes.view(n, _STROKES, _POINTS, 2) + (SIDE - 1) / 2, there.view(n, _STROKES)
    blurred = render(on_paper, there_n, style.round.repeat_interleave(_TRIED), torch.full((n,), 2.2))
    seen = blurred.view(_ALL, _TRIED, -1).double()  # so that no rounding decides which glyph is taken
    seen = seen / seen.norm(dim=-1, keepdim=True)
    apart = 1 - seen @ seen.mT  # (A, tried, tried)
    rows = torch.arange(_ALL)
    taken = [torch.zeros(_ALL, dtype=torch.long)]
    nearest = apart[:, 0]
    for _ in range(GLYPHS - 1):
        taken.append(nearest.argmax(1))
        nearest = torch.minimum(nearest, apart[rows, taken[-1]])
    chosen = torch.stack(taken, 1)
    return strokes[rows[:, None], chosen], there[rows[:, None], chosen]


def draw_by_hand(strokes: Tensor, there: Tensor, generator: Generator) -> Tensor:
    """(N, S, K, 2) glyphs -> (N, S, K, 2) each in a hand of its own, in pixels from the upper left."""
    n = len(strokes)

    def noise(*shape: int) -> Tensor:
        return torch.randn((n, *shape), generator=generator)

    # A hand misses smoothly: it puts a stroke elsewhere, makes it longer or turns it, bends it; it trembles little.
    t = torch.linspace(-1, 1, _POINTS)
    misses = torch.stack((0.6 * torch.ones(_POINTS), 0.75 * t, 0.6 * (1.5 * t**2 - 0.5)), 1)
    strokes = strokes + misses @ noise(_STROKES, 3, 2) + 0.15 * noise(_STROKES, _POINTS, 2)

    angle, slant, size, stretch = (scale * noise().clamp(-2.5, 2.5) for scale in (math.radians(9), 0.13, 0.1, 0.1))
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack((cos, -sin, sin, cos), -1).view(n, 2, 2)
    shear = torch.stack((torch.ones(n), slant, torch.zeros(n), torch.ones(n)), -1).view(n, 2, 2)
    scale = torch.stack((size + stretch, size - stretch), -1).exp()[:, :, None]
    points = strokes @ (turn @ shear * scale).mT[:, None]

    # Moved, but never off the paper; what is too wide for it stays in the middle.
    low, high = _box(points, there)
    room = (SIDE - 1 - 2 * _MARGIN - (high - low)).clamp(min=0) / 2
    centre = (SIDE - 1) / 2 + torch.maximum(torch.minimum(2.0 * noise(2), room), -room)
    return points + (centre - (low + high) / 2)[:, None, None]


def _spline() -> tuple[Tensor, Tensor]:
    """Two (P, K) bases that turn a stroke's control points into points of ink: with corners, and Catmull-Rom."""
    t = (torch.arange((_POINTS - 1) * _INK) + 0.5) / _INK
    leg = t.long()
    u = t - leg
    eye = torch.eye(_POINTS)
    # Past its ends a stroke goes on as it went.
    eye = torch.cat((2 * eye[:1] - eye[1:2], eye, 2 * eye[-1:] - eye[-2:-1]))
    a, b, c, d = (eye[leg + i] for i in range(4))
    u = u[:, None]
    straight = b + (c - b) * u
    smooth = b + 0.5 * u * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * (b - c) + d - a)))
    return straight, smooth


def render(points: Tensor, there: Tensor, roundness: Tensor, pen: Tensor) -> Tensor:
    """(N, S, K, 2) control points in pixels -> (N, SIDE, SIDE) uint8 pages, ink 255 on 0.

    `there` (N, S) must be True for the first strokes of each; `roundness` and `pen` (N,) are as in `Style`.
    """
    bases = _spline()
    pages = torch.empty(len(points), SIDE, SIDE, dtype=torch.uint8)
    count = there.sum(-1)
    for strokes in range(1, _STROKES + 1):  # those of one count together: no work for strokes that are not there
        for rows in (count == strokes).nonzero()[:, 0].split(_CHUNK):
            pages[rows] = _render(bases, points[rows, :strokes], roundness[rows], pen[rows])
    return pages


def _render(bases: tuple[Tensor, Tensor], points: Tensor, roundness: Tensor, pen: Tensor) -> Tensor:
    """`render` for a few pages, whose strokes are all there."""
    straight, smooth = bases
    r = roundness[:, None, None, None]
    path = (1 - r) * (straight @ points) + r * (smooth @ points)  # (N, S, P, 2)
    step = path.diff(dim=2, append=2 * path[:, :, -1:] - path[:, :, -2:-1]).norm(dim=-1)
    # Ink in proportion to the way travelled: a line is no darker where the points of a spline crowd together.
    ink = step.flatten(1) * (_FLOW / math.sqrt(2 * math.pi) / pen[:, None])
    # A round dot is a product of two bells, so that all dots of a page are one matrix product.
    unit = math.sqrt(0.5) / pen[:, None, None]
    x, y = (path.flatten(1, 2).mT * unit).unsqueeze(2).unbind(1)  # (N, 1, S * P)
    pixels = torch.arange(SIDE)[:, None] * unit  # (N, SIDE, 1)
    # Far away a bell is next to nothing, and then so small that processors are slow with it: there it ends.
    bell_x, bell_y = ((pixels - at).square_().neg_().clamp_(min=_FAR).exp_() for at in (x, y))
    return ((bell_y * ink[:, None]) @ bell_x.mT).clamp_(max=1).mul_(255).round_().to(torch.uint8)


def make(seed: int) -> dict[str, Any]:
    """Every drawing: `items` (A, G, D, 1, SIDE, SIDE) uint8."""
    generator = Generator().manual_seed(seed)
    style = invent_styles(generator)
    strokes, there = choose_glyphs(*try_glyphs(style, generator), style)
    each = GLYPHS * DRAWINGS
    strokes, there = (x.flatten(0, 1).repeat_interleave(DRAWINGS, 0) for x in (strokes, there))
    points = draw_by_hand(strokes, there, generator)
    n = (len(points),)
    roundness = (style.round.repeat_interleave(each) + 0.15 * torch.randn(n, generator=generator)).clamp(0, 1)
    pen = style.pen.repeat_interleave(each) * torch.exp(0.12 * torch.randn(n, generator=generator)).clamp(0.8, 1.3)
    pages = render(points, there, roundness, pen)
    return {"items": pages.view(_ALL, GLYPHS, DRAWINGS, 1, SIDE, SIDE)}


@register("dataset", "glyphs")
@dataclass(frozen=True)
class Glyphs:
    """1,200 glyphs of 50 invented alphabets, 20 drawings each; 36 alphabets train, 4 validate and 10 test."""

    seed: int = setting(0, least=0, most=2**32 - 1)

    def load(self, split: str, place: Place) -> ClassBank:
        """Items (N, 1, 28, 28), made in seconds the first time and cached; `place` is not used."""
        drawn = cached("glyphs", f"version={VERSION} seed={self.seed}", lambda: make(self.seed))
        alphabets = ALPHABETS[split]
        items = drawn["items"][alphabets.start : alphabets.stop].flatten(0, 2)
        names = tuple(f"alphabet{a:02}/glyph{g:02}" for a in alphabets for g in range(GLYPHS))
        return ClassBank(items, torch.arange(len(names) + 1) * DRAWINGS, names)
