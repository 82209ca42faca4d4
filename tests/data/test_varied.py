"""Ways and shots that vary from one meta-batch to the next, and classes with unequal shots."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from metarun.data.bank import ClassBank
from metarun.data.varied import Shapes, VariedSampler, unequal


def bank(sizes: list[int] | None = None) -> ClassBank:
    sizes = sizes or [12] * 9
    items = torch.arange(sum(sizes), dtype=torch.uint8).view(-1, 1, 1, 1).contiguous()
    return ClassBank(items, torch.tensor([0, *sizes]).cumsum(0), tuple(f"c{i}" for i in range(len(sizes))))


def sampler(
    way: tuple[int, int] = (2, 6), shot: tuple[int, int] = (1, 4), balanced: bool = True, seed: int = 0
) -> VariedSampler:
    largest = bank().episodes(way[1], shot[1], 3, seed, "train")
    return VariedSampler(largest, Shapes(way, shot, 4, seed), balanced)


def test_every_way_and_shot_is_as_likely() -> None:
    shapes = Shapes((2, 6), (1, 4), 4, 0)
    drawn = [shapes.at(first) for first in range(0, 8000, 4)]
    for i, values in enumerate((range(2, 7), range(1, 5))):
        counts = Counter(pair[i] for pair in drawn)
        assert set(counts) == set(values)
        assert max(counts.values()) < 1.3 * min(counts.values())
    assert drawn != [Shapes((2, 6), (1, 4), 4, 1).at(first) for first in range(0, 8000, 4)]
    assert all(shapes.at(first) == shapes.at(first - first % 4) for first in range(50))


@pytest.mark.parametrize("balanced", [True, False])
def test_a_meta_batch_is_of_its_shape_and_the_same_in_parts(balanced: bool) -> None:
    varied = sampler(balanced=balanced)
    for first in range(0, 80, 4):
        way, shot = varied.shapes.at(first)
        whole = varied(first, 4)
        assert whole.support_x.shape == (4, way * shot, 1, 1, 1)
        assert whole.query_x.shape == (4, way * 3, 1, 1, 1)
        part = varied(first + 1, 2)
        assert all(torch.equal(a[1:3], b) for a, b in zip(whole, part))
        classes = varied.classes(first, 4)
        for t in range(4):
            support, query = ((255 * x[t].flatten()).round().long() for x in (whole.support_x, whole.query_x))
            assert len({*support.tolist(), *query.tolist()}) == len(support) + len(query), "an image twice"
            assert torch.equal(support // 12, classes[t][whole.support_y[t]])
            assert torch.equal(query // 12, classes[t][whole.query_y[t]])
            shots = whole.support_y[t].bincount(minlength=way)
            assert int(shots.min()) >= 1 and int(shots.max()) <= 9
            if balanced:
                assert shots.tolist() == [shot] * way
            assert whole.query_y[t].bincount().tolist() == [3] * way


def test_unequal_shots_are_unequal() -> None:
    varied = sampler(way=(5, 5), shot=(4, 4), balanced=False)
    shots = torch.stack([y.bincount(minlength=5) for y in varied(0, 4).support_y])
    assert shots.sum(1).tolist() == [20] * 4
    assert all(len(set(row.tolist())) > 1 for row in shots)


def test_shots_follow_their_weights_within_their_limits() -> None:
    u = torch.rand(500, 5, generator=torch.Generator().manual_seed(0))
    shots = unequal(u, 40, 12)
    assert shots.sum(1).tolist() == [40] * 500
    assert int(shots.min()) >= 1 and int(shots.max()) <= 12
    weights = 2 ** (2 * u - 1)
    free = (shots < 12).all(1)
    wanted = 40 * weights / weights.sum(1, keepdim=True)
    assert float((shots - wanted)[free].abs().max()) < 1.5
    assert unequal(u[:3], 5, 12).tolist() == [[1] * 5] * 3
    assert unequal(u[:3], 60, 12).tolist() == [[12] * 5] * 3
