"""Optimizers and schedules by name: each builds, steps and goes on from a checkpoint to the same bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from contract.small import MLP, make_algorithm, make_episodes, make_net

from metarun import checkpoint
from metarun.engine.optim import make_optimizer, make_scheduler
from metarun.engine.state import TrainState
from metarun.engine.step import train_step
from metarun.types import EpisodeBatch, InputError

EXCLUDED = {"LBFGS", "SparseAdam", "Muon", "Optimizer"}
OPTIMIZERS = sorted(n for n, c in vars(torch.optim).items() if isinstance(c, type) and n not in EXCLUDED)
STEPS = 8
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {},
    "linear": {},
    "cosine": {},
    "StepLR": {"step_size": 3, "gamma": 0.5},
    "MultiStepLR": {"milestones": [2, 5], "gamma": 0.5},
    "ConstantLR": {"factor": 0.5, "total_iters": 5},
    "LinearLR": {"start_factor": 0.1, "total_iters": 6},
    "ExponentialLR": {"gamma": 0.9},
    "PolynomialLR": {"total_iters": STEPS, "power": 2.0},
    "CosineAnnealingLR": {"T_max": STEPS},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": STEPS},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3},
}


def make_state(optimizer: str, schedule: str, seed: int, **optimizer_args: Any) -> TrainState:
    algorithm, net = make_algorithm("protonet"), make_net(MLP, statistics="running")
    drawn = algorithm.init(net, torch.Generator().manual_seed(seed))
    meta = {n: w.requires_grad_() for n, w in drawn.items()}
    made = make_optimizer(optimizer, meta.values(), 0.05, optimizer_args)
    return TrainState(meta, made, make_scheduler(schedule, made, STEPS, SCHEDULES[schedule]), net.fresh_running())


def advance(state: TrainState, to: int) -> list[float]:
    """Trains on to step `to`; the learning rate after every step."""
    rates = []
    while state.step < to:
        episodes = EpisodeBatch(*(f.float() if f.is_floating_point() else f for f in make_episodes(seed=state.step)))
        net = make_net(MLP, statistics="running")
        state.add(train_step(make_algorithm("protonet"), net, state, episodes, None, 1.0))
        rates.append(state.lr)
    return rates


def everything(state: TrainState) -> dict[str, Any]:
    """What a state holds, its tensors as nested lists, so that == compares bits."""

    def plain(x: Any) -> Any:
        if isinstance(x, torch.Tensor):
            return str(x.dtype), x.tolist()
        if isinstance(x, dict):
            return {k: plain(v) for k, v in x.items()}
        return [plain(v) for v in x] if isinstance(x, (list, tuple)) else x

    schedule = state.scheduler.state_dict() if state.scheduler else None
    return plain(
        [state.meta, state.running, state.optimizer.state_dict(), schedule, state.step, state.totals, state.count]
    )


def goes_on_to_the_same_bits(tmp_path: Path, optimizer: str, schedule: str, **args: Any) -> None:
    straight = make_state(optimizer, schedule, 0, **args)
    start = everything(straight)
    advance(straight, STEPS // 2)
    checkpoint.save(tmp_path / "last.pt", straight)
    ahead = advance(straight, STEPS)
    resumed = make_state(optimizer, schedule, 1, **args)  # every bit must come from the file
    assert everything(resumed)[0] != start[0]
    checkpoint.restore(resumed, checkpoint.load(tmp_path / "last.pt"), tmp_path / "last.pt")
    assert advance(resumed, STEPS) == ahead
    assert everything(resumed) == everything(straight)
    assert everything(straight)[0] != start[0]
    assert all(w.isfinite().all() for w in straight.meta.values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_from_a_checkpoint_to_the_same_bits(name: str, tmp_path: Path) -> None:
    goes_on_to_the_same_bits(tmp_path, name, "cosine")


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_goes_on_from_a_checkpoint_to_the_same_bits(name: str, tmp_path: Path) -> None:
    goes_on_to_the_same_bits(tmp_path, "SGD", name, momentum=0.9)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_schedule_tied_to_the_length_ends_at_zero(name: str) -> None:
    rates = advance(make_state("SGD", name, 0), STEPS)
    expected = {
        "linear": [0.05 * (1 - (i + 1) / STEPS) for i in range(STEPS)],
        "cosine": [0.05 * (1 + math.cos(math.pi * (i + 1) / STEPS)) / 2 for i in range(STEPS)],
    }
    assert rates == pytest.approx(expected[name], abs=1e-9)


def test_constant_is_constant_and_other_schedules_are_torchs() -> None:
    assert advance(make_state("SGD", "constant", 0), STEPS) == [0.05] * STEPS
    assert advance(make_state("SGD", "StepLR", 0), 7) == pytest.approx([0.05] * 2 + [0.025] * 3 + [0.0125] * 2)


def weights() -> list[torch.Tensor]:
    return [torch.zeros(3, requires_grad=True)]


@pytest.mark.parametrize(("typed", "hint"), [("adam", "Adam"), ("RMSProp", "RMSprop"), ("AdamW2", "AdamW")])
def test_a_mistyped_optimizer_is_told_the_nearest(typed: str, hint: str) -> None:
    with pytest.raises(InputError, match=rf"train\.optimizer.*'{typed}'.*did you mean .*\b{hint}\b"):
        make_optimizer(typed, weights(), 0.1, {})


@pytest.mark.parametrize(("typed", "hint"), [("cosin", "cosine"), ("StepLr", "StepLR"), ("OneCycle", "OneCycleLR")])
def test_a_mistyped_schedule_is_told_the_nearest(typed: str, hint: str) -> None:
    with pytest.raises(InputError, match=rf"train\.schedule.*'{typed}'.*did you mean .*\b{hint}\b"):
        make_scheduler(typed, torch.optim.SGD(weights(), 0.1), 10, {})


@pytest.mark.parametrize("name", sorted(EXCLUDED))
def test_an_optimizer_that_cannot_work_here_is_unknown(name: str) -> None:
    with pytest.raises(InputError, match=name):
        make_optimizer(name, weights(), 0.1, {})


@pytest.mark.parametrize("name", ["LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler", "LRScheduler"])
def test_a_schedule_that_needs_objects_is_unknown(name: str) -> None:
    with pytest.raises(InputError, match=name):
        make_scheduler(name, torch.optim.SGD(weights(), 0.1), 10, {})


def test_a_schedule_that_waits_for_the_validation_is_unknown() -> None:
    with pytest.raises(InputError, match="ReduceLROnPlateau"):
        make_scheduler("ReduceLROnPlateau", torch.optim.SGD(weights(), 0.1), 10, {})


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [("Adam", {"beta": 0.9}, "beta"), ("SGD", {"momentum": -1}, "momentum")],
)
def test_arguments_that_an_optimizer_refuses_are_the_persons_to_mend(
    name: str, args: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=rf"train\.optimizer_args.*{said}"):
        make_optimizer(name, weights(), 0.1, args)


@pytest.mark.parametrize(("name", "args", "said"), [("StepLR", {}, "step_size"), ("StepLR", {"step": 3}, "step")])
def test_arguments_that_a_schedule_refuses_are_the_persons_to_mend(name: str, args: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=rf"train\.schedule_args.*{said}"):
        make_scheduler(name, torch.optim.SGD(weights(), 0.1), 10, args)


def test_arguments_and_the_rate_reach_the_optimizer() -> None:
    made = make_optimizer("SGD", weights(), 0.1, {"momentum": 0.9, "nesterov": True})
    assert made.param_groups[0]["nesterov"]
    assert made.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 20_000}),
        ("StepLR", {"step_size": 0}),
        ("constant", {"gamma": 0.5}),
        ("cosine", {"T_max": 5}),
    ],
)
def test_a_schedule_that_would_fail_later_or_ignore_its_arguments_is_refused_now(
    name: str, args: dict[str, Any]
) -> None:
    optimizer = make_optimizer("Adam", weights(), 1e-3, {})
    with pytest.raises(InputError, match=r"^train\.schedule_args"):
        make_scheduler(name, optimizer, 60_000, args)
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_the_rate_is_said_once() -> None:
    with pytest.raises(InputError, match=r"set train\.lr$"):
        make_optimizer("Adam", weights(), 1e-3, {"lr": 0.1})
