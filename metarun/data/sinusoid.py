"""Sinusoids: a task is a curve y = a sin(x - p), its examples are points on it.

Finn, Abbeel & Levine 2017, section 5.1 and the authors' code: amplitude a in [0.1, 5], phase p in [0, pi], x in
[-5, 5], all uniform. Tasks are drawn, not stored: the splits are different streams of them.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cached_property
from math import pi
from typing import Any, Protocol
from zlib import crc32

import torch
from torch import Tensor

from metarun.counter import Number, counted, mix, uniform
from metarun.data.sampler import stream
from metarun.data.taskbank import check_way, no_classes
from metarun.measures import MEASURES
from metarun.types import EpisodeBatch, Place, register, setting


class Family(Protocol):
    """Curves that differ in a few numbers: a frozen dataclass, whose fields are the ranges of those."""

    @property
    def name(self) -> str:
        """The dataset's."""
        ...

    @property
    def of_curve(self) -> int:
        """Uniform random numbers that a curve is made of."""
        ...

    @property
    def of_point(self) -> int:
        """The same of a point on it."""
        ...

    def curves(self, u: Tensor) -> tuple[Tensor, ...]:
        """(tasks, of_curve) in [0, 1) -> the numbers of each curve, each (tasks, ...)"""
        ...

    def points(self, curves: tuple[Tensor, ...], u: Tensor) -> tuple[Tensor, Tensor]:
        """(tasks, points, of_point) in [0, 1) -> x and y, each (tasks, points)"""
        ...


@register("dataset", "sinusoid")
@dataclass(frozen=True)
class Sinusoid:
    name = "sinusoid"
    of_curve = 2
    of_point = 1
    least_amplitude: float = setting(0.1, least=0)
    most_amplitude: float = setting(5.0, above=0)
    most_phase: float = setting(pi, least=0)
    most_x: float = setting(5.0, above=0)

    def __post_init__(self) -> None:
        if self.least_amplitude > self.most_amplitude:
            raise ValueError(
                f"least_amplitude={self.least_amplitude:g} is above most_amplitude={self.most_amplitude:g}"
            )

    def load(self, split: str, place: Place) -> Curves:
        return Curves(self)

    def curves(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(tasks,) amplitudes and (tasks,) phases"""
        least, most = self.least_amplitude, self.most_amplitude
        return least + (most - least) * u[:, 0], self.most_phase * u[:, 1]

    def points(self, curves: tuple[Tensor, ...], u: Tensor) -> tuple[Tensor, Tensor]:
        amplitude, phase = curves
        x = self.most_x * (2 * u[..., 0] - 1)
        return x, amplitude[:, None] * torch.sin(x - phase[:, None])


@dataclass(frozen=True)
class Curves:
    """All the curves of a family that there are."""

    family: Family
    device: Any = "cpu"
    kind = "regression"
    measures = (MEASURES["mse"],)
    names = ()
    ahead = False

    def digest(self) -> str:
        return f"{crc32(repr(astuple(self.family)).encode()):08x}"  # type: ignore[arg-type]

    def to(self, device: Any, budget: int | None = None) -> Curves:
        return Curves(self.family, device)

    def episodes(self, way: int, shot: int, query: int, seed: int, split: str, asked_by: str = "task") -> CurveSampler:
        check_way(way, asked_by)
        return CurveSampler(self.family, shot, query, seed, split, self.device)

    def batches(self, seed: int, split: str) -> CurveSampler:
        raise no_classes(self.family.name)


@dataclass(frozen=True)
class CurveSampler:
    """Draws curves, then points on each, the queries independently of the support set."""

    family: Family
    shot: int
    query: int
    seed: int
    split: str
    device: Any
    item_shape = (1,)
    outputs = 1
    steady = True

    @cached_property
    def _stream(self) -> int:
        return stream(self.seed, f"{self.split} curves")

    def classes(self, first: Number, count: int) -> None:
        return None

    def curves(self, first: Number, count: int) -> tuple[Tensor, ...]:
        """The numbers of each curve."""
        return self.family.curves(self._uniform(first, count)[:, : self.family.of_curve])

    def _uniform(self, first: Number, count: int) -> Tensor:
        """(count, numbers) in [0, 1): a curve's own, then those of each of its points"""
        task = mix(counted(first, count, self.device) + self._stream)
        numbers = self.family.of_curve + (self.shot + self.query) * self.family.of_point
        return uniform(mix(task[:, None] + torch.arange(numbers, device=self.device)))

    def __call__(self, first: Number, count: int) -> EpisodeBatch:
        """x and y of shape (count, shot or query, 1)"""
        u = self._uniform(first, count)[:, self.family.of_curve :].unflatten(1, (-1, self.family.of_point))
        x, y = (part[..., None] for part in self.family.points(self.curves(first, count), u))
        return EpisodeBatch(x[:, : self.shot], y[:, : self.shot], x[:, self.shot :], y[:, self.shot :])
