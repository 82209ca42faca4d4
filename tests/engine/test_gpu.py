"""What only a GPU can show: the same episodes and gradients as on the CPU, and no step that waits for the device."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from metarun.algorithms.maml import MAML
from metarun.data.bank import ClassBank
from metarun.data.sampler import EpisodeSampler
from metarun.device import allow_tf32
from metarun.engine import stacked
from metarun.engine.compiled import Compiled
from metarun.engine.evaluate import Score
from metarun.engine.graph import RecordedTogether
from metarun.engine.loop import Course
from metarun.engine.state import TrainState
from metarun.engine.step import as_it_comes, meta_gradient, train_step
from metarun.measures import MEASURES
from metarun.models.conv4 import Conv4
from metarun.settings import TrainSettings
from metarun.types import EpisodeBatch

pytestmark = pytest.mark.gpu


def sampler(device: str) -> EpisodeSampler:
    items = torch.randint(0, 256, (200, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    bank = ClassBank(items, torch.arange(11) * 20, tuple(map(str, range(10))))
    return EpisodeSampler(bank.to(device), 5, 1, 1, 0, "train")


def test_episodes_are_those_of_the_cpu() -> None:
    for here, there in zip(sampler("cpu")(7, 4), sampler("cuda")(7, 4), strict=True):
        assert torch.equal(here, there.cpu())


def test_meta_gradient_is_that_of_the_cpu_in_float64() -> None:
    algorithm, net = MAML(), Conv4(item_shape=(1, 28, 28), outputs=5, filters=8)
    grads = []
    for device in ("cpu", "cuda"):
        drawn = algorithm.init(net, torch.Generator().manual_seed(0))
        meta = {name: w.to(device, torch.float64).requires_grad_() for name, w in drawn.items()}
        support_x, support_y, query_x, query_y = sampler(device)(0, 4)
        meta_gradient(algorithm, net, meta, EpisodeBatch(support_x.double(), support_y, query_x.double(), query_y))
        grads.append(torch.cat([w.grad.flatten().cpu() for w in meta.values() if w.grad is not None]))
    assert (grads[0] - grads[1]).norm() <= 1e-9 * grads[0].norm()


def test_a_compiled_gradient_is_that_as_it_comes() -> None:
    algorithm, net, said = MAML(), Conv4(item_shape=(1, 28, 28), outputs=5, filters=8), list[str]()
    drawn = algorithm.init(net, torch.Generator().manual_seed(0))
    meta = {name: w.cuda().requires_grad_() for name, w in drawn.items()}
    compiled = Compiled(said.append, compiler=partial(torch.compile, fullgraph=True, dynamic=False))
    grads = []
    for portion in (as_it_comes, compiled, compiled):
        for w in meta.values():
            w.grad = None
        meta_gradient(algorithm, net, meta, sampler("cuda")(0, 4), portion=portion)
        grads.append(torch.cat([w.grad.flatten() for w in meta.values() if w.grad is not None]))
    assert said[0].startswith("a step was compiled")
    for found in grads[1:]:
        assert (found - grads[0]).norm() <= 1e-3 * grads[0].norm()


def test_a_step_does_not_wait_for_the_device() -> None:
    algorithm, net, episodes = MAML(), Conv4(item_shape=(1, 28, 28), outputs=5), sampler("cuda")
    drawn = algorithm.init(net, torch.Generator().manual_seed(0))
    meta = {name: w.cuda().requires_grad_() for name, w in drawn.items()}
    state = TrainState(meta, torch.optim.Adam(meta.values(), 1e-3))
    train_step(algorithm, net, state, episodes(0, 4), None, 10.0)  # whatever is set up once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            state.add(train_step(algorithm, net, state, episodes(4 * step, 4), None, 10.0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.count == 3


def members() -> list[stacked.Member]:
    """Three runs with rates of their own, two of them on the same episodes."""
    net, draws = Conv4(item_shape=(1, 28, 28), outputs=5, filters=8), [sampler("cuda"), sampler("cuda")]
    out = []
    for i, seed in enumerate((0, 1, 0)):
        algorithm = MAML(inner_lr=0.1 * (i + 1))
        drawn = algorithm.init(net, torch.Generator().manual_seed(i))
        meta = {name: w.cuda().requires_grad_() for name, w in drawn.items()}
        course = Course(
            TrainState(meta, torch.optim.SGD(meta.values(), 0.01)),
            TrainSettings(iterations=20, meta_batch=4, clip=1.0 + i),
            measure=MEASURES["accuracy"],
            checkpoint_every=100,
            validate=lambda state: Score(0.5, 0.0, 2),
            log=lambda row: None,
            save=lambda which, state: None,
            tick=lambda step: None,
            stop=lambda: False,
        )
        out.append(stacked.Member(course, algorithm, lambda step: net, draws[seed], 7 + seed))
    return out


def test_recorded_steps_of_runs_that_are_trained_together_are_those_of_each_alone() -> None:
    allow_tf32(False)
    alone, plain, recorded = members(), members(), members()
    replayed = RecordedTogether(stacked.computed, torch.device("cuda"), pytest.fail)
    for _ in range(8):
        for member in alone:
            stacked.updated([member])
        stacked.updated(plain)
        stacked.updated(recorded, compute=replayed)
    for one, *others in zip(alone, plain, recorded, strict=True):
        for other in others:
            for name, w in one.state.meta.items():
                assert torch.allclose(other.state.meta[name], w, atol=1e-4), name


def test_a_step_of_many_runs_does_not_wait_for_the_device() -> None:
    some = members()
    stacked.updated(some)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            stacked.updated(some)
    finally:
        torch.cuda.set_sync_debug_mode("default")
