"""Harmonics: sums of two sines as their docstring says, and the same ones for whoever asks."""

from __future__ import annotations

from math import pi
from pathlib import Path

import pytest
import torch

from metarun.data.harmonic import Harmonic
from metarun.data.sinusoid import CurveSampler, Sinusoid
from metarun.types import InputError, Place

NOWHERE = Place(Path())


def sampler(shot: int = 5, query: int = 7, seed: int = 0, split: str = "test", noise: float = 0.0) -> CurveSampler:
    return Harmonic(noise=noise).load(split, NOWHERE).episodes(1, shot, query, seed, split)


def test_points_lie_on_the_curve_of_their_task() -> None:
    draw = sampler()
    _, frequency, phase, amplitude = draw.curves(10, 4)
    episodes = draw(10, 4)
    assert episodes.support_x.shape == episodes.support_y.shape == (4, 5, 1)
    for task in range(4):
        f, p, a = float(frequency[task]), phase[task].tolist(), amplitude[task].tolist()
        for x, y in ((episodes.support_x, episodes.support_y), (episodes.query_x, episodes.query_y)):
            x = x[task].double()
            expected = a[0] * torch.sin(f * x + p[0]) + a[1] * torch.sin(2 * f * x + p[1])
            torch.testing.assert_close(y[task].double(), expected, atol=2e-4, rtol=0)


def test_what_is_drawn_fills_its_ranges() -> None:
    draw = sampler(query=2)
    centre, frequency, phase, amplitude = draw.curves(0, 20_000)
    even = [(centre, -4, 4), (frequency, 5, 7), (phase[:, 0], 0, 2 * pi), (phase[:, 1], 0, 2 * pi)]
    for values, low, high in even:
        spread = (values - low) / (high - low)
        assert 0 <= float(spread.min()) < 0.001 and 0.999 < float(spread.max()) <= 1
        assert float((torch.histc(spread, 10) / len(spread) - 0.1).abs().max()) < 0.01
    away = draw(0, 20_000).query_x[..., 0] - centre[:, None]
    for values in (amplitude[:, 0], amplitude[:, 1], away[:, 0], away[:, 1]):
        assert float(values.mean()) == pytest.approx(0, abs=0.03)
        assert float(values.std()) == pytest.approx(1, abs=0.03)
        assert float((values.abs() < 1.96).float().mean()) == pytest.approx(0.95, abs=0.01)
    drawn = torch.stack([*(values for values, *_ in even), *amplitude.T, *away.T])
    assert float((torch.corrcoef(drawn) - torch.eye(8)).abs().max()) < 0.04
    assert float(draw(0, 20_000).query_y.var()) == pytest.approx(1, abs=0.05)


def test_noise_is_added_to_y_alone() -> None:
    quiet, loud = sampler()(0, 4000), sampler(noise=0.5)(0, 4000)
    assert torch.equal(quiet.query_x, loud.query_x)
    noise = (loud.query_y - quiet.query_y)[..., 0]
    assert float(noise.std()) == pytest.approx(0.5, abs=0.01)
    assert abs(float(torch.corrcoef(noise[:, :2].T)[0, 1])) < 0.04


def test_a_curve_is_its_index_however_it_is_asked_for() -> None:
    whole, part = sampler()(0, 6), sampler()(4, 2)
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[4:], b)
    for other in (sampler(seed=1), sampler(split="val")):
        assert not torch.equal(other(0, 6).support_x, whole.support_x)
    for a, b in zip(sampler(shot=5).curves(0, 3), sampler(shot=10).curves(0, 3), strict=True):
        assert torch.equal(a, b)


def test_what_makes_no_sense_is_refused() -> None:
    bank = Harmonic().load("train", NOWHERE)
    with pytest.raises(InputError, match=r"task\.way=5: a regression task has no classes"):
        bank.episodes(5, 1, 1, 0, "train", "task")
    with pytest.raises(InputError, match="dataset=harmonic has no classes"):
        bank.batches(0, "train")
    with pytest.raises(ValueError, match="least_frequency=8 is above most_frequency=7"):
        Harmonic(least_frequency=8.0)


def test_other_ranges_are_other_data() -> None:
    digests = {d.load("train", NOWHERE).digest() for d in (Harmonic(), Harmonic(noise=0.1), Sinusoid())}
    assert len(digests) == 3
