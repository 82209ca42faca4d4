"""Stored regression tasks: episodes that anyone can draw again, and columns brought to one scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metarun.data.ahead import Ahead
from metarun.data.taskbank import Scale, TaskBank, TaskSampler, grouped
from metarun.types import InputError

SIZES = [9, 12, 30, 9]


def bank(sizes: list[int] = SIZES) -> TaskBank:
    """Each item holds the number of its task, and of its row; so does its target."""
    task = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    row = torch.arange(len(task))
    items = torch.stack([task, row], 1).float()
    return grouped("here", items, 1000 + row[:, None].float(), task, [f"task {i}" for i in range(len(sizes))])


def sampler(shot: int = 3, query: int = 5, seed: int = 0, split: str = "train") -> TaskSampler:
    return bank().episodes(1, shot, query, seed, split)


def rows(part: Tensor) -> Tensor:
    """(tasks, examples) which rows of the bank"""
    return part[..., 1].long()


def test_an_episode_is_distinct_rows_of_one_task() -> None:
    episodes = sampler()(0, 200)
    assert episodes.support_x.shape == (200, 3, 2) and episodes.support_y.shape == (200, 3, 1)
    assert episodes.query_x.shape == (200, 5, 2) and episodes.query_y.shape == (200, 5, 1)
    x = torch.cat([episodes.support_x, episodes.query_x], 1)
    assert torch.equal(torch.cat([episodes.support_y, episodes.query_y], 1)[..., 0], 1000 + x[..., 1])
    assert bool((x[..., 0] == x[:, :1, 0]).all())
    assert torch.equal(x[:, 0, 0].long(), sampler().tasks(0, 200))
    assert all(len(set(own)) == 8 for own in rows(x).tolist())


def test_every_task_and_each_of_its_rows_is_drawn_as_often() -> None:
    episodes = sampler()(0, 8000)
    tasks = episodes.query_x[:, 0, 0].long().bincount(minlength=4) / 8000
    assert float((tasks - 0.25).abs().max()) < 0.02
    for part, each in ((episodes.support_x, 3), (episodes.query_x, 5)):
        own = rows(part)[part[:, 0, 0] == 2].flatten()
        share = (own - 21).bincount(minlength=30) / len(own)
        assert float((share * 30 - 1).abs().max()) < 0.35, each


def test_an_episode_is_its_index_however_it_is_asked_for() -> None:
    whole = sampler()(0, 40)
    for a, b in zip(whole, sampler()(31, 5), strict=True):
        assert torch.equal(a[31:36], b)
    for other in (sampler(seed=1), sampler(split="val")):
        assert not torch.equal(other.tasks(0, 40), sampler().tasks(0, 40))
        assert not torch.equal(other(0, 40).support_x, whole.support_x)
    more = sampler(shot=4)(0, 40)
    assert torch.equal(more.support_x[:, :3], whole.support_x)  # the same task and examples, and one more
    assert sampler().classes(0, 40) is None


def test_what_does_not_fit_the_device_is_drawn_alike() -> None:
    there, away = bank().to("cpu"), bank().to("cpu", budget=0)
    assert not there.ahead and away.ahead
    assert bank().bytes == 60 * 4 * 3
    ahead = Ahead(away.episodes(1, 3, 5, 0, "train"))
    for first in (0, 8, 16):
        for a, b in zip(there.episodes(1, 3, 5, 0, "train")(first, 8), ahead(first, 8), strict=True):
            assert torch.equal(a, b)


@pytest.mark.gpu
def test_a_gpu_draws_the_same() -> None:
    expected = sampler()(3, 50)
    for budget in (None, 0):
        found = bank().to("cuda", budget).episodes(1, 3, 5, 0, "train")(3, 50)
        for a, b in zip(expected, found, strict=True):
            assert b.is_cuda and torch.equal(a, b.cpu())


def test_what_cannot_be_served_is_said() -> None:
    with pytest.raises(InputError, match=r"eval\.way=5: a regression task has no classes; set eval\.way=1"):
        bank().episodes(5, 1, 1, 0, "val", "eval")
    few = r"task 'task 0' of 'val' has 9 rows, eval\.shot \+ eval\.query = 4 \+ 6 = 10: lower eval\.shot or eval\.query"
    with pytest.raises(InputError, match=few + "$"):
        bank().episodes(1, 4, 6, 0, "val", "eval")
    with pytest.raises(InputError, match=few + r", or set dataset\.min_rows=10 to leave such tasks out$"):
        replace(bank(), sieve="dataset.min_rows").episodes(1, 4, 6, 0, "val", "eval")
    with pytest.raises(InputError, match="dataset=here has no classes"):
        bank().batches(0, "train")


def test_other_rows_are_other_data() -> None:
    one = bank()
    others = (
        replace(one, items=one.items + 1),
        replace(one, targets=one.targets + 1),
        replace(one, offsets=one.offsets + torch.tensor([0, 1, 0, 0, 0])),
    )
    assert one.digest() == bank().digest()
    assert len({one.digest(), *(other.digest() for other in others)}) == 4


def test_rows_are_grouped_in_their_order_and_empty_tasks_left_out() -> None:
    items = torch.arange(6.0)[:, None]
    found = grouped("here", items, -items, [2, 0, 2, 0, 3, 2], ["a", "b", "c", "d"])
    assert found.tasks == ("a", "c", "d") and len(found) == 3
    assert found.items[:, 0].tolist() == [1, 3, 0, 2, 5, 4]
    assert found.targets[:, 0].tolist() == [-1, -3, 0, -2, -5, -4]
    assert found.offsets.tolist() == [0, 2, 5, 6]
    assert found.item_shape == (1,) and found.outputs == 1


def test_columns_are_scaled_by_the_rows_that_were_seen() -> None:
    lost = torch.nan
    seen = torch.tensor([[1.0, 1e9, 7.0, lost], [3.0, 1e9 + 2, 7.0, lost], [5.0, lost, 7.0, lost]], dtype=torch.float64)
    scale = Scale.of(seen)
    assert scale.constant == [2, 3]
    new = torch.tensor([[3.0, 1e9, 8.0, 4.0], [torch.nan, torch.nan, 7.0, torch.nan]], dtype=torch.float64)
    assert scale(new).dtype == torch.float32
    assert scale(new)[0].tolist() == [0, -1, 0, 0]
    assert scale(new)[1].tolist() == [0, 0, 0, 0]
    own = scale(seen)[:, 0]
    assert float(own.mean()) == pytest.approx(0) and float(own.square().mean()) == pytest.approx(1)


def test_a_column_of_one_value_is_constant_whatever_its_rounding() -> None:
    assert Scale.of(torch.full((7, 1), 0.1, dtype=torch.float64)).constant == [0]
