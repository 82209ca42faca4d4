"""A meta-batch that the memory does not hold: smaller portions, the same step, and a word about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from contract.small import MLP, gap, make_algorithm, make_episodes, make_meta, make_net
from torch.func import debug_unwrap

from metarun.engine.evaluate import outcomes, task_values
from metarun.engine.loop import meta_update
from metarun.engine.memory import SHARE, NoMemory, Room, fitting, is_about_memory
from metarun.engine.state import TrainState
from metarun.engine.step import train_step
from metarun.measures import MEASURES
from metarun.memory import resident
from metarun.settings import TrainSettings
from metarun.types import Algorithm, Episode, EpisodeBatch, Meta, Net, TaskLoss, TrainingError

TASKS = 7
KINDS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError(),
]


class Listed:
    """A sampler of tasks for an evaluation."""

    all = make_episodes(tasks=20)

    def __call__(self, first: int, count: int) -> EpisodeBatch:
        return EpisodeBatch(*(field[first : first + count] for field in self.all))

    def classes(self, first: int, count: int) -> torch.Tensor:
        return torch.arange(3).expand(count, -1)


@dataclass(frozen=True)
class Greedy(Algorithm):
    """A method for whose tasks there is room for `room` at a time, and at its `fails`-th portion for none."""

    of: Algorithm
    error: BaseException
    room: int = TASKS
    fails: int = -1
    portions: list[int] = field(default_factory=list)

    def init(self, net: Net, generator: torch.Generator) -> Meta:
        return self.of.init(net, generator)

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        self.portions.append(len(debug_unwrap(episode.query_x, recurse=True)))
        if self.portions[-1] > self.room or len(self.portions) == self.fails:
            raise self.error
        return self.of.loss(net, meta, episode)

    def predict(self, net: Net, meta: Meta, episode: Episode) -> torch.Tensor:
        return self.of.predict(net, meta, episode)

    def recomputing(self) -> Algorithm:
        return self.of.recomputing()


def parts(**greed: Any) -> tuple[Greedy, Any, TrainState]:
    algorithm, net = make_algorithm("maml"), make_net(MLP, statistics="running")
    meta = make_meta(algorithm, net)
    running = {n: v.double() for n, v in net.fresh_running().items()}
    optimizer = torch.optim.SGD(meta.values(), lr=0.1, momentum=0.9)
    return Greedy(algorithm, **greed), net, TrainState(meta, optimizer, running=running)


def all_of(state: TrainState) -> Meta:
    return {name: w.detach() for name, w in (state.meta | state.running).items()}


@pytest.mark.parametrize("error", KINDS, ids=["gpu", "cpu", "python"])
@pytest.mark.parametrize(("asked", "tried"), [(None, [7, 4, 2, 2, 2, 1]), (5, [5, 3, 2, 2, 2, 1])])
def test_a_step_that_did_not_fit_is_taken_again_in_halves(
    asked: int | None, tried: list[int], error: BaseException
) -> None:
    plain, net, expected = parts(error=error)
    train_step(plain, net, expected, make_episodes(TASKS))
    said: list[str] = []
    greedy, net, state = parts(error=error, room=2)
    train_step(greedy, net, state, make_episodes(TASKS), asked, say=said.append)
    assert greedy.portions == tried
    assert all(gap(value, all_of(expected)[name]) < 1e-12 for name, value in all_of(state).items())
    assert len(said) == 2 and said[-1].startswith("step 0: not enough memory for ")
    assert said[-1].endswith(" tasks at a time; going on with 2")
    train_step(greedy, net, state, make_episodes(TASKS), asked, say=said.append)
    assert greedy.portions == [*tried, 2, 2, 2, 1] and len(said) == 2, "what was found out is kept to"


def test_what_a_portion_added_before_the_memory_ran_out_does_not_count() -> None:
    plain, net, expected = parts(error=KINDS[1])
    train_step(plain, net, expected, make_episodes(TASKS))
    greedy, net, state = parts(error=KINDS[1], fails=2)
    train_step(greedy, net, state, make_episodes(TASKS), 4)
    assert greedy.portions == [4, 3, 2, 2, 2, 1]
    assert all(gap(value, all_of(expected)[name]) < 1e-12 for name, value in all_of(state).items())


def test_the_episodes_are_drawn_once() -> None:
    asked: list[tuple[int, int]] = []

    def episodes(first: int, count: int) -> EpisodeBatch:
        asked.append((first, count))
        return make_episodes(count, seed=first)

    greedy, net, state = parts(error=KINDS[0], room=2)
    for _ in range(2):
        meta_update(greedy, net, state, episodes, TrainSettings(meta_batch=TASKS), 0, None)
    assert asked == [(0, TASKS), (TASKS, TASKS)] and state.step == 2


def test_where_one_task_alone_is_too_much_the_run_ends_with_a_way_out() -> None:
    greedy, net, state = parts(error=KINDS[1], room=0)
    before = {name: w.clone() for name, w in all_of(state).items()}
    with pytest.raises(
        TrainingError, match=r"one task alone \(.*can't allocate.*\); set device\.checkpoint_inner=true"
    ):
        train_step(greedy, net, state, make_episodes(TASKS))
    assert all(torch.equal(value, before[name]) for name, value in all_of(state).items())


@pytest.mark.parametrize("error", KINDS, ids=["gpu", "cpu", "python"])
def test_an_evaluation_that_does_not_fit_goes_on_in_halves(error: BaseException) -> None:
    """To the same numbers; and what was found out is kept to."""
    plain, net, state = parts(error=error)
    meta, accuracy = {n: w.detach() for n, w in state.meta.items()}, MEASURES["accuracy"]
    net = net.at_test(state.running)
    expected = task_values(plain, net, meta, Listed(), 20, 8, accuracy)

    @dataclass(frozen=True)
    class Wide(Greedy):
        def predict(self, net: Net, meta: Meta, episode: Episode) -> torch.Tensor:
            self.portions.append(len(debug_unwrap(episode.query_x, recurse=True)))
            if self.portions[-1] > self.room:
                raise self.error
            return super().predict(net, meta, episode)

    said: list[str] = []
    wide, room = Wide(make_algorithm("maml"), error, room=3), Room(said.append)
    assert torch.equal(task_values(wide, net, meta, Listed(), 20, 8, accuracy, room=room), expected)
    assert wide.portions == [8, 4, *[2] * 10]
    assert said == [
        "not enough memory to evaluate 8 tasks at a time; going on with 4",
        "not enough memory to evaluate 4 tasks at a time; going on with 2",
    ]
    found = outcomes(wide, net, meta, Listed(), 20, 8, (accuracy,), room=room)
    assert torch.equal(found.final, expected.double()) and len(said) == 2
    with pytest.raises(NoMemory, match=r"evaluate one task alone \(.*\); lower eval\.way"):
        task_values(Wide(make_algorithm("maml"), error, room=0), net, meta, Listed(), 20, 8, accuracy)


def test_other_errors_are_errors() -> None:
    greedy, net, state = parts(error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"), room=2)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train_step(greedy, net, state, make_episodes(TASKS))
    assert greedy.portions == [TASKS] and state.chunk is None


def test_torch_is_understood() -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_about_memory(real.value)
    assert not is_about_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    ("tasks", "one", "two", "free", "found"),
    [
        (32, 10, 15, 1000, 32),  # all: 10 + 31 * 5 = 165
        (32, 10, 15, 165 / SHARE, 32),
        (32, 10, 15, 164 / SHARE, 16),  # 31 would fit, in portions of 31 and 1; 16 and 16 take as long
        (32, 10, 15, 40 / SHARE, 7),  # 5 portions, of 7 at most
        (32, 10, 15, 5, 1),  # not even one: the run will tell
        (32, 10, 15, 0, 1),
        (5, 10, 10, 11 / SHARE, 5),  # a task more takes nothing more
        (5, 10, 8, 11 / SHARE, 5),  # as measured; never less than nothing
        (1, 10, 15, 100, 1),
    ],
)
def test_how_many_tasks_fit(tasks: int, one: float, two: float, free: float, found: int) -> None:
    assert fitting(tasks, one, two, free) == found


def test_memory_is_flat_over_steps() -> None:
    """What one step leaves behind would be seen after hundreds: here a graph has a megabyte."""
    _, net, state = parts(error=KINDS[0])
    algorithm = make_algorithm("maml", inner_steps=3)
    settings = TrainSettings(meta_batch=32)

    def steps(count: int) -> int:
        for _ in range(count):
            state.add(
                meta_update(algorithm, net, state, lambda first, n: make_episodes(n, seed=first), settings, 0, None)
            )
            if state.step % 10 == 0:
                state.means()
                state.forget()
        return resident("VmRSS") or 0

    warm = steps(30)
    if not warm:
        pytest.skip("this system does not say")
    assert steps(100) < 1.02 * warm
