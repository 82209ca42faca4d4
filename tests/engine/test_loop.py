"""The meta-training loop: what it logs, saves and survives, and that no step of it waits for the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from operator import methodcaller
from pathlib import Path
from typing import Any

import pytest
import torch
from contract.small import ALGORITHMS, CONV4, MLP, fits, make_algorithm, make_episodes, make_meta, make_net
from torch.utils._python_dispatch import TorchDispatchMode

from metarun import checkpoint
from metarun.data.bank import ClassBank
from metarun.data.sampler import EpisodeSampler
from metarun.engine.evaluate import Score
from metarun.engine.loop import Course, fit
from metarun.engine.state import TrainState
from metarun.measures import MEASURES
from metarun.settings import TrainSettings
from metarun.types import Algorithm, EpisodeBatch, Meta, TaskLoss, TrainingError

Rows = list[dict[str, Any]]


@dataclass
class Recorded:
    """One call of `fit`, with everything it was told to tell."""

    name: str = "protonet"
    statistics: str = "batch"
    settings: dict[str, Any] = field(default_factory=dict)
    checkpoint_every: int = 100
    accuracies: list[float] = field(default_factory=list)
    stop_at: int | None = None
    algorithm: Any = None
    state: TrainState | None = None
    episodes: Callable[[int, int], EpisodeBatch] | None = None
    on_tick: Callable[[int], None] = lambda step: None
    rows: Rows = field(default_factory=list)
    saved: list[tuple[str, int]] = field(default_factory=list)
    weights: dict[str, Meta] = field(default_factory=dict)
    asked: list[tuple[int, int]] = field(default_factory=list)
    finished: bool | None = None

    def __post_init__(self) -> None:
        self.algorithm = self.algorithm or make_algorithm(self.name)
        self.net = make_net(MLP, statistics=self.statistics)
        if isinstance(self.algorithm, Algorithm) and not fits(self.algorithm, self.net):
            self.net = make_net(CONV4, statistics=self.statistics)
        if self.state is None:
            meta = make_meta(self.algorithm, self.net)
            running = {n: v.double() for n, v in self.algorithm.fresh_running(self.net).items()}
            self.state = TrainState(meta, torch.optim.SGD(meta.values(), lr=0.05, momentum=0.9), running=running)

    def __call__(self) -> Recorded:
        assert self.state is not None
        state, scores = self.state, iter(self.accuracies)

        def episodes(first: int, count: int) -> EpisodeBatch:
            self.asked.append((first, count))
            return self.episodes(first, count) if self.episodes else make_episodes(count, seed=first)

        def save(which: str, state: TrainState) -> None:
            self.saved.append((which, state.step))
            self.weights[which] = {n: w.detach().clone() for n, w in state.meta.items()}

        defaults: dict[str, Any] = {"iterations": 6, "meta_batch": 2, "log_every": 2, "val_every": 3}
        course = Course(
            state,
            TrainSettings(**defaults | self.settings),
            measure=MEASURES["accuracy"],
            checkpoint_every=self.checkpoint_every,
            validate=lambda state: Score(next(scores, 0.5), 0.01, 10),
            log=self.rows.append,
            save=save,
            tick=self.on_tick,
            stop=lambda: self.stop_at is not None and state.step >= self.stop_at,
        )
        self.finished = fit(course, self.algorithm, self.net, episodes, seed=0, chunk=None)
        return self

    def train_rows(self) -> Rows:
        return [{k: v for k, v in row.items() if k != "rate"} for row in self.rows if row["split"] == "train"]


# What is logged and saved


def test_rows_come_at_their_intervals_and_at_the_end() -> None:
    run = Recorded(settings={"iterations": 7})()
    assert [(row["split"], row["step"]) for row in run.rows] == [
        ("train", 2), ("val", 3), ("train", 4), ("train", 6), ("val", 6), ("train", 7), ("val", 7)
    ]  # fmt: skip
    assert run.finished
    assert all(row["rate"] > 0 and row["lr"] == 0.05 for row in run.rows if row["split"] == "train")


def test_a_row_holds_the_means_since_the_row_before() -> None:
    each = Recorded(settings={"log_every": 1})().train_rows()
    thirds = Recorded(settings={"log_every": 3})().train_rows()
    assert len({row["loss"] for row in each}) == 6
    for i, row in enumerate(thirds):
        for metric in ("loss", "accuracy"):
            mean = sum(r[metric] for r in each[3 * i : 3 * i + 3]) / 3
            assert row[metric] == pytest.approx(mean, rel=1e-12)


def test_every_step_takes_the_next_episodes_of_the_list() -> None:
    assert Recorded(settings={"meta_batch": 3, "iterations": 4})().asked == [(0, 3), (3, 3), (6, 3), (9, 3)]


def test_best_is_saved_when_a_validation_beats_all_before_it() -> None:
    run = Recorded(settings={"val_every": 1, "iterations": 5}, accuracies=[0.4, 0.6, 0.6, 0.5, 0.7])()
    assert [step for which, step in run.saved if which == "best"] == [1, 2, 5]
    assert [row["best"] for row in run.rows if row["split"] == "val"] == [True, True, False, False, True]
    assert run.state is not None
    assert run.state.best == {"step": 5, "accuracy": 0.7}


def test_best_is_not_beaten_by_a_resumed_runs_first_validation() -> None:
    first = Recorded(settings={"iterations": 3}, accuracies=[0.9])()
    again = Recorded(state=first.state, settings={"iterations": 6}, accuracies=[0.8])()
    assert [which for which, _ in again.saved] == ["last"]


def test_last_is_saved_at_its_interval_and_at_the_end() -> None:
    run = Recorded(checkpoint_every=4, settings={"iterations": 9})()
    assert [step for which, step in run.saved if which == "last"] == [4, 8, 9]


# What it survives


def test_a_stopped_run_saves_where_it_is_and_says_so() -> None:
    run = Recorded(stop_at=4, settings={"iterations": 9})()
    assert run.finished is False
    assert run.saved[-1] == ("last", 4)
    assert len(run.asked) == 4


def test_a_stop_at_the_last_step_is_a_finished_run() -> None:
    assert Recorded(stop_at=6)().finished is True


@pytest.mark.parametrize("stop_at", [1, 3, 5])
@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(name: str, stop_at: int, tmp_path: Path) -> None:
    kind: dict[str, Any] = {"name": name, "statistics": "running", "settings": {"iterations": 7, "log_every": 4}}
    straight = Recorded(**kind)()
    stopped = Recorded(**kind, stop_at=stop_at)()
    assert stopped.state is not None
    checkpoint.save(tmp_path / "last.pt", stopped.state)
    again = Recorded(**kind)
    assert again.state is not None and straight.state is not None
    for w in again.state.meta.values():
        w.detach().zero_()
    checkpoint.restore(again.state, checkpoint.load(tmp_path / "last.pt"), tmp_path / "last.pt")
    again()
    assert stopped.train_rows() + again.train_rows() == straight.train_rows()
    for own, other in ((again.state.meta, straight.state.meta), (again.state.running, straight.state.running)):
        assert own.keys() == other.keys() != set()
        assert all(torch.equal(own[n], other[n]) for n in own)


class Diverges:
    """Moves its weight by -1 in each step, and breaks in the step after `steps` of them: the loss, or its gradient."""

    def __init__(self, steps: int, broken: str = "loss") -> None:
        self.steps, self.broken = steps, broken

    def at_step(self, step: int, iterations: int) -> Diverges:
        return self

    def loss(self, net: Any, meta: Meta, episode: Any) -> TaskLoss:
        w = meta["w"]
        over = (w.detach() < 0.5 - self.steps).float()
        if self.broken == "loss":
            loss = (w + torch.where(over > 0, torch.nan, 0.0)).sum()
        else:
            loss = (w + (w - w.detach()) * 1e38 * 1e38 * over).sum()  # adds nothing, but a slope of infinity
        return TaskLoss(loss, {"loss": loss.detach()})


def diverging(algorithm: Diverges, settings: dict[str, Any], checkpoint_every: int) -> Recorded:
    w = torch.zeros(1, requires_grad=True)
    state = TrainState({"w": w}, torch.optim.SGD([w], lr=1.0))
    return Recorded(algorithm=algorithm, state=state, settings=settings, checkpoint_every=checkpoint_every)


def test_a_run_that_diverges_ends_with_the_way_out_and_keeps_what_was_good() -> None:
    run = diverging(Diverges(3), {"iterations": 9, "log_every": 5, "val_every": 50}, checkpoint_every=2)
    with pytest.raises(TrainingError, match=r"diverged by step 4: loss = nan.*train\.lr.*train\.clip"):
        run()
    assert run.saved == [("last", 2)]
    assert all(row["step"] < 4 for row in run.rows)


def test_a_diverged_run_is_never_the_best() -> None:
    run = diverging(Diverges(1), {"iterations": 9, "log_every": 9, "val_every": 3}, checkpoint_every=9)
    with pytest.raises(TrainingError, match="diverged by step 3"):
        run()
    assert run.saved == []


@pytest.mark.parametrize("checkpoint_every", [3, 9])
def test_broken_weights_are_never_saved_even_if_the_loss_was_finite(checkpoint_every: int) -> None:
    algorithm = Diverges(2, "gradient")
    run = diverging(algorithm, {"iterations": 3, "log_every": 9, "val_every": 9}, checkpoint_every)
    with pytest.raises(TrainingError, match="diverged by step 3: weights"):
        run()
    assert run.saved == []


def test_a_validation_that_is_not_finite_is_the_worst_and_no_end() -> None:
    run = Recorded(accuracies=[float("nan"), 0.2, float("nan"), 0.1], settings={"iterations": 4, "val_every": 1})()
    assert [row["accuracy"] for row in run.rows if row["split"] == "val"] == [-inf, 0.2, -inf, 0.1]
    assert [step for which, step in run.saved if which == "best"] == [1, 2]


# Waiting


class Reads(TorchDispatchMode):
    """Counts the reads of a tensor's value: through torch's own operator, and through Python's."""

    METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__")

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select"):
            self.seen[name] += 1
        return func(*args, **kwargs or {})


@contextmanager
def reads() -> Iterator[Reads]:
    counter = Reads()

    def counted(name: str) -> Any:
        usual = getattr(torch.Tensor, name)

        def method(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            counter.seen[name] += 1
            return usual(self, *args, **kwargs)

        return method

    with pytest.MonkeyPatch.context() as patch, counter:
        for name in Reads.METHODS:
            patch.setattr(torch.Tensor, name, counted(name))
        yield counter


@pytest.mark.parametrize("read", [float, bool, int, methodcaller("tolist"), methodcaller("item"), methodcaller("cpu")])
def test_reads_are_seen(read: Callable[[Any], Any]) -> None:
    with reads() as counter:
        read(torch.ones(()))
        assert counter.seen


def bank() -> ClassBank:
    items = torch.randint(0, 256, (6 * 5, 1, 8, 8), dtype=torch.uint8)
    return ClassBank(items, torch.arange(7) * 5, tuple("abcdef"))


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_step_waits_for_the_device_between_two_rows(name: str, statistics: str) -> None:
    seen: list[int] = []
    sampler = EpisodeSampler(bank(), way=3, shot=2, query=2, seed=0, split="train")

    def episodes(first: int, count: int) -> EpisodeBatch:
        return EpisodeBatch(*(f.double() if f.is_floating_point() else f for f in sampler(first, count)))

    run = Recorded(
        name=name,
        statistics=statistics,
        episodes=episodes,
        settings={"iterations": 10, "log_every": 5, "val_every": 10, "clip": 1.0},
        on_tick=lambda step: seen.append(sum(counter.seen.values())),
    )
    with reads() as counter:
        run()
    assert len(set(seen[:5])) == 1, counter.seen  # the first step may set things up once
    assert len(set(seen[5:])) == 1, counter.seen
    assert seen[5] > seen[4], "the row at step 5 must have been read"
