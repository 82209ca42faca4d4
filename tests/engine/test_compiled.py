"""The gradient from a list: the same bits as it comes, soon made, and never the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from contract.small import CONV4, MLP, make_algorithm, make_episodes, make_meta, make_net, make_running
from torch import Tensor

from metarun.algorithms.maml import MAML
from metarun.engine import compiled
from metarun.engine.compiled import MOST, WARM, Compiled
from metarun.engine.state import TrainState
from metarun.engine.step import Portion, as_it_comes, meta_gradient, update
from metarun.types import Algorithm, Episode, EpisodeBatch, Meta, Net, TaskLoss

CASES = [
    *[(name, MLP, "batch") for name in ("anil", "imaml", "mamlpp", "protonet", "r2d2", "reptile")],
    ("maml", CONV4, "batch"),
    ("maml", CONV4, "running"),
]


def gradient(
    algorithm: Algorithm,
    net: Net,
    meta: Meta,
    episodes: EpisodeBatch,
    portion: Portion,
    chunk: int | None = None,
    running: Meta | None = None,
    ticket: int = 7,
) -> dict[str, Tensor]:
    """All that a meta-gradient gives."""
    for w in meta.values():
        w.grad = None
    metrics, moments = meta_gradient(algorithm, net, meta, episodes, chunk, running, ticket, portion)
    slopes = {f"slope of {name}": w.grad.clone() for name, w in meta.items() if w.grad is not None}
    return slopes | metrics | {f"moment {name}": value for name, value in moments.items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def saying() -> tuple[Compiled, list[str]]:
    """A list from the first portion on, and what it says."""
    said = list[str]()
    return Compiled(said.append), said


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One more entry for each list that is made."""
    made, recorded = list[int](), compiled.recorded

    def count(*given: Any) -> Any:
        made.append(1)
        return recorded(*given)

    monkeypatch.setattr(compiled, "recorded", count)
    return made


@pytest.mark.parametrize(("name", "model", "statistics"), CASES)
def test_it_is_the_gradient_as_it_comes_to_the_bit(name: str, model: Any, statistics: str) -> None:
    algorithm, net = make_algorithm(name), make_net(model, statistics=statistics)
    meta, said = make_meta(algorithm, net), list[str]()
    running = make_running(algorithm, net, meta)
    portion = Compiled(said.append)
    for seed in (2, 3, 4):  # recorded, proved, and from the list alone
        given = algorithm, net, meta, make_episodes(seed=seed)
        assert same(gradient(*given, portion, None, running), gradient(*given, as_it_comes, None, running))
    assert not said


def test_each_size_of_a_portion_has_its_list(counted: list[int]) -> None:
    algorithm, net = make_algorithm("r2d2"), make_net(MLP)
    given, portion = (algorithm, net, make_meta(algorithm, net), make_episodes()), Compiled(lambda line: None)
    for _ in range(3):
        assert same(gradient(*given, portion, 2), gradient(*given, as_it_comes, 2))  # of three tasks
    assert len(counted) == 2


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_a_few_at_once_are_the_same_tasks(at_once: int, counted: list[int]) -> None:
    algorithm, net, said = make_algorithm("maml"), make_net(CONV4), list[str]()
    given = algorithm, net, make_meta(algorithm, net), make_episodes()
    portion = Compiled(said.append, at_once=lambda episodes, meta: at_once)
    for _ in range(3):
        found, expected = gradient(*given, portion), gradient(*given, as_it_comes, at_once)  # of three tasks
        for metric in ("loss", "accuracy"):  # their mean is taken in one go
            assert torch.allclose(found.pop(metric), expected.pop(metric), rtol=1e-14)
        assert same(found, expected)
    assert len(counted) == {1: 1, 2: 2, 8: 1}[at_once] and not said


def test_without_a_list_the_rest_is_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few at a time are slow as they come."""
    algorithm, net = make_algorithm("maml"), make_net(MLP)
    portion, said = Compiled((said := list[str]()).append, at_once=lambda episodes, meta: 1), said
    given, sizes = (algorithm, net, make_meta(algorithm, net), make_episodes()), list[int]()

    def count(*what: Any) -> Any:
        sizes.append(len(what[4].ticket))
        return as_it_comes(*what)

    monkeypatch.setattr(compiled, "recorded", lambda *what: 1 / 0)
    monkeypatch.setattr(compiled, "as_it_comes", count)
    assert same(gradient(*given, portion), gradient(*given, as_it_comes))
    assert sizes == [3] and len(said) == 1


def test_it_draws_what_is_random_from_the_tasks_tickets() -> None:
    algorithm = make_algorithm("protonet")
    net = make_net(("conv4", {"filters": 8, "blocks": 2, "dropout": 0.5}))
    meta, portion, said = make_meta(algorithm, net), *saying()
    for ticket in (7, 70, 700):
        given = algorithm, net, meta, make_episodes()
        assert same(gradient(*given, portion, ticket=ticket), gradient(*given, as_it_comes, ticket=ticket))
    assert not said


def test_a_run_has_a_list_made_when_portions_keep_coming(counted: list[int]) -> None:
    algorithm, net = make_algorithm("protonet"), make_net(MLP)
    given = algorithm, net, make_meta(algorithm, net), make_episodes()
    portion = Compiled(print, WARM)
    for k in range(6):
        assert same(gradient(*given, portion), gradient(*given, as_it_comes))
        assert len(counted) == (k >= WARM)


def test_of_a_method_that_always_changes_only_some_are_kept(counted: list[int]) -> None:
    net, portion = make_net(MLP), Compiled(lambda line: None)
    first = make_algorithm("protonet", learn_scale=False)
    meta = make_meta(first, net)
    for k in range(MOST + 3):
        given = replace(first, scale=1 + k / 10), net, meta, make_episodes()
        assert same(gradient(*given, portion), gradient(*given, as_it_comes))
    assert len(counted) == MOST


@dataclass(frozen=True)
class Peeks(MAML):
    """Decides by a weight, which a list could not do again."""

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        sign = 1 if float(meta["head.bias"][0].detach()) > 0 else -1
        out = super().loss(net, meta, episode)
        return out._replace(loss=sign * out.loss)


def refused(module: Callable[..., Any]) -> Callable[..., Any]:
    raise RuntimeError("no compiler\nof any kind")


@pytest.mark.parametrize(("algorithm", "compiler"), [(Peeks(), None), (MAML(), refused)])
def test_what_cannot_be_compiled_is_computed_as_it_comes(algorithm: Algorithm, compiler: Any) -> None:
    net, said = make_net(MLP), list[str]()
    given = algorithm, net, make_meta(algorithm, net), make_episodes()
    portion = Compiled(said.append, compiler=compiler)
    for _ in range(3):
        assert same(gradient(*given, portion), gradient(*given, as_it_comes))
    (line,) = said
    assert line.startswith("steps are computed as they come, for they could not be compiled: ")
    assert compiler is None or line.endswith("no compiler of any kind")


@dataclass(frozen=True)
class Drifts(MAML):
    """Is another method by what neither its settings nor any tensor tells."""

    factor: list[float] = field(default_factory=lambda: [1.0], compare=False)

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        out = super().loss(net, meta, episode)
        return out._replace(loss=self.factor[0] * out.loss)


def test_a_list_that_does_not_do_what_the_code_does_is_not_used() -> None:
    algorithm, net, (portion, said) = Drifts(), make_net(MLP), saying()
    given = algorithm, net, make_meta(algorithm, net), make_episodes()
    for factor in (1.0, 2.0, 3.0):
        algorithm.factor[0] = factor
        assert same(gradient(*given, portion), gradient(*given, as_it_comes))
    (line,) = said
    assert line.endswith("could not be compiled: what they compute depends on more than tensors")


def test_too_little_memory_is_for_the_step_to_deal_with(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, said = compiled.recorded, list[str]()

    def small(f: Any, given: list[Tensor]) -> Any:
        if len(given[-1]) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return recorded(f, given)

    monkeypatch.setattr(compiled, "recorded", small)
    algorithm, net = make_algorithm("maml"), make_net(MLP)
    meta = make_meta(algorithm, net)
    state = TrainState(meta, torch.optim.SGD(meta.values(), lr=0.1))
    update(algorithm, net, state, make_episodes(), say=said.append, portion=Compiled(said.append))
    assert state.chunk == 2 and "not enough memory for 3 tasks" in said[0]


@dataclass(frozen=True)
class Twins(MAML):
    """Two weights with one gradient, all of whose places are one."""

    def init(self, net: Net, generator: torch.Generator) -> Meta:
        return {"algo.one": torch.ones(4), "algo.other": torch.ones(4)}

    def loss(self, net: Net, meta: Meta, episode: Episode) -> TaskLoss:
        loss = (meta["algo.one"] + meta["algo.other"]).sum() * episode.query_x.mean()
        return TaskLoss(loss, {"loss": loss.detach()})


def test_gradients_may_be_written_to() -> None:
    net, algorithm = make_net(MLP), Twins()
    meta = make_meta(algorithm, net)
    expected = gradient(algorithm, net, meta, make_episodes(), as_it_comes)["slope of algo.one"]
    gradient(algorithm, net, meta, make_episodes(), Compiled(print))
    one, other = (meta[f"algo.{name}"].grad for name in ("one", "other"))
    assert one is not None and other is not None
    one.mul_(2)
    assert torch.equal(one, 2 * expected) and torch.equal(other, expected)


def test_torchs_compiler_takes_the_list_whole() -> None:
    """All of it but the making of kernels, which a test on a GPU does."""
    algorithm, net = make_algorithm("maml", inner_steps=1), make_net(MLP)
    given, said = (algorithm, net, make_meta(algorithm, net), make_episodes()), list[str]()
    portion = Compiled(said.append, compiler=partial(torch.compile, fullgraph=True, dynamic=False, backend="eager"))
    assert same(gradient(*given, portion), gradient(*given, as_it_comes))
    assert said[0].startswith("a step was compiled")
