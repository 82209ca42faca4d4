"""Harmonics: a task is a curve y = a1 sin(f x + p1) + a2 sin(2 f x + p2) seen around a place of its own.

Lacoste et al. 2018, "Uncertainty in multitask transfer learning" (arXiv 1806.07528), with the ranges that Torchmeta's
code has (torchmeta/toy/harmonic.py): the frequency f in [5, 7] and both phases in [0, 2 pi] are uniform, both
amplitudes normal with mean 0 and variance 1; x is normal around the task's own centre, which is uniform in [-4, 4],
with variance 1; and y has normal noise added, none unless asked for. Tasks are drawn, not stored: the splits are
different streams of them. The variance of y over all tasks is 1 + noise^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from metarun.data.sinusoid import Curves
from metarun.types import Place, register, setting


@register("dataset", "harmonic")
@dataclass(frozen=True)
class Harmonic:
    name = "harmonic"
    of_curve = 6
    of_point = 2
    least_frequency: float = setting(5.0, above=0)
    most_frequency: float = setting(7.0, above=0)
    most_phase: float = setting(2 * pi, least=0)
    most_centre: float = setting(4.0, least=0)
    noise: float = setting(0.0, least=0)

    def __post_init__(self) -> None:
        if self.least_frequency > self.most_frequency:
            raise ValueError(
                f"least_frequency={self.least_frequency:g} is above most_frequency={self.most_frequency:g}"
            )

    def load(self, split: str, place: Place) -> Curves:
        return Curves(self)

    def curves(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(tasks,) centres and frequencies, (tasks, 2) phases and amplitudes"""
        centre = self.most_centre * (2 * u[:, 0] - 1)
        frequency = self.least_frequency + (self.most_frequency - self.least_frequency) * u[:, 1]
        return centre, frequency, self.most_phase * u[:, 2:4], normal(u[:, 4:])

    def points(self, curves: tuple[Tensor, ...], u: Tensor) -> tuple[Tensor, Tensor]:
        centre, frequency, phase, amplitude = curves
        away, noise = normal(u).unbind(-1)
        x = centre[:, None] + away
        turns = torch.tensor([1.0, 2.0], device=x.device) * frequency[:, None, None] * x[..., None]
        y = (amplitude[:, None] * torch.sin(turns + phase[:, None])).sum(-1)
        return x, y + self.noise * noise


def normal(u: Tensor) -> Tensor:
    """(..., 2) uniform in [0, 1) -> (..., 2) independent and standard normal (Box & Muller 1958)"""
    length, angle = (-2 * torch.log1p(-u[..., 0])).sqrt(), 2 * pi * u[..., 1]
    return torch.stack([length * angle.cos(), length * angle.sin()], -1)
