"""Curves and the points on them: the ranges of the paper, and the same curves for whoever asks."""

from __future__ import annotations

from math import pi
from pathlib import Path

import pytest
import torch

from metarun.data.sinusoid import CurveSampler, Sinusoid
from metarun.types import InputError, Place

NOWHERE = Place(Path())


def sampler(shot: int = 5, query: int = 7, seed: int = 0, split: str = "test") -> CurveSampler:
    return Sinusoid().load(split, NOWHERE).episodes(1, shot, query, seed, split)


def test_points_lie_on_the_curve_of_their_task() -> None:
    draw = sampler()
    amplitude, phase = draw.curves(10, 4)
    episodes = draw(10, 4)
    assert episodes.support_x.shape == episodes.support_y.shape == (4, 5, 1)
    assert episodes.query_x.shape == episodes.query_y.shape == (4, 7, 1)
    for x, y in ((episodes.support_x, episodes.support_y), (episodes.query_x, episodes.query_y)):
        expected = amplitude[:, None, None] * torch.sin(x - phase[:, None, None])
        torch.testing.assert_close(y, expected)


def test_amplitudes_phases_and_points_fill_their_ranges_evenly() -> None:
    draw = sampler()
    amplitude, phase = draw.curves(0, 20_000)
    x = draw(0, 4_000).query_x
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, pi), (x, -5.0, 5.0)):
        spread = (values.flatten() - low) / (high - low)
        assert 0 <= float(spread.min()) < 0.001
        assert 0.999 < float(spread.max()) < 1
        counts = torch.histc(spread, 10) / spread.numel()
        assert float((counts - 0.1).abs().max()) < 0.01
    assert abs(float(torch.corrcoef(torch.stack([amplitude, phase]))[0, 1])) < 0.03


def test_a_curve_is_its_index_however_it_is_asked_for() -> None:
    whole, part = sampler()(0, 6), sampler()(4, 2)
    for a, b in zip(whole, part):
        assert torch.equal(a[4:], b)
    for other in (sampler(seed=1), sampler(split="val")):
        assert not torch.equal(other(0, 6).support_x, whole.support_x)
        assert not torch.equal(other.curves(0, 6)[0], sampler().curves(0, 6)[0])


def test_other_shots_are_other_points_of_the_same_curve() -> None:
    assert torch.equal(sampler(shot=5).curves(0, 3)[0], sampler(shot=10).curves(0, 3)[0])


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(InputError, match=r"task\.way=5: a regression task has no classes; set task\.way=1"):
        Sinusoid().load("train", NOWHERE).episodes(5, 1, 1, 0, "train", "task")
    with pytest.raises(InputError, match="no classes"):
        Sinusoid().load("train", NOWHERE).batches(0, "train")
    with pytest.raises(ValueError, match="least_amplitude=6"):
        Sinusoid(least_amplitude=6.0)


def test_other_ranges_are_other_data() -> None:
    assert Sinusoid().load("train", NOWHERE).digest() != Sinusoid(most_x=4.0).load("train", NOWHERE).digest()
