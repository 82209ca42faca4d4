"""Runs trained at once are the runs that each would be by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from contract.small import (
    ALGORITHMS,
    CONV4,
    MLP,
    MODELS,
    REGRESSORS,
    Model,
    fits,
    gap,
    make_algorithm,
    make_episodes,
    make_meta,
    make_net,
    make_regression,
    model_id,
)
from torch import Tensor

from metarun.algorithms.maml import MAML
from metarun.engine.evaluate import Score
from metarun.engine.loop import Course, fit, tickets
from metarun.engine.optim import make_optimizer, make_scheduler
from metarun.engine.stacked import Member, drawn, fit_together, gradients, updated
from metarun.engine.state import TrainState
from metarun.engine.step import meta_gradient
from metarun.measures import MEASURES
from metarun.settings import TrainSettings
from metarun.types import Algorithm, Episode, EpisodeBatch, Episodes, Limits, Meta, Net, TaskLoss, TrainingError

EXACT = 1e-9
VARIANTS = [
    ("mamlpp", {"learn_rates": False, "multi_step_loss": False}),
    ("protomaml", {"first_order": True}),
    ("protonet", {"distance": "cosine"}),
    ("metaoptnet", {"head": "ridge"}),
    ("matchingnet", {"fce": True}),
]


def numbers(cls: type) -> list[str]:
    """The settings of a method that are real numbers."""
    told = [f for f in fields(cls) if Limits.key in f.metadata and f.type in ("float", "float | None")]
    return [f.name for f in told if not f.metadata[Limits.key].apart]


def varied(name: str, run: int, **settings: Any) -> Algorithm:
    """The method with other real numbers for each run, within their limits."""
    algorithm = make_algorithm(name, **settings)
    found = {key: getattr(algorithm, key) for key in numbers(type(algorithm))}
    return replace(algorithm, **{key: (0.2 if v is None else v or 0.1) * (1 - 0.3 * run) for key, v in found.items()})


def draws(seed: int, kind: Callable[..., EpisodeBatch] = make_episodes) -> Episodes:
    return lambda first, count: kind(count, seed=1000 * seed + int(first))


@dataclass
class Run:
    """One run, to be trained alone or with others; `best` is what its validations say."""

    algorithm: Algorithm
    net: Net
    episodes: Episodes
    seed: int = 0
    lr: float = 0.05
    optimizer: str = "SGD"
    args: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    stop_at: int | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    saved: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.train = TrainSettings(**{"iterations": 6, "meta_batch": 2, "log_every": 2, "val_every": 3} | self.settings)
        meta = make_meta(self.algorithm, self.net, self.seed)
        running = {n: v.double() for n, v in self.algorithm.fresh_running(self.net).items()}
        optimizer = make_optimizer(self.optimizer, meta.values(), self.lr, self.args)
        scheduler = make_scheduler(self.train.schedule, optimizer, self.train.iterations, self.train.schedule_args)
        self.state = TrainState(meta, optimizer, scheduler, running)

    def course(self) -> Course:
        return Course(
            self.state,
            self.train,
            measure=MEASURES["accuracy"],
            checkpoint_every=2,
            validate=lambda state: Score(float(sum(w.detach().sum() for w in state.meta.values())), 0.01, 10),
            log=lambda row: self.rows.append({k: v for k, v in row.items() if k != "rate"}),
            save=lambda which, state: self.saved.append((which, state.step)),
            tick=lambda step: None,
            stop=lambda: self.stop_at is not None and self.state.step >= self.stop_at,
        )

    def alone(self) -> Run:
        fit(self.course(), self.algorithm, self.net, self.episodes, seed=self.seed, chunk=None)
        return self

    def member(self) -> Member:
        return Member(self.course(), self.algorithm, lambda step: self.net, self.episodes, tickets(self.seed))


def together(runs: Sequence[Run], chunk: int | None = None) -> list[tuple[int, Exception | None]]:
    """Trains all; which have ended, in order, and what they failed of."""
    members = [run.member() for run in runs]
    over: list[tuple[int, Exception | None]] = []
    fit_together(
        members,
        lambda some: updated(some, chunk),
        lambda member, failure: over.append((members.index(member), failure)),
    )
    return over


def same(run: Run, other: Run) -> None:
    """Weights, moving averages, rows and files."""
    assert run.state.step == other.state.step
    for ours, theirs in ((run.state.meta, other.state.meta), (run.state.running, other.state.running)):
        assert ours.keys() == theirs.keys()
        for name, w in ours.items():
            assert float((w - theirs[name]).detach().abs().max()) < EXACT, name
    assert run.saved == other.saved
    assert len(run.rows) == len(other.rows) > 0
    for mine, its in zip(run.rows, other.rows, strict=True):
        assert mine.keys() == its.keys() and mine["split"] == its["split"]
        assert [v for v in mine.values() if v != mine["split"]] == pytest.approx(
            [v for v in its.values() if v != its["split"]], rel=1e-8, abs=1e-12
        )


# The gradient


@pytest.mark.parametrize(("statistics", "seeds"), [("batch", (0, 1, 2)), ("running", (0, 0, 0))])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_each_row_of_the_gradient_is_that_of_the_run_alone(
    name: str, statistics: str, seeds: tuple[int, int, int]
) -> None:
    """Of every method, with other values of every real number that it has."""
    net = make_net(MLP if fits(make_algorithm(name), make_net(MLP)) else CONV4, statistics=statistics)
    agree(name, net, seeds, make_episodes)


@pytest.mark.parametrize("name", sorted({"maml", "protonet", "reptile", "mamlpp", "metaoptnet"} & {*ALGORITHMS}))
def test_so_it_is_with_convolutions_and_dropout(name: str) -> None:
    model, settings = CONV4
    agree(name, make_net((model, settings | {"dropout": 0.3})), (0, 1, 2), make_episodes)
    agree(name, make_net((model, settings | {"dropout": 0.3})), (0, 0, 0), make_episodes)


def test_so_it_is_with_statistics_of_the_support_set() -> None:
    for name in ("maml", "protonet"):
        agree(name, make_net(MLP, statistics="support"), (0, 1, 0), make_episodes)


@pytest.mark.parametrize(("name", "settings"), VARIANTS)
def test_so_it_is_with_other_settings(name: str, settings: dict[str, Any]) -> None:
    agree(name, make_net(MLP), (0, 1, 2), make_episodes, **settings)


@pytest.mark.parametrize("model", MODELS, ids=model_id)
def test_so_it_is_with_every_model(model: Model) -> None:
    agree("maml", make_net(model), (0, 1, 2), make_episodes)


def test_so_it_is_where_inner_steps_are_taken_again_for_their_gradient() -> None:
    """With rates that are the same: such a step may read no tensor of a method's settings."""
    model, settings = MLP
    net = make_net((model, settings | {"dropout": 0.3}))
    for method in ("maml", "mamlpp"):
        again = make_algorithm(method).recomputing()
        agreed([Run(again, net, draws(seed), seed) for seed in (0, 1, 2)])


@pytest.mark.parametrize("name", REGRESSORS)
def test_so_it_is_in_regression(name: str) -> None:
    agree(name, make_net(MLP), (0, 1, 2), make_regression)


def agree(name: str, net: Net, seeds: Sequence[int], kind: Callable[..., EpisodeBatch], **settings: Any) -> None:
    sources = {seed: draws(seed, kind) for seed in seeds}
    agreed([Run(varied(name, i, **settings), net, sources[seed], seed) for i, seed in enumerate(seeds)])


def agreed(runs: Sequence[Run]) -> None:
    members, net = [run.member() for run in runs], runs[0].net
    batch = drawn(members, 0)
    assert batch.ticket.dim() == (1 if len({run.seed for run in runs}) == 1 else 2)
    for chunk in (None, 1) if batch.ticket.dim() == 1 else (None,):
        for run in runs:
            run.state.optimizer.zero_grad()
        told = gradients(members, batch, chunk)
        ours = [{n: w.grad for n, w in run.state.meta.items()} for run in runs]
        for i, (run, grads) in enumerate(zip(runs, ours, strict=True)):
            run.state.optimizer.zero_grad()
            own = meta_gradient(
                run.member().now, net, run.state.meta, run.episodes(0, 2), None, run.state.running, tickets(run.seed)
            )
            for n, w in run.state.meta.items():
                if w.grad is None:
                    assert grads[n] is None, n
                    continue
                assert grads[n] is not None and float((grads[n] - w.grad).norm()) <= EXACT * float(w.grad.norm()), n
            for theirs, of_all in zip(own, told, strict=True):
                assert theirs.keys() == of_all.keys()
                for n, value in theirs.items():
                    assert gap(of_all[n][i], value) < EXACT or torch.equal(of_all[n][i], value), n


def test_a_number_that_is_the_same_in_all_runs_stays_a_number() -> None:
    """So that runs which differ in their seed alone ask nothing of the method."""
    net = make_net(MLP)
    runs = [Run(Choosy(rate=0.3), net, draws(seed), seed) for seed in (1, 2)]
    again = [Run(Choosy(rate=0.3), net, draws(seed), seed).alone() for seed in (1, 2)]
    assert together(runs) == [(0, None), (1, None)]
    for run, other in zip(runs, again, strict=True):
        same(run, other)


def test_a_method_that_reads_its_number_in_python_is_told_of() -> None:
    net = make_net(MLP)
    runs = [Run(Choosy(rate=rate), net, draws(1), 1) for rate in (0.3, 0.7)]
    for _, failure in together(runs):
        assert isinstance(failure, TrainingError)
        assert "algo.rate" in str(failure) and "apart=True" in str(failure)


def test_runs_that_differ_in_more_than_numbers_are_refused() -> None:
    net = make_net(MLP)
    runs = [Run(make_algorithm("maml", inner_steps=steps), net, draws(1), 1) for steps in (1, 2)]
    assert all("inner_steps" in str(failure) for _, failure in together(runs))


@dataclass(frozen=True)
class Choosy(MAML):
    """Decides by its setting in Python, as a method must not."""

    rate: float = 0.5

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        out = super().loss(net, meta, episode)
        return out if self.rate > 0.5 else out._replace(loss=2 * out.loss)


# Whole runs

LEARNERS = ["maml", "protonet", "reptile", "metasgd", "cavia", "mamlpp"]
ADAM: dict[str, Any] = {"optimizer": "Adam", "settings": {"schedule": "cosine"}}
MOMENTUM: dict[str, Any] = {"optimizer": "SGD", "args": {"momentum": 0.9}}
OUTER = [(name, ADAM) for name in LEARNERS] + [(name, MOMENTUM) for name in ("maml", "reptile")]


def three(name: str, statistics: str = "running", **more: Any) -> list[Run]:
    """Runs with other rates, penalties, clips and, but for two of them, seeds."""
    net = make_net(MLP, statistics=statistics)
    sources = {seed: draws(seed) for seed in (3, 4)}
    settings = more.pop("settings", {})
    return [
        Run(
            varied(name, i),
            net,
            sources[seed],
            seed,
            lr=0.02 / (i + 1),
            settings={"l2": 0.01 * i, "l1": 0.001, "clip": 0.5 + i} | settings,
            **more,
        )
        for i, seed in enumerate((3, 4, 3))
    ]


@pytest.mark.parametrize(("name", "outer"), OUTER)
def test_runs_trained_together_are_those_trained_alone(name: str, outer: dict[str, Any]) -> None:
    ours, others = three(name, **outer), three(name, **outer)
    assert together(ours) == [(0, None), (1, None), (2, None)]
    for run, other in zip(ours, others, strict=True):
        same(run, other.alone())
    ends = [torch.cat([w.detach().flatten() for w in run.state.meta.values()]) for run in ours]
    assert min(gap(ends[i], ends[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-6  # that each is another run


@pytest.mark.parametrize("chunk", [1, 2])
def test_portions_change_nothing(chunk: int) -> None:
    ours, others = (three("maml", settings={"meta_batch": 3}) for _ in range(2))
    together(ours, chunk)
    for run, other in zip(ours, others, strict=True):
        same(run, other.alone())


@pytest.mark.parametrize("which", [0, 1, 2])
def test_when_one_is_stopped_the_others_go_on(which: int) -> None:
    ours, others = three("maml"), three("maml")
    for runs in (ours, others):
        runs[which].stop_at = 3
    assert together(ours) == [(which, None), *((i, None) for i in range(3) if i != which)]
    for run, other in zip(ours, others, strict=True):
        same(run, other.alone())
    assert ours[which].state.step == 3 and ours[which].saved[-1] == ("last", 3)


def test_when_one_diverges_the_others_go_on() -> None:
    ours, others = three("maml"), three("maml")
    for runs in (ours, others):
        with torch.no_grad():
            next(iter(runs[1].state.meta.values())).fill_(torch.nan)
    over = together(ours)
    assert [i for i, _ in over] == [1, 0, 2]
    assert isinstance(over[0][1], TrainingError) and "diverged by step 2" in str(over[0][1])
    assert ours[1].saved == [] == ours[1].rows
    with pytest.raises(TrainingError) as alone:
        others[1].alone()
    assert str(alone.value) == str(over[0][1])
    for i in (0, 2):
        same(ours[i], others[i].alone())


def test_what_goes_wrong_between_steps_ends_that_run_alone() -> None:
    ours, others = three("maml"), three("maml")
    ours[0].saved = Full()
    over = together(ours)
    assert [i for i, _ in over] == [0, 1, 2]
    assert isinstance(over[0][1], OSError)
    for i in (1, 2):
        same(ours[i], others[i].alone())


class Full(list[Any]):
    def append(self, item: Any) -> None:
        raise OSError("no space left")


def test_runs_that_are_behind_catch_up_with_the_others() -> None:
    """As they are when each goes on from its own checkpoint. Each takes its steps once."""
    ours, others = three("mamlpp"), three("mamlpp")
    asked = []
    for run, steps in zip(ours, (4, 0, 2), strict=True):
        run.stop_at = steps
        if steps:
            run.alone()
        run.stop_at = None
    members = [run.member() for run in ours]

    def compute(some: Sequence[Member]) -> list[dict[str, Tensor]]:
        asked.append(tuple(members.index(member) for member in some))
        return updated(some)

    fit_together(members, compute, lambda member, failure: None)
    assert asked == [(1,), (1,), (1, 2), (1, 2), (0, 1, 2), (0, 1, 2)]
    for run, other in zip(ours, others, strict=True):
        same(run, other.alone())


def test_a_run_at_its_end_is_over_at_once() -> None:
    ours = three("maml")
    ours[2].alone()
    assert [i for i, _ in together(ours)] == [2, 0, 1]


def test_where_the_memory_is_too_small_all_go_on_with_fewer_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, others = (three("maml", settings={"meta_batch": 4}) for _ in range(2))
    said: list[str] = []
    tried: list[int | None] = []

    def gradient(members: Any, batch: Any, chunk: int | None) -> Any:
        tried.append(chunk)
        if chunk is None or chunk > 1:
            raise MemoryError
        return gradients(members, batch, chunk)

    monkeypatch.setattr("metarun.engine.stacked.gradients", gradient)
    members = [run.member() for run in ours]
    fit_together(members, lambda some: updated(some, None, said.append), lambda member, failure: None)
    assert tried[:4] == [None, 2, 1, 1]
    assert said[-1] == "step 0: not enough memory for 2 tasks at a time; going on with 1"
    for run, other in zip(ours, others, strict=True):
        assert run.state.chunk == 1
        same(run, other.alone())
