"""Episodes are a pure function of (seed, split, index), drawn fairly, and never change from one version to the next."""

from __future__ import annotations

import random
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor

from metarun.data.bank import ClassBank
from metarun.data.sampler import EpisodeSampler, mix
from metarun.types import EpisodeBatch, InputError

RAGGED = (6, 9, 7, 30, 6, 12, 8)


def make_bank(sizes: tuple[int, ...] = RAGGED) -> ClassBank:
    """Each item says which it is: (class, number within the class)."""
    rows = [(c, i) for c, size in enumerate(sizes) for i in range(size)]
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    return ClassBank(torch.tensor(rows, dtype=torch.uint8), offsets, tuple(f"class{c}" for c in range(len(sizes))))


def make_sampler(bank: ClassBank | None = None, **changes: Any) -> EpisodeSampler:
    settings: dict[str, Any] = {"way": 4, "shot": 2, "query": 3, "seed": 0, "split": "train"}
    return EpisodeSampler(bank or make_bank(), **settings | changes)


def decode(x: Tensor) -> tuple[Tensor, Tensor]:
    """What the items of an episode are: class, number within the class."""
    classes, numbers = (x * 255).round().long().unbind(-1)
    return classes, numbers


def whole(episodes: EpisodeBatch) -> tuple[Tensor, Tensor, Tensor]:
    """(T, shot + query, way) class, number within the class, and label of every item."""
    x, y = torch.cat([episodes.support_x, episodes.query_x], 1), torch.cat([episodes.support_y, episodes.query_y], 1)
    return tuple(part.unflatten(1, (-1, 4)) for part in (*decode(x), y))  # type: ignore[return-value]


def same(a: EpisodeBatch, b: EpisodeBatch) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a, b))


# Pure


@pytest.mark.parametrize(("first", "count"), [(0, 1), (3, 1), (7, 1), (2, 5), (0, 8)])
def test_an_episode_is_the_same_in_whatever_batch(first: int, count: int) -> None:
    eight = make_sampler()(0, 8)
    part = EpisodeBatch(*(field[first : first + count] for field in eight))
    assert same(make_sampler()(first, count), part)


def test_asking_for_other_episodes_before_changes_nothing() -> None:
    used = make_sampler()
    for first in (5, 0, 900):
        used(first, 3)
    torch.rand(10)
    assert same(used(4, 2), make_sampler()(4, 2))


def test_seeds_and_splits_and_indices_give_other_episodes() -> None:
    bank = make_bank((20,) * 30)
    samplers = [make_sampler(bank, seed=seed, split=split) for seed in range(4) for split in ("train", "val", "test")]
    drawn = [x.flatten().tolist() for s in samplers for x in s(0, 50).support_x]
    assert len(set(map(tuple, drawn))) == len(drawn)


def test_large_seeds_and_indices_work() -> None:
    late = make_sampler(seed=2**63)(10**12, 2)
    assert same(late, make_sampler(seed=2**63)(10**12, 2))
    assert not same(late, make_sampler(seed=2**62)(10**12, 2))


def test_the_episode_list_is_pinned() -> None:
    """A published number stands for these tasks: do not change the numbers below, ever."""
    sampler = make_sampler(shot=1, query=1, seed=1, split="test")
    support, query = (decode(x) for x in sampler(0, 3)[::2])
    assert support[0].tolist() == [[3, 0, 4, 5], [5, 2, 0, 6], [0, 1, 2, 6]]
    assert support[1].tolist() == [[23, 2, 1, 6], [0, 4, 3, 2], [3, 1, 0, 3]]
    assert query[1].tolist() == [[19, 3, 5, 5], [5, 6, 5, 5], [4, 0, 1, 7]]
    late, _ = decode(make_sampler(make_bank((20,) * 200), way=5, seed=7, split="val")(599, 1).support_x)
    assert late[0, :5].tolist() == [47, 132, 180, 187, 6]


# Whole


def test_each_episode_has_distinct_classes_in_one_order_and_distinct_items() -> None:
    classes, numbers, labels = whole(make_sampler()(0, 500))
    assert (classes == classes[:, :1]).all()  # column c is one class, whatever the shot
    assert all(len(set(row)) == 4 for row in classes[:, 0].tolist())
    assert (labels == torch.arange(4)).all()
    for columns in numbers.mT.tolist():
        assert all(len(set(column)) == 5 for column in columns)


def test_items_lie_shot_by_shot_with_their_labels() -> None:
    episodes = make_sampler()(0, 2)
    assert episodes.support_x.shape == (2, 8, 2)
    assert episodes.query_x.shape == (2, 12, 2)
    assert episodes.support_y.tolist() == [[0, 1, 2, 3] * 2] * 2
    assert episodes.query_y.tolist() == [[0, 1, 2, 3] * 3] * 2


def test_a_class_that_is_just_large_enough_gives_all_it_has() -> None:
    classes, numbers, _ = whole(make_sampler(shot=2, query=4)(0, 200))
    small = numbers.mT[classes.mT == 0].view(-1, 6)
    assert len(small) > 50
    assert (small.sort().values == torch.arange(6)).all()


def test_no_item_from_beyond_its_class() -> None:
    classes, numbers, _ = whole(make_sampler()(0, 1000))
    assert (numbers < torch.tensor(RAGGED)[classes]).all()


def test_images_become_float_between_0_and_1() -> None:
    bank = ClassBank(torch.tensor([[0], [255], [51]] * 2, dtype=torch.uint8), torch.tensor([0, 3, 6]), ("a", "b"))
    x = EpisodeSampler(bank, way=2, shot=3, query=0, seed=0, split="train")(0, 1).support_x
    assert x.dtype == torch.float32
    assert sorted(x.flatten().tolist()) == pytest.approx([0, 0, 0.2, 0.2, 1, 1])


# Fair


def chi_square(counts: Tensor) -> float:
    expected = counts.double().mean()
    return float(((counts - expected) ** 2 / expected).sum())


def test_classes_are_drawn_evenly_in_every_position() -> None:
    classes, _, _ = whole(make_sampler()(0, 7000))
    for position in classes[:, 0].T:
        # 6 degrees of freedom: above 22.5 once in a thousand
        assert chi_square(position.bincount(minlength=len(RAGGED))) < 22.5


def test_items_are_drawn_evenly_in_every_position_whatever_the_size_of_their_class() -> None:
    classes, numbers, _ = whole(make_sampler()(0, 7000))
    for c, size in enumerate(RAGGED):
        for shot in (0, 4):
            drawn = numbers[:, shot][classes[:, shot] == c]
            # mean size - 1, standard deviation sqrt(2 (size - 1))
            assert chi_square(drawn.bincount(minlength=size)) < size - 1 + 4.5 * (2 * (size - 1)) ** 0.5


def test_pairs_of_classes_are_drawn_evenly() -> None:
    classes, _, _ = whole(make_sampler()(0, 8400))
    first, second = classes[:, 0, :2].T
    counts = (first * len(RAGGED) + second).bincount(minlength=49).view(7, 7)
    pairs = counts[~torch.eye(7, dtype=torch.bool)]
    assert counts.diagonal().sum() == 0
    assert chi_square(pairs) < 41 + 4.5 * (2 * 41) ** 0.5


def test_neighbouring_episodes_have_nothing_to_do_with_one_another() -> None:
    classes, _, _ = whole(make_sampler()(0, 7000))
    again = (classes[1:, 0] == classes[:-1, 0]).double().mean(0)  # 1/7 by chance
    assert ((again - 1 / 7).abs() < 4.5 * (1 / 7 * 6 / 7 / 7000) ** 0.5).all()


# Refused


def test_too_many_ways_say_how_many_there_are() -> None:
    with pytest.raises(InputError, match=r"task\.way=8: split 'val' has 7 classes; lower task\.way"):
        make_sampler(way=8, split="val")


@pytest.mark.parametrize(("shot", "query"), [(1, 6), (6, 1), (7, 0)])
def test_too_many_items_name_the_class_and_the_limit(shot: int, query: int) -> None:
    said = (
        rf"class 'class0' of 'test' has 6 examples, eval\.shot \+ eval\.query = {shot} \+ {query} = 7: lower eval\.shot"
    )
    with pytest.raises(InputError, match=said):
        make_sampler(shot=shot, query=query, split="test", asked_by="eval")


def test_all_classes_and_all_items_may_be_used() -> None:
    classes, _ = decode(make_sampler(way=7, shot=3, query=3)(0, 20).support_x)
    assert (classes[:, :7].sort().values == torch.arange(7)).all()


# The generator


def split_mix(x: int) -> int:
    """SplitMix64 as published (Steele, Lea & Flood 2014), in Python's integers."""
    wrap = 2**64 - 1
    z = (x + 0x9E3779B97F4A7C15) & wrap
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & wrap
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & wrap
    return z ^ (z >> 31)


def signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def test_mix_is_split_mix_64() -> None:
    assert split_mix(0) == 0xE220A8397B1DCDAF  # the first output of the reference code seeded with 0
    draw = random.Random(0)
    x = [0, 1, 2**63 - 1, 2**63, 2**64 - 1] + [draw.getrandbits(64) for _ in range(1000)]
    mixed = mix(torch.tensor([signed(v) for v in x]))
    assert mixed.tolist() == [signed(split_mix(v)) for v in x]


def plain_episode(sizes: tuple[int, ...], way: int, items: int, seed: int, split: str, index: int) -> list[Any]:
    """[[(class, number), ...] for each item of a class]: the sampler's definition, one class and item at a time."""
    stream = split_mix(seed * 0x9E3779B97F4A7C15 + crc32(split.encode()))
    task = split_mix(index + stream)

    def drawn(start: int, among: int, count: int) -> list[int]:
        return sorted(range(among), key=lambda i: -signed(split_mix(start + i)))[:count]

    classes = drawn(task, len(sizes), way)
    within = split_mix(task ^ 0xBF58476D1CE4E5B9)
    numbers = [drawn(split_mix(within + c), sizes[c], items) for c in classes]
    return [[(c, column[i]) for c, column in zip(classes, numbers)] for i in range(items)]


@pytest.mark.parametrize(("seed", "split", "first"), [(0, "train", 0), (5, "val", 599), (2**40, "test", 10**7)])
def test_episodes_are_those_of_the_definition(seed: int, split: str, first: int) -> None:
    classes, numbers, _ = whole(make_sampler(seed=seed, split=split)(first, 10))
    found = torch.stack((classes, numbers), -1).tolist()
    for i, episode in enumerate(found):
        assert [list(map(tuple, row)) for row in episode] == plain_episode(RAGGED, 4, 5, seed, split, first + i)
