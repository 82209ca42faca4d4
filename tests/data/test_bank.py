"""Banks: parts of them, turned classes, groups that are kept apart, and items that stay on the disk."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metarun.data.ahead import Ahead
from metarun.data.bank import ClassBank, subset, with_turns
from metarun.data.packed import mapped
from metarun.types import EpisodeBatch, InputError


def bank(sizes: list[int] | None = None, groups: list[int] | None = None) -> ClassBank:
    """Every item is its own number."""
    sizes = sizes or [6, 4, 9, 5, 7]
    items = torch.arange(sum(sizes), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return ClassBank(
        items,
        torch.tensor([0, *sizes]).cumsum(0),
        tuple(f"c{i}" for i in range(len(sizes))),
        groups=None if groups is None else torch.tensor(groups),
    )


def numbers(x: Tensor) -> Tensor:
    return (x[..., 0, 0, 0] * 255).round().long()


# Parts


def test_a_subset_has_so_many_classes_and_images_as_they_were() -> None:
    whole = bank()
    part = subset(whole, 3, 4, 0)
    assert part.sizes.tolist() == [4] * 3
    for name, start, end in zip(part.names, part.offsets, part.offsets[1:]):
        c = whole.names.index(name)
        rows = part.items[start:end, 0, 0, 0].tolist()
        assert len(set(rows)) == 4
        assert all(whole.offsets[c] <= row < whole.offsets[c + 1] for row in rows)


def test_more_of_it_is_the_same_and_more() -> None:
    whole = bank()
    for few, many in pairwise(range(2, 6)):
        assert set(subset(whole, few, None, 0).names) < set(subset(whole, many, None, 0).names)
        less, more = (
            {int(i) for i in subset(whole, None, n, 0).items[:, 0, 0, 0]} for n in (few - 1, min(many - 1, 4))
        )
        assert less < more
    assert {subset(whole, 2, None, seed).names for seed in range(20)} != {subset(whole, 2, None, 0).names}


def test_a_subset_of_more_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.classes=6: the training split has 5"):
        subset(bank(), 6, None, 0)
    with pytest.raises(ValueError, match=r"data.images=5: class 'c1' has 4"):
        subset(bank(), None, 5, 0)


def test_turned_classes_are_new_ones() -> None:
    items = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    whole = ClassBank(items, torch.tensor([0, 2, 5]), ("a", "b"), groups=torch.tensor([0, 0, 1, 1, 2]))
    turned = with_turns(whole)
    assert turned.names == ("a", "b", "a/rot90", "b/rot90", "a/rot180", "b/rot180", "a/rot270", "b/rot270")
    assert turned.sizes.tolist() == [2, 3] * 4
    assert torch.equal(turned.items[5:7], torch.rot90(items[:2], 1, (2, 3)))
    assert torch.equal(turned.items[17:], torch.rot90(items[2:], 3, (2, 3)))
    assert turned.groups is not None and turned.groups.tolist() == [0, 0, 1, 1, 2] * 4
    with pytest.raises(ValueError, match="only square images"):
        with_turns(ClassBank(items[..., :3], whole.offsets, whole.names))


def test_a_digest_tells_items_and_classes_apart() -> None:
    one = bank()
    assert one.digest() == bank().digest()
    changed = one.items.clone()
    changed[3] += 1
    assert ClassBank(changed, one.offsets, one.names).digest() != one.digest()
    assert bank([6, 4, 9, 6, 6]).digest() != one.digest()
    known = [ClassBank(one.items, one.offsets, one.names, checksum=c).digest() for c in ("a", "b")]
    assert known[0] != known[1]


def test_features_are_as_they_are_and_images_a_part_of_one() -> None:
    features = torch.randn(6, 3)
    made = ClassBank(features, torch.tensor([0, 3, 6]), ("a", "b"))
    assert torch.equal(made.rows(torch.tensor([4, 1])), features[[4, 1]])
    assert float(bank().rows(torch.tensor([5]))[0, 0, 0, 0]) == pytest.approx(5 / 255)
    assert len(made.digest()) == 8


# Groups

GROUPED = [6, 9, 12]
GROUPS = [0, 0, 1, 1, 2, 2, *[3, 3, 3, 4, 5, 6, 7, 7, 7], *range(10, 22)]


@pytest.mark.parametrize(("shot", "query"), [(1, 1), (1, 3), (2, 3), (3, 2)])
def test_support_and_queries_share_no_group(shot: int, query: int) -> None:
    grouped = bank(GROUPED, GROUPS)
    episodes = grouped.episodes(3, shot, query, 0, "train")(0, 400)
    group = torch.tensor(GROUPS)
    seen: set[int] = set()
    for support_x, support_y, query_x, query_y in zip(*episodes):
        rows, others = numbers(support_x), numbers(query_x)
        assert len(set(rows.tolist()) | set(others.tolist())) == 3 * (shot + query), "an image twice"
        assert not set(group[rows].tolist()) & set(group[others].tolist())
        assert support_y.bincount().tolist() == [shot] * 3 and query_y.bincount().tolist() == [query] * 3
        seen |= set(rows.tolist()) | set(others.tolist())
    assert seen == set(range(27)), "every image is drawn at some time"


def test_groups_too_large_to_part_are_refused() -> None:
    with pytest.raises(InputError, match=r"class 'c0' of 'train' has 6 examples, up to 2 of them in one group"):
        bank(GROUPED, GROUPS).episodes(3, 2, 4, 0, "train")
    bank(GROUPED, GROUPS).episodes(3, 2, 3, 0, "train")


def test_groups_of_one_leave_the_choice_free() -> None:
    free = bank(GROUPED, list(range(27))).episodes(3, 2, 3, 0, "train")(0, 600)
    counts = numbers(free.query_x).flatten().bincount(minlength=27).float()
    for start, end in ((0, 6), (6, 15), (15, 27)):
        part = counts[start:end]
        assert float(part.max()) < 1.35 * float(part.mean())


# Items on the disk


def test_items_over_the_budget_stay_where_they_are(tmp_path: Path) -> None:
    made = bank()
    (tmp_path / "items").write_bytes(made.items.numpy().tobytes())
    on_disk = ClassBank(mapped(tmp_path / "items", tuple(made.items.shape)), made.offsets, made.names)
    for budget, ahead in ((None, False), (10**6, False), (10, True)):
        there = on_disk.to("cpu", budget)
        assert there.ahead is ahead
        episodes = Ahead(there.episodes(3, 1, 2, 0, "train"))
        plain = made.episodes(3, 1, 2, 0, "train")
        for first in (0, 4, 8, 2):
            assert all(torch.equal(a, b) for a, b in zip(episodes(first, 4), plain(first, 4)))


def test_the_next_episodes_are_made_while_nobody_waits() -> None:
    asked: list[tuple[int, int, str]] = []
    next_made = threading.Event()
    plain = bank().episodes(3, 1, 2, 0, "train")

    class Watched:
        item_shape, outputs, classes = plain.item_shape, plain.outputs, plain.classes

        def __call__(self, first: int, count: int) -> EpisodeBatch:
            asked.append((first, count, threading.current_thread().name))
            if first:
                next_made.set()
            return plain(first, count)

    ahead = Ahead(Watched())
    ahead(0, 4)
    assert next_made.wait(10)
    assert [a[:2] for a in asked] == [(0, 4), (4, 4)]
    assert asked[1][2].startswith("ahead")
    assert (ahead.item_shape, ahead.outputs) == (plain.item_shape, plain.outputs)
    assert torch.equal(ahead(4, 4).query_x, plain(4, 4).query_x)
    assert (4, 4) not in [a[:2] for a in asked[2:]]


def test_episodes_that_lie_apart_are_made_ahead_too() -> None:
    """As one of three processes asks for them, which share a list; then for the list again."""
    plain = bank().episodes(3, 1, 2, 0, "train")
    asked: list[int] = []

    class Watched:
        item_shape, outputs, classes = plain.item_shape, plain.outputs, plain.classes

        def __call__(self, first: int, count: int) -> EpisodeBatch:
            asked.append(first)
            return plain(first, count)

    ahead = Ahead(Watched())
    for first in (4, 16, 28, 4, 16):
        assert torch.equal(ahead(first, 4).query_x, plain(first, 4).query_x)
        ahead._thread.submit(int).result()  # what it makes ahead is made
    assert asked == [4, 8, 16, 28, 40, 4, 16, 28]  # one guess of each list was wrong


def test_what_goes_wrong_in_the_thread_is_told() -> None:
    plain = bank().episodes(3, 1, 2, 0, "train")

    class Failing:
        item_shape, outputs, classes = plain.item_shape, plain.outputs, plain.classes

        def __call__(self, first: int, count: int) -> EpisodeBatch:
            if first:
                raise OSError("the disk is gone")
            return plain(first, count)

    ahead = Ahead(Failing())
    ahead(0, 4)
    with pytest.raises(OSError, match="the disk is gone"):
        ahead(4, 4)
