"""How many tasks at a time: by the size of a task and what there is to do, the same every time."""

from __future__ import annotations

import pytest
import torch

from metarun.counter import Number
from metarun.engine.portions import CPU_BYTES, FILLED, MOST, PORTIONS, SHARE, few_at_once, task_bytes, tasks_at_once
from metarun.types import Episode, EpisodeBatch, Meta


class Tasks:
    """Of one size; counts how many are drawn."""

    def __init__(self, items: int, *shape: int) -> None:
        self.items, self.shape, self.drawn = items, shape, 0

    def __call__(self, first: Number, count: int) -> EpisodeBatch:
        self.drawn += count
        x = torch.empty(count, self.items, *self.shape)
        return Episode(x, x, x, x)


OMNIGLOT = (1, 28, 28)
SMALL: Meta = {"w": torch.zeros(100_000)}


def test_what_is_asked_for_is_taken() -> None:
    tasks = Tasks(5, *OMNIGLOT)
    assert tasks_at_once(7, tasks, 1000, SMALL) == 7
    assert tasks.drawn == 0


def test_small_tasks_are_divided_among_the_devices_there_may_be() -> None:
    assert tasks_at_once(None, Tasks(5, *OMNIGLOT), 80 * PORTIONS, SMALL) == 80
    assert tasks_at_once(None, Tasks(5, *OMNIGLOT), 200, SMALL) == FILLED
    assert tasks_at_once(None, Tasks(5, 20), 10, {}) == FILLED


def test_large_tasks_are_as_many_as_fit() -> None:
    pictures = Tasks(40, 3, 84, 84)
    at_once = tasks_at_once(None, pictures, 600, SMALL)
    item = 64 * 84 * 84 * 4  # the first layer of a usual network
    assert 1 <= at_once < FILLED
    assert at_once * 2 * pictures.items * item < CPU_BYTES
    assert tasks_at_once(None, Tasks(400, 3, 84, 84), 600, SMALL) == 1
    heavy = {"w": torch.empty(CPU_BYTES // 40, device="meta")}
    assert tasks_at_once(None, Tasks(5, *OMNIGLOT), 600, heavy) == 2
    assert tasks_at_once(None, Tasks(5, 3 * 10**6), 600, SMALL) < tasks_at_once(None, Tasks(5, 3), 600, SMALL)


@pytest.mark.parametrize("threads", [1, 2, 6])
def test_every_thread_has_tasks_of_its_own_in_training_unless_they_are_large(threads: int) -> None:
    """As many as fit its share, a power of two: it divides the usual meta-batches, so that all portions are alike."""
    before, seen = torch.get_num_threads(), set[str]()
    torch.set_num_threads(threads)
    try:
        for items, shape in ((1, (20,)), (5, OMNIGLOT), (40, OMNIGLOT), (200, OMNIGLOT), (50, (3, 84, 84))):
            episodes = Tasks(items, *shape)(0, 1)
            found, each = few_at_once(episodes, SMALL), task_bytes(episodes, SMALL)
            own, left = divmod(found, threads)
            if each <= SHARE:
                seen.add("small")
                assert left == 0 and own.bit_count() == 1 and own * each <= SHARE < 2 * own * each
            elif each <= MOST:
                seen.add("a task each")
                assert found == threads
            else:
                seen.add("shared")
                assert found == 1 or found * each <= threads * MOST
                assert found == threads or (found.bit_count() == 1 and threads * MOST < 2 * found * each)
        assert len(seen) == 3
    finally:
        torch.set_num_threads(before)
