"""Steps recorded once and replayed. What a CPU can show: that a recording reads nothing that it must not.

`Again` stands in for the recording. It does again what it was given once: the number of the episode and the rate can
then only come from the tensors that they are read from.
"""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from typing import Any

import pytest
import torch
from contract.small import ALGORITHMS, make_algorithm
from torch import Tensor

from metarun.data.augment import Augment, Augmented
from metarun.data.bank import ClassBank
from metarun.engine import stacked
from metarun.engine.evaluate import Score
from metarun.engine.graph import MOST, WARM, Body, Recorded, RecordedTogether, on_device, recordable
from metarun.engine.loop import Course, computed, meta_update
from metarun.engine.optim import make_optimizer, make_scheduler
from metarun.engine.state import TrainState
from metarun.measures import MEASURES
from metarun.models.conv4 import Conv4
from metarun.settings import TrainSettings

SETTINGS = TrainSettings(iterations=12, meta_batch=4, lr=2.0**-7, clip=1.0)


class Again:
    made = 0
    replayed = 0

    def warm(self, work: Body) -> dict[str, Tensor]:
        return work()

    def record(self, work: Body) -> dict[str, Tensor]:
        type(self).made += 1
        self._work, self._out = work, dict[str, Tensor]()
        return self._out

    def replay(self) -> None:
        type(self).replayed += 1
        for name, value in self._work().items():
            self._out.setdefault(name, torch.empty_like(value)).copy_(value)


def bank() -> ClassBank:
    items = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ClassBank(items, torch.arange(7) * 10, tuple("abcdef"))


def episodes() -> Any:
    plain = bank().episodes(3, 1, 2, 0, "train")
    return Augmented(plain, Augment(crop=1, flip=True, jitter=0.2), 0, "train")


def net() -> Conv4:
    return Conv4(item_shape=(1, 8, 8), outputs=3, filters=4, blocks=2)


def fresh(name: str, schedule: str = "cosine", optimizer: str = "Adam") -> TrainState:
    drawn = make_algorithm(name).init(net(), torch.Generator().manual_seed(0))
    meta = {key: w.requires_grad_() for key, w in drawn.items()}
    outer = make_optimizer(optimizer, meta.values(), SETTINGS.lr, {})
    return TrainState(meta, outer, make_scheduler(schedule, outer, SETTINGS.iterations, {}))


def run(state: TrainState, name: str, compute: Any, steps: int = SETTINGS.iterations) -> list[dict[str, float]]:
    network, made, rows = net(), make_algorithm(name), []
    drawn = episodes()
    for _ in range(steps):
        found = meta_update(made, network, state, drawn, SETTINGS, 7, None, compute=compute)
        rows.append({key: float(value) for key, value in found.items()})
    return rows


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if not make_algorithm(name).supervised])
def test_a_replayed_run_is_the_same_run(name: str) -> None:
    plain, replayed = fresh(name), fresh(name)
    said: list[str] = []
    Again.replayed = 0
    wanted = run(plain, name, computed)
    found = run(replayed, name, Recorded(computed, torch.device("cpu"), said.append, Again))
    annealed = make_algorithm(name).at_step(1, 12) != make_algorithm(name).at_step(2, 12)
    assert not said and (annealed or Again.replayed == SETTINGS.iterations - WARM)
    assert replayed.step == plain.step == SETTINGS.iterations and replayed.lr == plain.lr
    for a, b in zip(wanted, found, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)  # a rate on the device has single precision
    for key, w in plain.meta.items():
        assert torch.allclose(w, replayed.meta[key], rtol=1e-3, atol=1e-5), key
    assert replayed.optimizer.param_groups[0]["lr"] == plain.optimizer.param_groups[0]["lr"]


def test_each_network_and_method_has_a_recording_of_its_own_up_to_a_limit() -> None:
    state, made = fresh("maml"), make_algorithm("maml")
    Again.made = 0
    recorded = Recorded(computed, torch.device("cpu"), pytest.fail, Again)
    for rate in range(1, MOST + 3):
        for _ in range(WARM + 1):
            recorded(replace(made, inner_lr=rate / 10), net_once(), state, episodes(), SETTINGS, 0, 7, None)
    assert Again.made == MOST


NET = net()


def net_once() -> Conv4:
    return NET


def test_what_cannot_be_recorded_is_said_once_and_computed_as_it_comes() -> None:
    class Broken(Again):
        def record(self, work: Body) -> dict[str, Tensor]:
            raise RuntimeError("operation not permitted when stream is capturing")

    said: list[str] = []
    plain, other = fresh("maml"), fresh("maml")
    wanted = run(plain, "maml", computed)
    assert run(other, "maml", Recorded(computed, torch.device("cpu"), said.append, Broken)) == wanted
    assert len(said) == 1 and "stream is capturing" in said[0]


def without_numbers(x: Any) -> Any:
    """The same on a device that has shapes alone."""
    if isinstance(x, Tensor):
        return x.to("meta")
    if not is_dataclass(x):
        return x
    moved = object.__new__(type(x))  # past the checks, which read numbers
    for name, value in vars(x).items():
        moved.__dict__[name] = without_numbers(value)
    return moved


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_reads_nothing_from_the_device_and_makes_nothing_on_another(name: str) -> None:
    """Where there are no numbers, reading one fails, a shape that depends on one, and a tensor from the CPU."""
    made = make_algorithm(name)
    plain = bank().batches(0, "train") if made.supervised else bank().episodes(3, 1, 2, 0, "train")
    drawn = Augmented(plain, Augment(crop=1, flip=True, zoom=0.5, rotation=9, jitter=0.2, erase=0.5), 0, "train")
    drawn(0, 1)  # what is read once
    network = Conv4(item_shape=(1, 8, 8), outputs=plain.outputs, filters=4, blocks=2)
    meta = {
        key: w.to("meta").requires_grad_() for key, w in made.init(network, torch.Generator().manual_seed(0)).items()
    }
    state = TrainState(meta, torch.optim.SGD(meta.values(), 0.1))
    first = torch.zeros((), dtype=torch.int64, device="meta")
    metrics = computed(made, network, state, without_numbers(drawn), SETTINGS, first, 7, None)
    assert {value.device.type for value in metrics.values()} == {"meta"}
    assert any(w.grad is not None for w in meta.values())
    with pytest.raises(RuntimeError):
        float(metrics["loss"])


def members(name: str, schedule: str = "cosine") -> list[stacked.Member]:
    """Three runs, two of them of one seed."""
    network, made, drawn = net(), make_algorithm(name), [episodes(), episodes()]
    out = []
    for i, seed in enumerate((0, 1, 0)):
        course = Course(
            fresh(name, schedule),
            replace(SETTINGS, l2=0.01 * i),
            measure=MEASURES["accuracy"],
            checkpoint_every=100,
            validate=lambda state: Score(0.5, 0.0, 2),
            log=lambda row: None,
            save=lambda which, state: None,
            tick=lambda step: None,
            stop=lambda: False,
        )
        method = replace(made, inner_lr=0.1 * (i + 1)) if hasattr(made, "inner_lr") else made
        out.append(stacked.Member(course, method, lambda step: network, drawn[seed], 7 + seed))
    return out


@pytest.mark.parametrize("name", ["maml", "protonet", "mamlpp", "reptile"])
def test_replayed_runs_that_are_trained_together_are_the_same_runs(name: str) -> None:
    """Also after one of them has ended: what was recorded of all three is then not what is done."""
    plain, replayed = members(name), members(name)
    recorded = RecordedTogether(stacked.computed, torch.device("cpu"), pytest.fail, Again)
    before = Again.replayed
    for step in range(SETTINGS.iterations):
        which = slice(None) if step < 6 else slice(1, 3)
        ours = stacked.updated(replayed[which], compute=recorded)
        assert ours == stacked.updated(plain[which])
    assert Again.replayed - before >= (4 if name != "mamlpp" else 0)
    for mine, its in zip(replayed, plain, strict=True):
        assert all(torch.equal(w, its.state.meta[key]) for key, w in mine.state.meta.items())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_of_many_runs_reads_nothing_from_the_device(name: str) -> None:
    some = members(name, "constant")
    plain = bank().batches(0, "train") if make_algorithm(name).supervised else bank().episodes(3, 1, 2, 0, "train")
    plain(0, 1)
    network = Conv4(item_shape=(1, 8, 8), outputs=plain.outputs, filters=4, blocks=2)
    for i, member in enumerate(some):
        drawn = make_algorithm(name).init(network, torch.Generator().manual_seed(0))
        member.state.meta = {key: w.to("meta").requires_grad_() for key, w in drawn.items()}
        member.state.optimizer = torch.optim.SGD(member.state.meta.values(), 0.1)
        some[i] = replace(member, net_at=lambda step: network, episodes=without_numbers(plain))
    first = torch.zeros((), dtype=torch.int64, device="meta")
    metrics = stacked.computed(some, first, None, print)
    assert {(value.device.type, value.shape) for value in metrics.values()} == {("meta", (3,))}
    assert all(any(w.grad is not None for w in member.state.meta.values()) for member in some)


def test_recordable_optimizers() -> None:
    for name in ("Adam", "AdamW", "RMSprop", "SGD"):
        assert recordable(fresh("maml", optimizer=name).optimizer, schedules=False), name
    assert recordable(fresh("maml").optimizer, schedules=True)
    assert not recordable(fresh("maml", optimizer="SGD").optimizer, schedules=True), "it reads its rate on the host"
    assert not recordable(fresh("maml", optimizer="Adagrad").optimizer, schedules=False), "it counts steps on the host"


def test_an_optimizer_is_as_before_after_a_step_on_the_device() -> None:
    optimizer = fresh("maml").optimizer
    before = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    with on_device([optimizer], [torch.tensor(0.5)]):
        assert optimizer.param_groups[0]["lr"] == torch.tensor(0.5)
    assert {key: value for key, value in optimizer.param_groups[0].items() if key != "params"} == before
