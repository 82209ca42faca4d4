"""Changed training images: each by its own numbers, the same whenever they are asked for, and images still."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metarun.data.augment import DRAWS, Augment, Augmented, erased, jittered, moved, turned, zoomed
from metarun.data.bank import ClassBank

ALL = Augment(crop=3, flip=True, zoom=0.5, rotation=20, jitter=0.4, erase=0.5)
ONE = [Augment(crop=3), Augment(flip=True), Augment(zoom=0.3), Augment(rotation=30), Augment(jitter=0.5),
       Augment(erase=1.0)]  # fmt: skip


def images(n: int = 6, channels: int = 3, side: int = 9, seed: int = 0) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def numbers(n: int = 6, seed: int = 1) -> Tensor:
    return torch.rand(n, DRAWS, generator=torch.Generator().manual_seed(seed))


def bank(side: int = 9) -> ClassBank:
    items = (255 * images(40, 3, side)).byte()
    return ClassBank(items, torch.arange(5) * 10, tuple("abcd"))


def make(augment: Augment, seed: int = 0) -> Augmented:
    return Augmented(bank().episodes(3, 2, 2, 0, "train"), augment, seed, "train")


# What each does


@pytest.mark.parametrize(("down", "across"), [(0, 0), (2, 0), (-1, 2), (3, -3)])
def test_a_moved_image_has_a_black_edge(down: int, across: int) -> None:
    x, most = images(1), 3
    u = (torch.tensor([[down, across]]) + most + 0.5) / (2 * most + 1)
    padded = torch.nn.functional.pad(x, (most,) * 4)
    top, left = most - down, most - across
    assert torch.equal(moved(x, u, most, None), padded[..., top : top + 9, left : left + 9])


def test_moves_reach_every_place_and_mirrors_every_other_image() -> None:
    x = torch.zeros(2000, 1, 9, 9)
    x[..., 4, 3] = 1
    there = Augment(crop=2, flip=True)(x, numbers(2000)).squeeze(1)
    places = {(int(i), int(j)) for i, j in there.flatten(1).argmax(1)[:, None] // torch.tensor([9, 1]) % 9}
    assert places == {(4 + d, c + a) for d in range(-2, 3) for c in (3, 5) for a in range(-2, 3)}


def test_a_mirrored_image_is_flipped() -> None:
    x = images(2)
    y = moved(x, torch.full((2, 2), 0.5), 0, torch.tensor([True, False]))
    assert torch.equal(y, torch.stack([x[0].flip(-1), x[1]]))


@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
@pytest.mark.parametrize("side", [8, 9])
def test_a_quarter_turn_is_rot90(quarter: int, side: int) -> None:
    x = images(2, 3, side)
    assert torch.allclose(
        turned(x, torch.full((2,), quarter * math.pi / 2)), torch.rot90(x, quarter, (2, 3)), atol=1e-5
    )


def test_a_turn_in_a_rectangle_keeps_lengths() -> None:
    x = torch.zeros(1, 1, 9, 17)
    x[..., 4, 8 + 3] = 1  # three to the right of the middle
    y = turned(x, torch.tensor([math.pi / 2]))
    assert y[0, 0, 4 - 3, 8] == pytest.approx(1, abs=1e-4) or y[0, 0, 4 + 3, 8] == pytest.approx(1, abs=1e-4)


def test_a_zoom_shows_a_part_and_all_of_it_where_it_is_one() -> None:
    x = torch.arange(81.0).view(1, 1, 9, 9) / 81
    assert torch.allclose(zoomed(x, torch.tensor([[1.0, 0.5, 0.3, 0.9]]), 0.2), x, atol=1e-5)
    part = zoomed(x.expand(500, -1, -1, -1), numbers(500)[:, :4], 0.2)
    spread = part.flatten(1).amax(1) - part.flatten(1).amin(1)
    assert 0.1 < float(spread.min()) < 0.6 < float(spread.max()) <= 1
    assert float(part.min()) >= 0


def test_jitter_of_one_changes_nothing_and_grey_has_no_saturation() -> None:
    x = images()
    assert torch.allclose(jittered(x, torch.ones(6, 3)), x, atol=1e-6)
    darker = jittered(x, torch.tensor([[0.5, 1.0, 1.0]]).expand(6, -1))
    assert torch.allclose(darker, 0.5 * x, atol=1e-6)
    flat = jittered(x, torch.tensor([[1.0, 0.0, 1.0]]).expand(6, -1))
    assert float(flat.std(dim=(1, 2, 3)).max()) < 1e-6
    grey = jittered(x, torch.tensor([[1.0, 1.0, 0.0]]).expand(6, -1))
    assert torch.allclose(grey[:, 0], grey[:, 2], atol=1e-6)


def test_an_erased_part_is_as_large_as_it_should_be() -> None:
    x, u = torch.ones(4000, 1, 28, 28), numbers(4000)[:, 7:12]
    black = 1 - erased(x, u, 0.5).mean((1, 2, 3))
    assert 0.45 < float((black > 0).float().mean()) < 0.55
    some = black[black > 0]
    assert 0.01 < float(some.min()) < 0.05 < 0.25 < float(some.max()) < 0.37


# Episodes


@pytest.mark.parametrize("augment", [*ONE, ALL])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_comes_out_are_images_that_are_not_what_went_in(augment: Augment, channels: int) -> None:
    x = images(30, channels)
    y = augment(x, numbers(30))
    assert y.shape == x.shape
    assert float(y.min()) >= 0 and float(y.max()) <= 1
    changed = (y - x).abs().amax((1, 2, 3)) > 1e-3
    assert int(changed.sum()) > 8


def test_nothing_asked_for_is_nothing_done() -> None:
    x = images()
    assert torch.equal(Augment()(x, numbers()), x)


def test_episodes_are_changed_image_by_image_and_keep_their_labels() -> None:
    plain, made = bank().episodes(3, 2, 2, 0, "train")(0, 4), make(ALL)(0, 4)
    assert torch.equal(made.support_y, plain.support_y) and torch.equal(made.query_y, plain.query_y)
    assert made.support_x.shape == plain.support_x.shape and made.query_x.shape == plain.query_x.shape
    u = Augmented(lambda first, count: plain, Augment(erase=1.0), 0, "train")(0, 4)  # type: ignore[arg-type]
    black = torch.cat([u.support_x, u.query_x], 1).flatten(0, 1).eq(0).flatten(1)
    assert len({tuple(row.tolist()) for row in black}) == len(black), "two images were erased alike"


def test_an_episode_is_the_same_in_whatever_batch_it_is_asked_for() -> None:
    whole = make(ALL)(0, 6)
    for first, count in ((0, 1), (2, 3), (5, 1)):
        part = make(ALL)(first, count)
        assert all(torch.equal(a, b[first : first + count]) for a, b in zip(part, whole))


def test_the_seed_says_how() -> None:
    assert torch.equal(make(ALL, 3)(2, 2).query_x, make(ALL, 3)(2, 2).query_x)
    assert not torch.equal(make(ALL, 3)(2, 2).query_x, make(ALL, 4)(2, 2).query_x)


def test_supervised_batches_are_changed_anew_each_time() -> None:
    white = ClassBank(torch.full((10, 1, 9, 9), 255, dtype=torch.uint8), torch.tensor([0, 5, 10]), ("a", "b"))
    batches = Augmented(white.batches(0, "train"), Augment(erase=1.0), 0, "train")
    one, two = batches(0, 8).query_x[0], batches(8, 8).query_x[0]
    assert one.shape == (8, 1, 9, 9)
    whole = batches(0, 16).query_x[0]
    assert torch.equal(whole, torch.cat([one, two]))
    assert not torch.equal(one, two)
