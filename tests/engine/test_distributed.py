"""Processes that share a run: the same gradients and the same evaluation as one process, whatever their number."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from contract.small import MLP, gap, make_algorithm, make_episodes, make_meta, make_net, make_running

from metarun.engine.distributed import ALONE, Ranks, Vote
from metarun.engine.evaluate import Score, outcomes, task_values
from metarun.engine.loop import Course, fit, meta_update
from metarun.engine.state import TrainState
from metarun.measures import MEASURES
from metarun.settings import TrainSettings
from metarun.types import EpisodeBatch, TrainingError

METHODS = ["maml", "mamlpp", "protonet", "reptile"]
"""One that goes by the net's moving averages, one with its own, one without inner steps, one that draws batches"""
TASKS = 5
"""in a meta-batch: a number that neither 2 nor 3 divides"""
ALL = make_episodes(tasks=23)


def episodes(first: int, count: int) -> EpisodeBatch:
    return EpisodeBatch(*(field[first : first + count] for field in ALL))


class Listed:
    """A sampler of `ALL`."""

    def __call__(self, first: int, count: int) -> EpisodeBatch:
        return episodes(first, count)

    def classes(self, first: int, count: int) -> torch.Tensor:
        return torch.arange(3).expand(count, -1) + first


def trained(name: str, ranks: Ranks) -> dict[str, Any]:
    """Two steps of everything that a step has: dropout, clipping, a penalty, moving averages."""
    algorithm = make_algorithm(name)
    net = make_net((MLP[0], MLP[1] | {"dropout": 0.3}), statistics="running")
    meta = make_meta(algorithm, net)
    running = {n: v.double() for n, v in algorithm.fresh_running(net).items()}
    state = TrainState(meta, torch.optim.SGD(meta.values(), lr=0.1), running=running)
    settings = TrainSettings(meta_batch=TASKS, clip=0.5, l2=0.01)
    metrics = [meta_update(algorithm, net, state, episodes, settings, 7, 2, ranks) for _ in range(2)]
    slopes = {n: w.grad for n, w in meta.items()}
    meta = {n: w.detach() for n, w in meta.items()}
    return {"meta": meta, "slopes": slopes, "running": state.running, "first": metrics[0], "then": metrics[1]}


def evaluated(ranks: Ranks, tasks: int, batch: int) -> list[Any]:
    """In single precision, where another grouping would show."""
    algorithm, net = make_algorithm("maml"), make_net(statistics="running")
    meta = make_meta(algorithm, net)
    net = net.at_test({n: v.float() for n, v in make_running(algorithm, net, meta).items()})
    meta = {n: w.detach().float() for n, w in meta.items()}

    class Single(Listed):
        def __call__(self, first: int, count: int) -> EpisodeBatch:
            return EpisodeBatch(*(f.float() if f.is_floating_point() else f for f in episodes(first, count)))

    how: Any = (algorithm, net, meta, Single(), tasks, batch)
    measures = (MEASURES["accuracy"], MEASURES["accuracy"])
    return [task_values(*how, MEASURES["accuracy"], ranks), *outcomes(*how, measures, ranks=ranks)]


def fitted(ranks: Ranks) -> dict[str, Any]:
    """A run of four steps, with what was drawn, sent to the other ranks and received from them, in order."""
    said: list[str] = []
    send = dist.all_reduce

    class Sums:
        def __init__(self, *what: Any, **how: Any) -> None:
            self._sums: Any = send(*what, **how)
            said.append("sent")

        def is_completed(self) -> bool:
            return self._sums.is_completed()

        def wait(self, *patience: timedelta) -> None:
            self._sums.wait(*patience)
            if said[-1] != "received":
                said.append("received")

    def drawn(first: Any, count: int) -> EpisodeBatch:
        said.append(f"drawn {first} to {first + count - 1}")
        return episodes(first, count)

    algorithm, net = make_algorithm("protonet"), make_net()
    meta = make_meta(algorithm, net)
    state = TrainState(meta, torch.optim.SGD(meta.values(), lr=0.1))
    settings = TrainSettings(meta_batch=TASKS, iterations=4, val_every=10)
    does: Any = dict.fromkeys(("log", "save", "tick", "stop"), lambda *told: False)
    score = Score(0.5, 0.1, 5)
    course = Course(
        state, settings, measure=MEASURES["accuracy"], checkpoint_every=9, validate=lambda state: score, **does
    )
    dist.all_reduce = Sums
    try:
        assert fit(course, algorithm, net, drawn, seed=7, chunk=None, ranks=ranks)
    finally:
        dist.all_reduce = send
    return {"meta": {n: w.detach() for n, w in meta.items()}, "said": said}


def work(rank: int, count: int, folder: Path) -> None:
    """What each process does; what it found goes to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), count), rank=rank, world_size=count)
    ranks, vote = Ranks(rank, count), Vote(Ranks(rank, count))
    found = {
        "trained": {name: trained(name, ranks) for name in METHODS},
        "fitted": fitted(ranks),
        "evaluated": [evaluated(ranks, *how) for how in ((23, 4), (5, 5))],
        "votes": [vote(flag) for flag in (0, 15 if rank == count - 1 else 0, 0, 0)],
        "shared": ranks.shared({"from": rank, "x": torch.arange(3)} if rank == 0 else None),
        "gathered": ranks.gathered([rank] * rank),
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank of a world has found."""
    context = multiprocessing.get_context("fork")  # in which torch is there already
    folder, count = tmp_path_factory.mktemp("ranks"), request.param
    processes = [context.Process(target=work, args=(rank, count, folder)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_those_of_one_process(name: str, found: list[dict[str, Any]]) -> None:
    whole = trained(name, ALONE)
    for rank in found:
        for kind, expected in whole.items():
            assert rank["trained"][name][kind].keys() == expected.keys()
            for key, value in expected.items():
                assert gap(rank["trained"][name][kind][key], value) < 1e-12, (kind, key)


def test_all_ranks_go_on_with_the_same_bits(found: list[dict[str, Any]]) -> None:
    first, *others = (rank["trained"] for rank in found)
    for other in others:
        for name in METHODS:
            for kind, values in first[name].items():
                assert all(torch.equal(value, other[name][kind][key]) for key, value in values.items()), (name, kind)


def test_the_next_episodes_are_drawn_while_the_gradients_are_on_their_way(found: list[dict[str, Any]]) -> None:
    """Each once, none that no step will ask for, and the run is that of one process."""
    alone = fitted(ALONE)["meta"]
    for rank, own in enumerate(found):
        part = Ranks(rank, len(found)).part(TASKS)
        draws = [f"drawn {TASKS * step + part[0]} to {TASKS * step + part[-1]}" for step in range(4)]
        expected = [draws[0], *(s for draw in draws[1:] for s in ("sent", draw, "received")), "sent", "received"]
        assert own["fitted"]["said"] == expected
        for name, w in alone.items():
            assert gap(own["fitted"]["meta"][name], w) < 1e-12, name


def test_evaluation_is_the_same_to_the_last_digit(found: list[dict[str, Any]]) -> None:
    """Also where there are fewer batches than ranks, and where the last batch is smaller."""
    for i, how in enumerate(((23, 4), (5, 5))):
        expected = evaluated(ALONE, *how)
        assert len(expected[0]) == how[0]
        for rank in found:
            assert all(torch.equal(own, other) for own, other in zip(rank["evaluated"][i], expected, strict=True))


def test_a_vote_is_known_to_all_one_step_later(found: list[dict[str, Any]]) -> None:
    assert all(rank["votes"] == [0, 0, 15, 0] for rank in found)
    assert Vote(ALONE)(15) == 15


def test_nobody_waits_for_ever_for_one_that_is_gone() -> None:
    """As gloo can, for an operation that was under way when one was killed."""
    asked: list[timedelta] = []

    class Unending:
        def is_completed(self) -> bool:
            return False

        def wait(self, patience: timedelta) -> None:
            asked.append(patience)
            raise RuntimeError("Operation timed out!")

    def missed() -> None:
        if len(asked) == 2:
            raise TrainingError("rank 1 is gone")

    with pytest.raises(TrainingError, match="rank 1 is gone"):
        Ranks(0, 2, missed).arrived(Unending(), torch.zeros(1))
    assert max(asked) <= timedelta(seconds=2)


def test_what_is_told_and_gathered(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["shared"]["from"] == 0
        assert rank["shared"]["x"].tolist() == [0, 1, 2]
        assert rank["gathered"] == [[r] * r for r in range(len(found))]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_parts_are_all_tasks_each_once_and_alike_in_size(count: int) -> None:
    for tasks in (count, 8, 17, 32):
        parts = [Ranks(rank, count).part(tasks) for rank in range(count)]
        assert [task for part in parts for task in part] == list(range(tasks))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
