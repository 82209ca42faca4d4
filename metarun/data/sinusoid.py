"""Sinusoids: a task is a curve y = a sin(x - p), its examples are points on it.

Finn, Abbeel & Levine 2017, section 5.1 and the authors' code: amplitude a in [0.1, 5], phase p in [0, pi], x in
[-5, 5], all uniform. Tasks are drawn, not stored: the splits are different streams of them.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from functools import cached_property
from math import pi
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from metarun.counter import mix, uniform
from metarun.data.sampler import stream
from metarun.types import EpisodeBatch, InputError, Place, register, setting


@register("dataset", "sinusoid")
@dataclass(frozen=True)
class Sinusoid:
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


@dataclass(frozen=True)
class Curves:
    """All the curves there are."""

    ranges: Sinusoid
    device: Any = "cpu"
    kind = "regression"
    names = ()
    ahead = False

    def digest(self) -> str:
        return f"{crc32(repr(astuple(self.ranges)).encode()):08x}"

    def to(self, device: Any, budget: int | None = None) -> Curves:
        return Curves(self.ranges, device)

    def episodes(self, way: int, shot: int, query: int, seed: int, split: str, asked_by: str = "task") -> CurveSampler:
        if way != 1:
            raise InputError(f"{asked_by}.way={way}: a regression task has no classes; set {asked_by}.way=1")
        return CurveSampler(self.ranges, shot, query, seed, split, self.device)

    def batches(self, seed: int, split: str) -> CurveSampler:
        raise InputError("dataset=sinusoid has no classes to train a classifier on; choose a dataset that has")


@dataclass(frozen=True)
class CurveSampler:
    """Draws curves, then points on each, the queries independently of the support set."""

    ranges: Sinusoid
    shot: int
    query: int
    seed: int
    split: str
    device: Any
    item_shape = (1,)
    outputs = 1

    @cached_property
    def _stream(self) -> int:
        return stream(self.seed, f"{self.split} curves")

    def classes(self, first: int, count: int) -> None:
        return None

    def curves(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """(count,) amplitudes and (count,) phases"""
        r, u = self.ranges, uniform(self._keys(first, count)[:, :2])
        return r.least_amplitude + (r.most_amplitude - r.least_amplitude) * u[:, 0], r.most_phase * u[:, 1]

    def _keys(self, first: int, count: int) -> Tensor:
        task = mix(torch.arange(first, first + count, device=self.device) + self._stream)
        return mix(task[:, None] + torch.arange(2 + self.shot + self.query, device=self.device))

    def __call__(self, first: int, count: int) -> EpisodeBatch:
        """x and y of shape (count, shot or query, 1)"""
        amplitude, phase = self.curves(first, count)
        x = self.ranges.most_x * (2 * uniform(self._keys(first, count)[:, 2:]) - 1)
        y = amplitude[:, None] * torch.sin(x - phase[:, None])
        x, y = x[..., None], y[..., None]
        return EpisodeBatch(x[:, : self.shot], y[:, : self.shot], x[:, self.shot :], y[:, self.shot :])
